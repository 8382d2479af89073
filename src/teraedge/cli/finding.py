"""One line of what ``teraedge doctor`` reports."""

from typing import Any, NamedTuple


class Finding(NamedTuple):
    """One line of the report.

    Attributes
    ----------
    name : str
        What was looked at.
    value : object
        What was found, as plain values.
    text : str
        The same, for people.
    ok : bool or None
        Whether it is as it must be; None where nothing depends on it.
    """

    name: str
    value: Any
    text: str
    ok: bool | None = None
