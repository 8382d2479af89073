"""The head of a network: what is done to a sample's last row, over all of its outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.errors import ModelError

HEADS = ("softmax", "log_softmax")
"""exp(x) divided by its sum over the row, and the logarithm of that."""


def check_head(head: Any) -> str | None:
    """Return the name of a head, or None for none.

    Raises
    ------
    ModelError
        If there is no such head.
    """
    if head is not None and head not in HEADS:
        raise ModelError(
            f"head is {head!r}; allowed: None, {', '.join(map(repr, HEADS))} (labels need no "
            "head: Result.labels)"
        )
    return head  # type: ignore[no-any-return]


def apply_head(head: str | None, rows: NDArray[Any]) -> NDArray[Any]:
    """Apply a head to rows, in place.

    Parameters
    ----------
    head : str or None
    rows : ndarray of float, shape (samples, n_out)

    Returns
    -------
    ndarray
        `rows`.

    Examples
    --------
    >>> apply_head("softmax", np.zeros((1, 4)))
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    if head is None:
        return rows
    rows -= rows.max(axis=1, keepdims=True)  # so that exp never overflows; the answer is the same
    if head == "softmax":
        np.exp(rows, out=rows)
        rows /= rows.sum(axis=1, keepdims=True)
    else:
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


def error_of_head(
    head: str | None, rows: NDArray[Any], error: NDArray[Any], unit: float
) -> NDArray[Any]:
    """Bound the error after a head, given that before it, both of shape (samples, n_out).

    The derivatives of a probability add up to at most 1/2 in magnitude, those of its logarithm to
    2. The sum of n exponentials is off by n roundings, an exponential by as much as its argument.
    """
    if head is None:
        return error
    largest = error.max(axis=1, keepdims=True, initial=0.0)
    own = (rows.shape[1] + 8) * unit
    if head == "softmax":
        return np.broadcast_to(np.minimum(largest / 2 + own, 1.0), error.shape)
    spread = rows.max(axis=1, keepdims=True, initial=-np.inf) - rows
    return np.asarray(2 * largest + own + 2 * unit * (spread + np.log(rows.shape[1])))
