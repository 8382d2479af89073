"""Saturated samples: what becomes of one whose every neuron is at the upper bound.

Where an activation has an upper bound, as a clipped ReLU has, samples tend to end up at it: all
their neurons hold the same value, and go on to hold values that can be told when the layers are
laid out, just as the row of a dead sample stays zero. Such a sample need not run.

A value is known if every order of summing comes to it: beyond a bound by more than rounding can
do, or from sums all of whose parts are exact. With a value that is not, the way of all samples from
there on is unknown, and only what is saturated later is looked at.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.plan.panels import PanelLayer
from teraedge.rounding import LARGEST

_HALF_ULP = 2.0**-24
"""Rounding of a sum in fp32, relative to it."""
_DIGITS = 2.0**24
"""Multiples of a step up to this are exact in fp32,"""
_LEAST_STEP = 2.0**-149
"""unless the step is less than this."""


class Saturation(NamedTuple):
    """Where samples of some layers may be found saturated, and what they come to.

    Attributes
    ----------
    layers : ndarray of bool, shape (layers + 1,)
        Whether a sample that is saturated before the first layer, then after each, ends as `row`.
    row : ndarray of float32, shape (n_out,)
        After the last layer.
    """

    layers: NDArray[np.bool_]
    row: NDArray[np.float32]


def saturation(before: float, layers: Sequence[PanelLayer]) -> Saturation | None:
    """Follow a saturated sample through some layers.

    Parameters
    ----------
    before : float
        The upper bound of the inputs; infinite where there is none.
    layers : sequence of PanelLayer
        Without tall panels.

    Returns
    -------
    Saturation or None
        None where no such sample has a row that is known, and not zero.
    """
    found = np.zeros(len(layers) + 1, np.bool_)
    row: NDArray[np.float32] | None = None
    if _is_bound(np.float32(before)) and layers:
        row, found[0] = np.full(layers[0].n_in, before, np.float32), True
    for number, layer in enumerate(layers, 1):
        row = None if row is None else _next(row, layer)
        bound = np.float32(layer.clamp[1])
        full = np.full(layer.n_out, bound) if _is_bound(bound) and not layer.curve else None
        if row is None:
            found[:] = False  # whose way leads here
            row = full
        found[number] = row is not None and full is not None and np.array_equal(row, full)
    if row is None or not row.any():
        return None
    return Saturation(found, row)


def _is_bound(bound: np.float32) -> bool:
    return bool(bound != 0 and abs(bound) < LARGEST["fp32"])


def _next(row: NDArray[np.float32], layer: PanelLayer) -> NDArray[np.float32] | None:
    """Return what a layer makes of a row in any order of summing, or None if that is not known."""
    if layer.curve:
        return None
    panels = layer.single
    counts = np.diff(panels.starts)
    edges = int(counts.sum())
    inputs = row[panels.indices[:edges]].astype(np.float64)
    weights = panels.weights if layer.value is None else np.float32(layer.value)
    products = inputs * weights
    owner = np.repeat(panels.outputs, counts)
    bias = layer.bias.astype(np.float64)
    sums = np.bincount(owner, products, layer.n_out) + bias
    sizes = np.bincount(owner, np.abs(products), layer.n_out) + np.abs(bias)
    if (sizes >= LARGEST["fp32"]).any():
        return None
    lower, upper = (np.float32(bound) for bound in layer.clamp)
    most = np.bincount(panels.outputs, counts, layer.n_out) + 2
    margin = sizes * most * (1.001 * _HALF_ULP)
    above, below = sums - margin >= upper, sums + margin <= lower
    exact = above | below
    if not exact.all():
        step = np.full(layer.n_out, np.inf)
        np.minimum.at(step, owner, _step(products))
        step = np.minimum(step, _step(bias))
        exact |= (sizes <= step * _DIGITS) & (step >= _LEAST_STEP)
    if not exact.all():
        return None
    return np.where(above, upper, np.where(below, lower, sums)).astype(np.float32)


def _step(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest power of two that each value is a multiple of; infinite for zero."""
    mantissa, exponent = np.frexp(values)
    digits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.where(digits == 0, 1, digits & -digits)
    return np.where(digits == 0, np.inf, np.ldexp(lowest.astype(np.float64), exponent - 53))
