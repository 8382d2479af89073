"""The compiled functions of a run: tiles in, through the layers, and out.

A *tile* is the state of up to `TILE` samples: float32, one row a neuron, samples side by side. A
thread owns a small pool of tiles and takes one at a time through all layers, depth first, so that
it stays in that core's cache. A tile whose samples have mostly died is parked before its next
layer, and goes on once samples parked there by other tiles have filled it up: every sample is
moved a few times in a whole run, and layers always run on tiles that are at least half full.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types

from teraedge.engines.cpu.jit import jit
from teraedge.engines.cpu.simd import (
    HEIGHT,
    LANES,
    TILE,
    count_bits,
    nanoseconds,
    pack_lanes,
    panels,
    spread_bits,
)

HALF = TILE // 2
FREE = -1
"""What an unused tile waits for."""
IN_USE = -2
ONE, ALL = np.uint64(1), np.uint64(2**64 - 1)
HASH = np.uint32(0x9E3779B1)  # 2**32 / golden ratio
MAX_GAP = 64
"""Layers between two looks for equal samples, at most."""
LINE = 16
"""float32 values of a cache line."""

PANELS = np.dtype(
    [(name, np.int64) for name in ("count", "starts", "indices", "weights", "outputs")],
    align=True,
)
LAYER = np.dtype(
    [
        ("n_in", np.int64),
        ("n_out", np.int64),
        ("edges", np.int64),
        ("droppable", np.int64),
        ("equal", np.int64),
        ("wide", np.int64),
        ("bias", np.int64),
        ("tall", PANELS),
        ("single", PANELS),
        ("value", np.float32),
        ("lower", np.float32),
        ("upper", np.float32),
    ],
    align=True,
)
"""A layer as kernels see it: sizes, flags, addresses. `droppable`: zero rows after it are dead."""


class State(NamedTuple):
    """What a thread works on: its tiles, its counters, and which samples equal which.

    The first axis of the first five is the tiles of the thread's pool; live, executed, nanos and
    looks have an entry a layer of the segment.

    Attributes
    ----------
    tiles : ndarray of float32, shape (tiles, neurons * TILE)
    ids, shares : ndarray of int64, shape (tiles, TILE)
        The sample in each lane, and how many equal samples it stands for.
    counts : ndarray of int64, shape (tiles,)
        Lanes in use.
    waits : ndarray of int64, shape (tiles,)
        The layer a tile waits for, `FREE` or `IN_USE`.
    live, executed, nanos : ndarray of int64, shape (layers,)
        Samples live after each layer, multiply-adds, and time, to be added to.
    looks : ndarray of int64, shape (layers + 1, 3)
        Tiles that came by, looks for equal samples, and looks that found some.
    scratch, hashes : ndarray of uint8 and uint32, shape (TILE,)
    same_as : ndarray of int64, shape (samples,)
        The sample that runs for each; shared by all threads, each writes its own samples.
    look_until : int
        The last layer before which equal samples are looked for.
    """

    tiles: Any
    ids: Any
    shares: Any
    counts: Any
    waits: Any
    live: Any
    executed: Any
    nanos: Any
    looks: Any
    scratch: Any
    hashes: Any
    same_as: Any
    look_until: Any


_layer = from_dtype(LAYER)
_layers = types.Array(_layer, 1, "C", readonly=True)
_i64, _u64 = types.int64, types.uint64
_ints, _int_rows = types.int64[::1], types.int64[:, ::1]
_tiles, _row = types.float32[:, ::1], types.float32[::1]
_bytes = types.Array(types.uint8, 2, "C", readonly=True)
_scratch = types.uint8[::1]
_counters = [_ints, _ints, _ints, _int_rows]
_parts = [_tiles, _int_rows, _int_rows, _ints, _ints, *_counters]
_parts += [_scratch, types.uint32[::1], _ints, _i64]
_state = types.NamedTuple(_parts, State)


def _vector(dtype):
    return types.Array(dtype, 1, "C", readonly=True)


_DENSE = [
    types.Array(t, 2, "A", readonly=True) for t in (types.uint8, types.float32, types.float64)
]
_SPARSE = [
    (_vector(index), _vector(index), _vector(types.float32)) for index in (types.int32, types.int64)
]


@jit(_u64(_layer, _i64, _i64, _i64))
def run_layer(layer, x, y, samples):
    """Run a layer over the first `samples` of the tile at address x into the one at y.

    Returns the samples with a nonzero output, as bits.
    """
    vectors = (samples + LANES - 1) // LANES
    tall, single = layer.tall, layer.single
    live = panels(
        HEIGHT, vectors, layer.equal, layer.wide, x, y, tall.count, tall.starts, tall.indices,
        tall.weights, tall.outputs, layer.bias, layer.value, layer.lower, layer.upper,
    )  # fmt: skip
    live |= panels(
        1, vectors, layer.equal, layer.wide, x, y, single.count, single.starts, single.indices,
        single.weights, single.outputs, layer.bias, layer.value, layer.lower, layer.upper,
    )  # fmt: skip
    padding = np.uint64(64 - samples)
    return live << padding >> padding


@jit(_i64(_ints, _i64))
def find_tile(layers_of_tiles, layer):
    """Return the first tile waiting for a layer (or `FREE`), -1 where there is none."""
    for tile in range(len(layers_of_tiles)):
        if layers_of_tiles[tile] == layer:
            return tile
    return -1


@jit(_i64(_ints))
def next_parked(layers_of_tiles):
    """Return the parked tile that is furthest behind, -1 where none is left."""
    best = -1
    for tile in range(len(layers_of_tiles)):
        layer = layers_of_tiles[tile]
        if layer != FREE and (best < 0 or layer < layers_of_tiles[best]):
            best = tile
    return best


@jit(types.void(_state, _i64, _u64, _i64, _i64))
def move_samples(state, source, bits, target, neurons):
    """Append the samples set in `bits` of one tile to another."""
    tiles, begin = state.tiles, state.counts[target]
    pack_lanes(
        tiles[source].ctypes.data, bits, tiles[target].ctypes.data + begin * tiles.itemsize, neurons
    )
    for sample in range(state.counts[source]):
        if bits >> np.uint64(sample) & ONE:
            state.ids[target, begin] = state.ids[source, sample]
            state.shares[target, begin] = state.shares[source, sample]
            begin += 1
    state.counts[target] = begin


@jit(_i64(_state, _i64, _u64, _i64, _i64))
def compact(state, tile, bits, neurons, layers):
    """Drop the samples of a tile that are not in `bits`, where that saves work.

    After the last of the `layers` it always does: what leaves a segment is wanted.

    Returns
    -------
    int
        The tile to go on with, which may be another: if all its samples are in `bits`, it was
        packed. -1 where nothing is left to go on with.
    """
    waits, counts = state.waits, state.counts
    count, kept, index = counts[tile], count_bits(bits), waits[tile]
    if kept == 0:
        waits[tile] = FREE
        return -1
    last = index == layers
    frees_register = (kept - 1) // LANES < (count - 1) // LANES
    if kept == count or not (last or kept <= HALF or frees_register):
        return tile
    waits[tile] = IN_USE
    target = -1 if last or kept > HALF else find_tile(waits, index)
    if target < 0:
        target = find_tile(waits, FREE)
        counts[target] = 0
    move_samples(state, tile, bits, target, neurons)
    waits[tile], waits[target] = FREE, index
    # Park it if it is not yet half full and the next tile will still have two to run in.
    free = 0
    for wait in waits:
        free += wait == FREE
    return -1 if counts[target] <= HALF and free >= 2 and not last else target


@jit(_i64(_state, _i64, _u64))
def count_samples(state, tile, bits):
    """Return how many samples the rows in `bits` stand for."""
    total = 0
    for sample in range(state.counts[tile]):
        if bits >> np.uint64(sample) & ONE:
            total += state.shares[tile, sample]
    return total


@jit(types.boolean(_row, _i64, _i64, _i64))
def equal_samples(rows, neurons, one, other):
    """Tell whether two samples of a tile are equal bit for bit (0.0 and -0.0 count as equal)."""
    for begin in range(0, neurons * TILE, TILE):  # noqa: SIM110 (compiled)
        if rows[begin + one] != rows[begin + other]:
            return False
    return True


@jit(_u64(_state, _i64, _u64, _i64))
def merge_samples(state, tile, bits, neurons):
    """Let one sample of every set of equal ones run for all; returns the samples that still run."""
    hashes, rows = state.hashes, state.tiles[tile]
    hashes[:] = 0
    patterns = rows.view(np.uint32)
    for neuron in range(neurons):
        for sample in range(TILE):
            hashes[sample] = hashes[sample] * HASH + patterns[neuron * TILE + sample]
    for sample in range(1, state.counts[tile]):
        for before in range(sample):
            if (
                hashes[before] == hashes[sample]
                and bits >> np.uint64(sample) & bits >> np.uint64(before) & ONE
                and equal_samples(rows, neurons, before, sample)
            ):
                state.same_as[state.ids[tile, sample]] = state.ids[tile, before]
                state.shares[tile, before] += state.shares[tile, sample]
                bits &= ~(ONE << np.uint64(sample))
                break
    return bits


@jit(types.boolean(_state, _i64))
def worth_merging(state, index):
    """Estimate whether looking for equal samples before layer `index` pays.

    The first tiles that come by are looked at; after those every 16th, or all while a quarter of
    the looks find something.
    """
    visits, looks, finds = state.looks[index]
    state.looks[index, 0] += 1
    return looks < 2 or finds * 4 >= looks or visits % 16 == 0


@jit(_i64(_layers, _i64, _state))
def advance(layers, tile, state):
    """Take a tile from the layer it waits for through all the others.

    Returns
    -------
    int
        The tile with the last rows, or -1 where all its samples died or were parked.
    """
    index = state.waits[tile]
    running = ALL >> np.uint64(64 - state.counts[tile])  # what waits is packed
    samples = count_samples(state, tile, running)
    look, gap = index + 1, 1  # layers between looks for equal samples double while none are found
    while index < len(layers):
        begin = nanoseconds()
        layer = layers[index]
        other = find_tile(state.waits, FREE)
        count = state.counts[tile]
        live = run_layer(
            layer, state.tiles[tile].ctypes.data, state.tiles[other].ctypes.data, count
        )
        state.executed[index] += count_bits(running) * layer.edges
        state.ids[other] = state.ids[tile]
        state.shares[other] = state.shares[tile]
        state.counts[other] = count
        state.waits[tile] = FREE
        before, tile, index = running, other, index + 1
        state.waits[tile] = index
        if layer.droppable:
            running &= live
            if running != before:
                samples = count_samples(state, tile, running)
        state.live[index - 1] += samples
        if look <= index <= state.look_until and count_bits(running) > 1:
            gap = min(2 * gap, MAX_GAP)
            if worth_merging(state, index):
                left = merge_samples(state, tile, running, layer.n_out)
                state.looks[index, 1] += 1
                if left != running:
                    state.looks[index, 2] += 1
                    running, gap = left, 1
            look = index + gap
        if running != ALL >> np.uint64(64 - count):
            after = compact(state, tile, running, layer.n_out, len(layers))
            if after >= 0 and after != tile:
                running = ALL >> np.uint64(64 - state.counts[after])
                samples = count_samples(state, after, running)
            tile = after
        state.nanos[index - 1] += nanoseconds() - begin
        if tile < 0:
            break
    return tile


@jit(_i64(_state, _i64, _i64))
def claim(state, first, last):
    """Take a free tile for samples `first` to `last`, to start at a segment's first layer."""
    tile = find_tile(state.waits, FREE)
    state.waits[tile] = 0
    state.counts[tile] = last - first
    for sample in range(last - first):
        state.ids[tile, sample] = first + sample
        state.shares[tile, sample] = 1
    return tile


@jit(types.void(_bytes, _i64, _i64, _row, _scratch))
def load_packed(bits, first, last, tile, scratch):
    """Fill a tile with samples `first` to `last` of packed 0/1 features.

    The tile has room for whole bytes of neurons; `scratch` is `TILE` bytes of zeros.
    """
    for byte in range(bits.shape[1]):
        for sample in range(last - first):
            scratch[sample] = bits[first + sample, byte]
        spread_bits(tile.ctypes.data, byte * 8, scratch.ctypes.data)


def _load_dense(features, first, last, tile):
    """Fill a tile with samples `first` to `last` of a dense matrix (samples, neurons).

    A cache line of a sample at a time: the samples may lie so that a column falls into one set.
    """
    neurons = features.shape[1]
    for begin in range(0, neurons, LINE):
        for sample in range(last - first):
            for neuron in range(begin, min(begin + LINE, neurons)):
                tile[neuron * TILE + sample] = features[first + sample, neuron]
        for neuron in range(begin, min(begin + LINE, neurons)):
            for sample in range(last - first, TILE):
                tile[neuron * TILE + sample] = 0


def _load_sparse(indptr, indices, data, neurons, first, last, tile):
    """Fill a tile with samples `first` to `last` of a CSR matrix (samples, neurons)."""
    tile[: neurons * TILE] = 0
    for sample in range(last - first):
        for entry in range(indptr[first + sample], indptr[first + sample + 1]):
            tile[indices[entry] * TILE + sample] = data[entry]


load_dense = jit(*[types.void(kind, _i64, _i64, _row) for kind in _DENSE])(_load_dense)
load_sparse = jit(*[types.void(*kind, _i64, _i64, _i64, _row) for kind in _SPARSE])(_load_sparse)

_span = types.UniTuple(_i64, 2)


@jit(_span(_bytes, _i64, _i64, _i64, _layers, _state))
def run_packed(features, first, last, size, layers, state):
    """Take samples `first` to `last` through all layers, `size` at a time.

    Returns
    -------
    first, tile : int
        As soon as a tile has gone through: the first sample not yet taken, and the tile; at the
        end `last` and -1.
    """
    for begin in range(first, last, size):
        end = min(begin + size, last)
        tile = claim(state, begin, end)
        load_packed(features, begin, end, state.tiles[tile], state.scratch)
        tile = advance(layers, tile, state)
        if tile >= 0:
            return end, tile
    return last, -1


@jit(*[_span(kind, _i64, _i64, _i64, _layers, _state) for kind in _DENSE])
def run_dense(features, first, last, size, layers, state):
    """As `run_packed`, for a dense matrix."""
    for begin in range(first, last, size):
        end = min(begin + size, last)
        tile = claim(state, begin, end)
        load_dense(features, begin, end, state.tiles[tile])
        tile = advance(layers, tile, state)
        if tile >= 0:
            return end, tile
    return last, -1


@jit(*[_span(types.Tuple(kind), _i64, _i64, _i64, _layers, _state) for kind in _SPARSE])
def run_sparse(features, first, last, size, layers, state):
    """As `run_packed`, for a CSR matrix given as (indptr, indices, data, neurons)."""
    indptr, indices, data = features
    for begin in range(first, last, size):
        end = min(begin + size, last)
        tile = claim(state, begin, end)
        load_sparse(indptr, indices, data, layers[0].n_in, begin, end, state.tiles[tile])
        tile = advance(layers, tile, state)
        if tile >= 0:
            return end, tile
    return last, -1


@jit(types.void(_row, types.float32[:, ::1]))
def store_rows(tile, out):
    """Copy the samples of a tile to rows, shape (samples, neurons)."""
    neurons = out.shape[1]
    for begin in range(0, neurons, LINE):
        for sample in range(out.shape[0]):
            for neuron in range(begin, min(begin + LINE, neurons)):
                out[sample, neuron] = tile[neuron * TILE + sample]
