"""Results as tables of other libraries: pandas and Arrow."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teraedge.errors import DependencyError, OptionsError

if TYPE_CHECKING:
    from teraedge.result import Result


def to_pandas(result: "Result", live_only: bool, columns: Sequence[Any] | None) -> Any:
    """Return a result as a DataFrame; see `Result.to_pandas`."""
    pandas = _required("pandas")
    if columns is not None and len(columns) != result.shape[1]:
        raise OptionsError(
            f"{len(columns)} columns are named and the network has {result.shape[1]} outputs; "
            "give a name for each, or None"
        )
    ids, rows = _rows(result, live_only)
    return pandas.DataFrame(rows, index=pandas.Index(ids, name="sample"), columns=columns)


def to_arrow(result: "Result", live_only: bool) -> Any:
    """Return a result as an Arrow table; see `Result.to_arrow`."""
    arrow = _required("pyarrow")
    ids, rows = _rows(result, live_only)
    outputs = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), result.shape[1])
    return arrow.table({"sample": ids, "label": result.labels[ids], "outputs": outputs})


def _rows(result: "Result", live_only: bool) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the ids of samples, and their rows on the host."""
    rows = result.to_numpy()
    if live_only:
        return result.live, rows[result.live]
    return np.arange(result.samples), rows


def _required(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise DependencyError(
            f"this needs {name}, which is not installed; pip install 'teraedge[tables]'"
        ) from None
