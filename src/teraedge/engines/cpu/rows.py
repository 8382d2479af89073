"""The compiled functions for a few samples: threads share every layer, and meet after each.

The thread that was asked for a run walks through the layers and takes part after part of each; the
others do the same if they come in time, and whoever comes late finds nothing left to take. So none
has to be waited for but one that has taken a part. Counters only ever go up, run after run: there
is nothing to reset that a late thread could still look at.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from teraedge.engines.cpu.atomics import (
    add_atomic,
    load_atomic,
    pause,
    store_atomic,
    swap_if_equal,
)
from teraedge.engines.cpu.curves import curves
from teraedge.engines.cpu.simd import TILE, VECTORS, multiply_add, nanoseconds
from teraedge.jit import inlined, jit

LINE = 8
"""int64 of a cache line: counters that threads write lie one a line."""
LOOKS = 64
"""Looks for a new run between two looks at the clock."""
ONE, TWO, THREE, FOUR = (np.uint64(number) for number in (1, 2, 3, 4))
STOP = -1
"""The number of the run that ends a thread."""

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in ("n_in", "n_out", "first_part", "parts", "bias", "droppable", "curve")
    ]
    + [("lower", np.float32), ("upper", np.float32)],
    align=True,
)
"""A layer: sizes, its parts, where its bias begins; `droppable`: zero rows after it are dead;
`curve`: the number of its smooth activation, 0 for none."""
PART = np.dtype(
    [(name, np.int64) for name in ("first", "last", "starts", "has_edges", "dense", "dense_width")],
    align=True,
)
"""A part: its neurons, where its `starts` and its dense weights begin, and the sums these go to."""


class Rows(NamedTuple):
    """A network by rows, and what threads share while some samples go through it.

    Kernels get the addresses and sizes of these arrays as one array: to take so many apart at every
    call would cost as much as a small layer.

    Attributes
    ----------
    layers, parts : ndarray of LAYER and PART
    starts, targets, weights, dense, bias : ndarray of int64, uint64, float32, float32, float32
        Of all parts, one after the other; see `plan.rows.RowPart`. Four targets are one number.
    values : ndarray of float32, shape (2, samples, width)
        What a layer reads and what it writes, in turn.
    active : ndarray of int32, shape (2, samples, width)
        The numbers of the values that are not zero: those of a part from its first neuron on.
    counts : ndarray of int64, shape (2, samples, parts of a layer)
        How many those are.
    claimed, done : ndarray of int64, shape (layers * LINE,)
        How many parts of each layer were taken, and how many are done, in all runs.
    run : ndarray of int64, shape (2,)
        The number of the last run, from 1, or `STOP`; its samples.
    nanos : ndarray of int64, shape (layers,)
        Time, as the asking thread sees it.
    live : ndarray of int64, shape (layers,)
        Samples live after each layer.
    """

    layers: Any
    parts: Any
    starts: Any
    targets: Any
    weights: Any
    dense: Any
    bias: Any
    values: Any
    active: Any
    counts: Any
    claimed: Any
    done: Any
    run: Any
    nanos: Any
    live: Any


FIELDS = len(Rows._fields)
_i64, _f32 = types.int64, types.float32
_ints, _floats, _outputs = _i64[::1], _f32[::1], _f32[:, ::1]
_features = types.Array(_f32, 2, "C", readonly=True)


def addresses(rows: Rows) -> NDArray[np.int64]:
    """Return what `opened` makes the rows from: addresses, layers, parts, samples, width, parts."""
    _, samples, width = rows.values.shape
    sizes = [len(rows.layers), len(rows.parts), samples, width, rows.counts.shape[2]]
    return np.array([*(array.ctypes.data for array in rows), *sizes], np.int64)


@intrinsic
def pointer(typing: Any, address: Any, kind: Any) -> Any:
    """Return an address (int64) as a pointer to values of a NumPy dtype."""
    target = types.CPointer(kind.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(address, kind), codegen


@inlined
def opened(table):
    """Return the rows of an array that `addresses` made; the large ones without their lengths."""
    layers, parts, samples, width, most = table[FIELDS:]
    any_length = 2**40
    return Rows(
        carray(pointer(table[0], LAYER), (layers,)),
        carray(pointer(table[1], PART), (parts,)),
        carray(pointer(table[2], np.int64), (any_length,)),
        carray(pointer(table[3], np.uint64), (any_length,)),
        carray(pointer(table[4], np.float32), (any_length,)),
        carray(pointer(table[5], np.float32), (any_length,)),
        carray(pointer(table[6], np.float32), (any_length,)),
        carray(pointer(table[7], np.float32), (2, samples, width)),
        carray(pointer(table[8], np.int32), (2, samples, width)),
        carray(pointer(table[9], np.int64), (2, samples, most)),
        carray(pointer(table[10], np.int64), (layers * LINE,)),
        carray(pointer(table[11], np.int64), (layers * LINE,)),
        carray(pointer(table[12], np.int64), (2,)),
        carray(pointer(table[13], np.int64), (layers,)),
        carray(pointer(table[14], np.int64), (layers,)),
    )


@inlined
def scatter(rows, part, active, x, sums):
    """Multiply some nonzero inputs into the sums of the neurons that they go to.

    Four edges at a time, whose targets are read as one number. They differ, unless they only pad.
    Numbers are unsigned, because numba adds the length to a negative index, after a look at each.
    """
    mask, bits = np.uint64(0xFFFF), np.uint64(16)
    for k in range(len(active)):
        row = part.starts + active[k]
        value = x[active[k]]
        for four in range(np.uint64(rows.starts[row]), np.uint64(rows.starts[row + 1])):
            targets = rows.targets[four]
            a, b = targets & mask, targets >> bits & mask
            c, d = targets >> (bits + bits) & mask, targets >> (bits + bits + bits)
            edge = four * FOUR
            one = multiply_add(value, rows.weights[edge], sums[a])
            two = multiply_add(value, rows.weights[edge + ONE], sums[b])
            three = multiply_add(value, rows.weights[edge + TWO], sums[c])
            last = multiply_add(value, rows.weights[edge + THREE], sums[d])
            sums[a], sums[b], sums[c], sums[d] = one, two, three, last


@inlined
def stream(rows, part, active, x, sums):
    """Multiply some nonzero inputs into many sums, four inputs at a time."""
    width, count = part.dense_width, len(active)
    whole = count // 4 * 4
    for k in range(0, whole, 4):
        a, b, c, d = active[k], active[k + 1], active[k + 2], active[k + 3]
        xa, xb, xc, xd = x[a], x[b], x[c], x[d]
        wa = rows.dense[part.dense + a * width :][:width]
        wb = rows.dense[part.dense + b * width :][:width]
        wc = rows.dense[part.dense + c * width :][:width]
        wd = rows.dense[part.dense + d * width :][:width]
        for j in range(width):
            total = multiply_add(xa, wa[j], sums[j])
            total = multiply_add(xb, wb[j], total)
            total = multiply_add(xc, wc[j], total)
            sums[j] = multiply_add(xd, wd[j], total)
    for k in range(whole, count):
        xa = x[active[k]]
        wa = rows.dense[part.dense + active[k] * width :][:width]
        for j in range(width):
            sums[j] = multiply_add(xa, wa[j], sums[j])


@inlined
def finish(layer, part, bias, sums, y, active):
    """Add the two sums of each neuron and its bias, and apply the activation.

    Writes the outputs, and the numbers of those that are not zero; returns how many those are.
    """
    width, count = part.last - part.first, 0
    for j in range(width):
        value = sums[j] + sums[width + j] + bias[j]
        value = layer.lower if value < layer.lower else value
        sums[j] = layer.upper if value > layer.upper else value
    if layer.curve:
        curves(layer.curve, sums.ctypes.data, (width + TILE - 1) // TILE, VECTORS)
    for j in range(width):
        y[part.first + j] = sums[j]
        active[count] = part.first + j
        count += sums[j] != 0
    return count


@inlined
def run_part(rows, index, number, samples, sums):
    """Run part `number` of layer `index` for all samples."""
    layer = rows.layers[index]
    part = rows.parts[layer.first_part + number]
    width, turn = part.last - part.first, index % 2
    bias = rows.bias[layer.bias + part.first : layer.bias + part.last]
    for sample in range(samples):
        x = rows.values[turn, sample]
        sums[: 2 * width] = 0
        # What the layer before left, part after part; the features are one.
        for before in range(rows.layers[index - 1].parts if index else 1):
            begin = rows.parts[rows.layers[index - 1].first_part + before].first if index else 0
            active = rows.active[turn, sample, begin:][: rows.counts[turn, sample, before]]
            if part.dense_width:
                stream(rows, part, active, x, sums)
            if part.has_edges:
                scatter(rows, part, active, x, sums)
        y = rows.values[1 - turn, sample]
        active = rows.active[1 - turn, sample, part.first :]
        rows.counts[1 - turn, sample, number] = finish(layer, part, bias, sums, y, active)


@inlined
def claim(address, end):
    """Take the next part of a layer, whose counter is at an address; -1 where none is left."""
    while True:
        taken = load_atomic(address)
        if taken >= end:
            return -1
        if swap_if_equal(address, taken, taken + 1):
            return taken


@inlined
def count_live(rows, index, samples):
    """Return the samples that live on after a layer."""
    layer = rows.layers[index]
    if not layer.droppable:
        return samples
    live = 0
    for sample in range(samples):
        live += rows.counts[1 - index % 2, sample, : layer.parts].any()
    return live


@inlined
def walk(rows, run, samples, sums, asked):
    """Go through all layers of a run, and take what parts are left of each.

    The thread that was `asked` for it notes what the trace will say.
    """
    begin = nanoseconds()
    for index in range(len(rows.layers)):
        parts = rows.layers[index].parts
        claimed = rows.claimed.ctypes.data + index * LINE * 8
        done = rows.done.ctypes.data + index * LINE * 8
        while True:
            taken = claim(claimed, run * parts)
            if taken < 0:
                break
            run_part(rows, index, taken - (run - 1) * parts, samples, sums)
            add_atomic(done, 1)
        while load_atomic(done) < run * parts:
            pause()
        if asked:
            end = nanoseconds()
            rows.nanos[index], begin = end - begin, end
            rows.live[index] = count_live(rows, index, samples)


@jit(_i64(_ints, _i64, _features, _outputs, _floats))
def ask(table, run, features, out, sums):
    """Run some samples, and let the other threads help.

    Parameters
    ----------
    table : ndarray of int64
        As `addresses` makes it.
    run : int
        The number of this run: one more than that of the last that was finite.
    features : ndarray of float32, shape (samples, n_in)
    out : ndarray of float32, shape (samples, n_out)
        To be written.
    sums : ndarray of float32
        Two for each neuron of a part, and one more, whole tiles; from a cache line on, and of this
        thread alone.

    Returns
    -------
    int
        A bit a sample: whether its last row has a nonzero; -1 where a feature is not finite, and
        nothing ran.
    """
    rows = opened(table)
    samples, n_in = features.shape
    for sample in range(samples):
        count = 0
        for neuron in range(n_in):
            value = features[sample, neuron]
            if not abs(value) < np.float32(np.inf):
                return -1
            rows.values[0, sample, neuron] = value
            rows.active[0, sample, count] = neuron
            count += value != 0
        rows.counts[0, sample, 0] = count
    rows.run[1] = samples
    store_atomic(rows.run.ctypes.data, run)
    walk(rows, run, samples, sums, True)
    turn, nonzero = len(rows.layers) % 2, 0
    for sample in range(samples):
        out[sample] = rows.values[turn, sample, : out.shape[1]]
        if rows.counts[turn, sample, : rows.layers[-1].parts].any():
            nonzero |= 1 << sample
    return nonzero


@jit(_i64(_ints, _i64, _i64, _floats))
def serve(table, run, nanos, sums):
    """Take part in every run after `run`, until none came for some time; returns the last one."""
    rows = opened(table)
    end = nanoseconds() + nanos
    while True:
        latest = run
        for _ in range(LOOKS):
            latest = load_atomic(rows.run.ctypes.data)
            if latest != run:
                break
            pause()
        if latest == STOP:
            return STOP
        if latest != run:
            run = latest
            walk(rows, run, load_atomic(rows.run.ctypes.data + 8), sums, False)
            end = nanoseconds() + nanos
        elif nanoseconds() > end:
            return run
