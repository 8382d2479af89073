"""Lookups, for one sample: a register of neighbouring neurons at a time, their edges padded.

A machine that can pick any values out of two registers multiplies an edge of each of the neurons at
once, as long as the inputs of these edges lie in a *window* of as many neighbours as the two
registers hold. The edges of a neuron stay in order. So windows only ever move on: each begins at
the first input that one of the neurons still waits for, and takes up to `STEPS` edges of each
neuron that lie in it. Neurons that have fewer there are padded with edges of weight 0.
"""

from dataclasses import dataclass

import numpy as np
from numba import types
from numpy.typing import NDArray

from teraedge.jit import jit

STEPS = 2
"""Edges of a neuron in a window, at most. With one, inputs are loaded too often; more only pad."""

_i64 = types.int64


@dataclass(frozen=True)
class Lookups:
    """The edges of some neighbouring neurons, window by window.

    Attributes
    ----------
    ends : ndarray of int64, shape (groups + 1,)
        A group is a register of neurons; its windows are ``ends[group]`` to ``ends[group + 1]``.
    bases : ndarray of int32, shape (windows,)
        The first input of each window.
    picks : ndarray of uint8, shape (windows, STEPS, lanes)
        The input of each edge, from the base on.
    weights : ndarray of float32, shape (windows, STEPS, lanes)
    """

    ends: NDArray[np.int64]
    bases: NDArray[np.int32]
    picks: NDArray[np.uint8]
    weights: NDArray[np.float32]


def no_lookups(lanes: int) -> Lookups:
    """Return those of neurons that have none."""
    shape = 0, STEPS, lanes
    empty = np.empty(shape, np.uint8), np.empty(shape, np.float32)
    return Lookups(np.zeros(0, np.int64), np.empty(0, np.int32), *empty)


def lookups(
    neurons: NDArray[np.int64],
    inputs: NDArray[np.int32],
    weights: NDArray[np.float32],
    shape: tuple[int, int],
    lanes: int,
    most: float,
) -> Lookups:
    """Lay edges out in windows.

    Parameters
    ----------
    neurons, inputs, weights : ndarray, shape (edges,)
        By ascending input.
    shape : (int, int)
        Inputs and neurons.
    lanes : int
        Of a register.
    most : float
        Edges with padding, at most; `no_lookups` where they were more.
    """
    n_in, n_out = shape
    windows = int(most) // (STEPS * lanes)
    if n_in < 2 * lanes or not windows:
        return no_lookups(lanes)
    groups = -(-n_out // lanes)
    order = np.argsort(neurons, kind="stable")
    starts = np.zeros(groups * lanes + 1, np.int64)
    np.cumsum(np.bincount(neurons, minlength=groups * lanes), out=starts[1:])
    ends, bases = np.zeros(groups + 1, np.int64), np.empty(windows, np.int32)
    picks = np.zeros((windows, STEPS, lanes), np.uint8)
    placed = np.zeros((windows, STEPS, lanes), np.float32)
    count = _place(starts, inputs[order], weights[order], n_in, ends, bases, picks, placed)
    if count < 0:
        return no_lookups(lanes)
    return Lookups(ends, bases[:count].copy(), picks[:count].copy(), placed[:count].copy())


@jit(
    _i64(
        _i64[::1], types.int32[::1], types.float32[::1], _i64, _i64[::1], types.int32[::1],
        types.uint8[:, :, ::1], types.float32[:, :, ::1],
    )
)  # fmt: skip
def _place(starts, inputs, weights, n_in, ends, bases, picks, placed):
    """Fill windows as long as there is room; returns how many there are, or -1."""
    lanes, windows, last = picks.shape[2], 0, n_in - 2 * picks.shape[2]
    edge = starts[:-1].copy()  # the next of each neuron
    for group in range(len(ends) - 1):
        first = group * lanes
        while True:
            base = n_in
            for neuron in range(first, first + lanes):
                if edge[neuron] < starts[neuron + 1]:
                    base = min(base, inputs[edge[neuron]])
            if base == n_in:
                break
            if windows == len(bases):
                return -1
            base = min(base, last)
            bases[windows] = base
            for lane in range(lanes):
                neuron = first + lane
                for step in range(STEPS):
                    at = edge[neuron]
                    if at < starts[neuron + 1] and inputs[at] < base + 2 * lanes:
                        picks[windows, step, lane] = inputs[at] - base
                        placed[windows, step, lane] = weights[at]
                        edge[neuron] = at + 1
            windows += 1
        ends[group + 1] = windows
    return windows
