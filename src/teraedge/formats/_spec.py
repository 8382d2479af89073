"""Reading what files say about themselves, which may be anything."""

import json
from pathlib import Path
from typing import Any

from teraedge.activations import Activation, from_spec
from teraedge.errors import FormatError, ModelError
from teraedge.text import a_type, with_article


def read_json(text: Any, where: str, kind: type = dict) -> Any:
    """Parse a JSON object, or a value of another kind.

    Raises
    ------
    FormatError
        If the text is anything else.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the metadata is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise FormatError(
            f"{where}: the metadata is {a_type(value)}; it must be {with_article(kind.__name__)}"
        )
    return value


def no_head(path: Path, head: str) -> str:
    """Return what to say where a format has no place for a head."""
    return (
        f"{path}: the network ends with {head}, for which this format has no place; save it as "
        ".safetensors or .onnx, or without: teraedge.Network(list(network))"
    )


def read_activation(spec: Any, where: str) -> Activation:
    """Make the activation a file names.

    Raises
    ------
    FormatError
        If it is not known or not valid.
    """
    try:
        return from_spec(spec)
    except (ModelError, OverflowError, TypeError) as error:
        raise FormatError(f"{where}: {error}") from None
