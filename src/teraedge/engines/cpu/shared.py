"""What threads share while they run some samples together: arrays, as kernels get them."""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from teraedge.engines.cpu.simd import LANES
from teraedge.engines.cpu.state import LAYER as PANEL_LAYER
from teraedge.jit import inlined

LINE = 8
"""int64 of a cache line: numbers that threads write lie one a line."""

LAYER = np.dtype(
    [(name, np.int64) for name in ("first_part", "parts", "bias", "droppable", "curve")]
    + [(name, np.float32) for name in ("lower", "upper", "sample_cost", "group_cost")],
    align=True,
)
"""A layer: its parts, where its bias begins; `droppable`: zero rows after it are dead;
`curve`: the number of its smooth activation, 0 for none; what a sample costs by products, and a
register of samples in panels."""
PART = np.dtype(
    [
        (name, np.int64)
        for name in ("first", "last", "n_in", "starts", "has_edges", "dense", "wide", "narrow")
    ]
    + [(name, np.int64) for name in ("groups", "ends", "slots")]
    + [("cost", np.float64)],
    align=True,
)
"""A part: its neurons, inputs, where its `starts` and its dense weights begin, and the blocks of
these; the groups of its lookups, 0 for none, where their `ends` begin, and how many weights they
are; what it costs without them (see `plan.rows`)."""


class Shared(NamedTuple):
    """A network by rows and in panels, and what threads share while some samples go through it.

    Kernels get the addresses and sizes of these arrays as one array: to take so many apart at every
    call would cost as much as a small layer.

    Attributes
    ----------
    layers, parts : ndarray of LAYER and PART
    starts, targets, weights, dense, bias : ndarray of int64, uint64, float32, float32, float32
        Of all parts, one after the other; see `plan.rows.RowPart`. Four targets are one number.
    ends, bases, picks, picked : ndarray of int64, int32, uint8, float32
        Of the lookups of all parts, `picked` being their weights; see `plan.lookups.Lookups`.
    panels : ndarray of state.LAYER
        The layers in panels, for more samples.
    values : ndarray of float32, shape (2, groups * LANES, width)
        What a layer reads and what it writes, in turn.
    active : ndarray of int32, shape (2, few, width)
        The numbers of the values that are not zero: those of a part from its first neuron on.
    counts : ndarray of int64, shape (2, few, parts of a layer)
        How many those are.
    lanes : ndarray of float32, shape (2, groups, width * LANES)
        As values, for panels: a register a neuron, `LANES` samples a group.
    seen : ndarray of uint64, shape (layers, parts of a layer, groups)
        A bit a sample of a group: whether the part wrote a nonzero.
    states : ndarray of int64, shape (parts * LINE,)
        Of each part twice the number of the last run in which it is done, less 1 if it is taken.
    run : ndarray of int64, shape (2,)
        The number of the last run, from 1, or `STOP`; its samples, or 0 where other threads, once
        it is done, are not to look for the next.
    nanos : ndarray of int64, shape (layers,)
        Time, as the asking thread sees it.
    live : ndarray of int64, shape (layers,)
        Samples live after each layer.
    nonzero : ndarray of bool, shape (groups * LANES,)
        Samples whose last row is not zero.
    """

    layers: Any
    parts: Any
    starts: Any
    targets: Any
    weights: Any
    dense: Any
    bias: Any
    ends: Any
    bases: Any
    picks: Any
    picked: Any
    panels: Any
    values: Any
    active: Any
    counts: Any
    lanes: Any
    seen: Any
    states: Any
    run: Any
    nanos: Any
    live: Any
    nonzero: Any


FIELDS = len(Shared._fields)


def addresses(shared: Shared) -> NDArray[np.int64]:
    """Return what `opened` makes them from: addresses, then sizes."""
    sizes = *shared.active.shape[1:], *shared.seen.shape
    return np.array([*(array.ctypes.data for array in shared), *sizes], np.int64)


@intrinsic
def pointer(typing: Any, address: Any, kind: Any) -> Any:
    """Return an address (int64) as a pointer to values of a NumPy dtype."""
    target = types.CPointer(kind.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(address, kind), codegen


@inlined
def opened(table):
    """Return the arrays of what `addresses` made; the large ones without their lengths."""
    samples, width, layers, most, groups = table[FIELDS:]
    any_length = 2**40
    return Shared(
        carray(pointer(table[0], LAYER), (layers,)),
        carray(pointer(table[1], PART), (any_length,)),
        carray(pointer(table[2], np.int64), (any_length,)),
        carray(pointer(table[3], np.uint64), (any_length,)),
        carray(pointer(table[4], np.float32), (any_length,)),
        carray(pointer(table[5], np.float32), (any_length,)),
        carray(pointer(table[6], np.float32), (any_length,)),
        carray(pointer(table[7], np.int64), (any_length,)),
        carray(pointer(table[8], np.int32), (any_length,)),
        carray(pointer(table[9], np.uint8), (any_length,)),
        carray(pointer(table[10], np.float32), (any_length,)),
        carray(pointer(table[11], PANEL_LAYER), (layers,)),
        carray(pointer(table[12], np.float32), (2, groups * LANES, width)),
        carray(pointer(table[13], np.int32), (2, samples, width)),
        carray(pointer(table[14], np.int64), (2, samples, most)),
        carray(pointer(table[15], np.float32), (2, groups, width * LANES)),
        carray(pointer(table[16], np.uint64), (layers, most, groups)),
        carray(pointer(table[17], np.int64), (any_length,)),
        carray(pointer(table[18], np.int64), (2,)),
        carray(pointer(table[19], np.int64), (layers,)),
        carray(pointer(table[20], np.int64), (layers,)),
        carray(pointer(table[21], np.bool_), (groups * LANES,)),
    )
