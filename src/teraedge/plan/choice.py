"""What was decided for a layer, and what a plan remembers of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from teraedge.plan.cost import Limit


@dataclass(frozen=True)
class Choice:
    """What was decided for a layer.

    Attributes
    ----------
    layout, kernel : str
        Their names.
    seconds : float or None
        Predicted for one sample on one worker: a core, or a whole GPU. None where the device has
        no measured constants to predict from.
    limit : Limit or None
        What keeps it from being faster, and the least seconds a sample that it allows.
    why : str
        One sentence, without numbers that differ from layer to layer.
    candidates : mapping of str to float
        Predicted seconds a sample of every layout that was considered.
    """

    layout: str
    kernel: str
    seconds: float | None
    limit: Limit | None
    why: str
    candidates: Mapping[str, float] = field(default_factory=dict)

    def without_times(self, kernel: str) -> Self:
        """Return the choice for a kernel of a device whose times are not predicted."""
        return replace(self, kernel=kernel, seconds=None, limit=None, candidates={})


class Part(NamedTuple):
    """What a plan remembers of a layer that runs; `origin`: the layer as given it is part of."""

    origin: int
    n_in: int
    n_out: int
    edges: int
    nbytes: int
    choice: Choice
