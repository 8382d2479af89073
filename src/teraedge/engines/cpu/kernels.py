"""The compiled functions of a run: tiles in, through the layers, and out.

A *tile* is the state of up to `TILE` samples: float32, one row a neuron, samples side by side. A
thread owns a small pool of tiles and takes one at a time through all layers, depth first, so that
it stays in that core's cache. A tile whose samples have mostly died is parked before its next
layer, and goes on once samples parked there by other tiles have filled it up: every sample is
moved a few times in a whole run, and layers always run on tiles that are at least half full.
"""

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

_layer = from_dtype(LAYER)
_layers = types.Array(_layer, 1, "C", readonly=True)
_i64, _u64 = types.int64, types.uint64
_ints, _int_rows = types.int64[::1], types.int64[:, ::1]
_tiles, _row = types.float32[:, ::1], types.float32[::1]
_bytes = types.Array(types.uint8, 2, "C", readonly=True)
_scratch = types.uint8[::1]


def _dense(dtype):
    return types.Array(dtype, 2, "A", readonly=True)


def _vector(dtype):
    return types.Array(dtype, 1, "C", readonly=True)


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


@jit(types.void(_tiles, _int_rows, _ints, _i64, _u64, _i64, _i64))
def move_samples(tiles, ids, counts, source, bits, target, neurons):
    """Append the samples set in `bits` of one tile to another."""
    begin = counts[target]
    pack_lanes(
        tiles[source].ctypes.data, bits, tiles[target].ctypes.data + begin * tiles.itemsize, neurons
    )
    for sample in range(counts[source]):
        if bits >> np.uint64(sample) & np.uint64(1):
            ids[target, begin] = ids[source, sample]
            begin += 1
    counts[target] = begin


@jit(types.UniTuple(_i64, 2)(_tiles, _int_rows, _ints, _ints, _i64, _u64, _i64, types.boolean))
def drop_dead(tiles, ids, counts, waits, tile, bits, neurons, last):
    """Drop the samples of a tile that are not in `bits`, where that saves work.

    After the `last` layer of the segment it always does: what leaves a segment is live.

    Returns
    -------
    tile : int
        The tile to go on with, which may be another; -1 where nothing is left to go on with.
    alive : int
        Its live samples. Dead ones that would not free a register are left in; they stay zero.
    """
    count, alive, index = counts[tile], count_bits(bits), waits[tile]
    if alive == 0:
        waits[tile] = FREE
        return -1, 0
    frees_register = (alive - 1) // LANES < (count - 1) // LANES
    if alive == count or not (last or alive <= HALF or frees_register):
        return tile, alive
    waits[tile] = IN_USE
    target = -1 if last or alive > HALF else find_tile(waits, index)
    if target < 0:
        target = find_tile(waits, FREE)
        counts[target] = 0
    move_samples(tiles, ids, counts, tile, bits, target, neurons)
    waits[tile], waits[target] = FREE, index
    # Park it if it is not yet half full and the next tile will still have two to run in.
    free = 0
    for wait in waits:
        free += wait == FREE
    if counts[target] <= HALF and free >= 2 and not last:
        return -1, 0
    return target, counts[target]


@jit(_i64(_layers, _i64, _tiles, _int_rows, _ints, _ints, _ints, _ints, _ints))
def advance(layers, tile, tiles, ids, counts, waits, live, executed, nanos):
    """Take a tile from the layer it waits for through all the others.

    Parameters
    ----------
    layers : array of LAYER, shape (layers,)
    tile : int
    tiles, ids, counts, waits : arrays, first axis the tiles of the pool
        Rows of `TILE` float32; sample ids; number of samples; layer waited for, or `FREE`.
    live, executed, nanos : arrays of int64, shape (layers,)
        Samples live after each layer, multiply-adds and time are added to these.

    Returns
    -------
    int
        The tile with the last rows, or -1 where all samples died or were parked.
    """
    index = waits[tile]
    alive = counts[tile]  # what waits was packed when it was moved there
    while index < len(layers):
        begin = nanoseconds()
        layer = layers[index]
        other = find_tile(waits, FREE)
        bits = run_layer(layer, tiles[tile].ctypes.data, tiles[other].ctypes.data, counts[tile])
        executed[index] += alive * layer.edges
        ids[other] = ids[tile]
        counts[other] = counts[tile]
        waits[tile] = FREE
        tile, index = other, index + 1
        waits[tile] = index
        if layer.droppable:
            alive = count_bits(bits)
            live[index - 1] += alive
            last = index == len(layers)
            tile, alive = drop_dead(tiles, ids, counts, waits, tile, bits, layer.n_out, last)
        else:
            live[index - 1] += alive
        nanos[index - 1] += nanoseconds() - begin
        if tile < 0:
            break
    return tile


@jit(types.void(_bytes, _ints, _row, _scratch))
def load_packed(bits, rows, tile, scratch):
    """Fill a tile with samples `rows` of packed 0/1 features.

    The tile has room for whole bytes of neurons; `scratch` is `TILE` bytes of zeros.
    """
    for byte in range(bits.shape[1]):
        for sample in range(len(rows)):
            scratch[sample] = bits[rows[sample], byte]
        spread_bits(tile.ctypes.data, byte * 8, scratch.ctypes.data)


@jit(
    *[
        types.void(_dense(dtype), _ints, _row)
        for dtype in (types.uint8, types.float32, types.float64)
    ]
)
def load_dense(features, rows, tile):
    """Fill a tile with samples `rows` of a dense matrix (samples, neurons).

    A cache line of a sample at a time: the samples may lie so that a column falls into one set.
    """
    neurons = features.shape[1]
    for begin in range(0, neurons, LINE):
        for sample in range(len(rows)):
            row = rows[sample]
            for neuron in range(begin, min(begin + LINE, neurons)):
                tile[neuron * TILE + sample] = features[row, neuron]
        for neuron in range(begin, min(begin + LINE, neurons)):
            for sample in range(len(rows), TILE):
                tile[neuron * TILE + sample] = 0


@jit(
    *[
        types.void(_vector(index), _vector(index), _vector(types.float32), _ints, _row, _i64)
        for index in (types.int32, types.int64)
    ]
)
def load_sparse(indptr, indices, data, rows, tile, neurons):
    """Fill a tile with samples `rows` of a CSR matrix (samples, neurons)."""
    tile[: neurons * TILE] = 0
    for sample in range(len(rows)):
        for entry in range(indptr[rows[sample]], indptr[rows[sample] + 1]):
            tile[indices[entry] * TILE + sample] = data[entry]


@jit(types.void(_row, types.float32[:, ::1]))
def store_rows(tile, out):
    """Copy the samples of a tile to rows, shape (samples, neurons)."""
    neurons = out.shape[1]
    for begin in range(0, neurons, LINE):
        for sample in range(out.shape[0]):
            for neuron in range(begin, min(begin + LINE, neurons)):
                out[sample, neuron] = tile[neuron * TILE + sample]
