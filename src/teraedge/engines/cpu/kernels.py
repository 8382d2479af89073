"""The compiled functions of a run: tiles in, through the layers, and out.

A *tile* is the state of up to `TILE` samples: float32, one row a neuron, samples side by side. A
thread owns a small pool of tiles and takes one at a time through all layers, depth first, so that
it stays in that core's cache. A tile whose samples have mostly died is parked before its next
layer, and goes on once samples parked there by other tiles have filled it up: every sample is
moved a few times in a whole run, and layers always run on tiles that are at least half full.
"""

import numpy as np
from numba import types

from teraedge.engines.cpu.curves import curves
from teraedge.engines.cpu.panels import panels
from teraedge.engines.cpu.simd import (
    HEIGHT,
    LANES,
    TILE,
    count_bits,
    nanoseconds,
    pack_lanes,
    spread_mask,
    vector_counts,
)
from teraedge.engines.cpu.state import (
    FREE,
    HALF,
    IN_USE,
    row_type,
    state_type,
)
from teraedge.jit import inlined, jit

ONE, ALL = np.uint64(1), np.uint64(2**64 - 1)
HASH = np.uint32(0x9E3779B1)  # 2**32 / golden ratio
MAX_GAP = 64
"""Layers between two looks for equal samples, at most."""


FLOAT, LONG = 4, 8
"""Bytes of a value (and of an output's number), and of where a panel starts."""
TALL, SINGLE = vector_counts(HEIGHT), vector_counts(1)

_i64, _u64, _ints = types.int64, types.uint64, types.int64[::1]


@inlined
def split_registers(registers, counts):
    """Return how many registers to take at once, one of `counts`, and how many times."""
    vectors = 1
    for count in counts:
        if count <= registers:
            vectors = count
    return vectors, registers // vectors


@inlined
def run_panels(layer, x, y, samples, tall_indices, tall_span, single_indices, single_span):
    """Run some panels of a layer over the first `samples` of the tile at address x into that at y.

    Returns the samples with a nonzero output, as bits.
    """
    live = np.uint64(0)
    registers = (samples + LANES - 1) // LANES
    tall, single = layer.tall, layer.single
    first, begin = tall_span[0], 0
    while begin < registers and first < tall_span[1]:
        vectors, blocks = split_registers(registers - begin, TALL)
        at = begin * LANES * FLOAT
        some = panels(
            HEIGHT, vectors, layer.equal, layer.index_bytes, x + at, y + at, blocks,
            tall_span[1] - first, tall.starts + first * LONG, tall_indices, tall.weights,
            tall.outputs + first * HEIGHT * FLOAT, layer.bias, layer.value, layer.lower,
            layer.upper,
        )  # fmt: skip
        live |= some << np.uint64(begin * LANES)
        begin += vectors * blocks
    first, begin = single_span[0], 0
    while begin < registers and first < single_span[1]:
        vectors, blocks = split_registers(registers - begin, SINGLE)
        at = begin * LANES * FLOAT
        some = panels(
            1, vectors, layer.equal, layer.index_bytes, x + at, y + at, blocks,
            single_span[1] - first, single.starts + first * LONG, single_indices, single.weights,
            single.outputs + first * FLOAT, layer.bias, layer.value, layer.lower, layer.upper,
        )  # fmt: skip
        live |= some << np.uint64(begin * LANES)
        begin += vectors * blocks
    padding = np.uint64(64 - samples)
    return live << padding >> padding


@inlined
def run_layer(layer, chunks, in_chunks, tile, other, state):
    """Run a layer from one tile into another; returns the samples with a nonzero output, as bits.

    Where it is the first layer `in_chunks`, the inputs of each are spread from masks beforehand.
    """
    x, y = state.tiles[tile].ctypes.data, state.tiles[other].ctypes.data
    tall_indices, single_indices = layer.tall.indices, layer.single.indices
    tall_span, single_span = (0, layer.tall.count), (0, layer.single.count)
    live, chunk, count = np.uint64(0), 0, 1
    if in_chunks:
        count = len(chunks.starts) - 1
        tall_indices = chunks.tall_indices.ctypes.data
        single_indices = chunks.single_indices.ctypes.data
    while chunk < count:
        if in_chunks:
            tall_span = chunks.tall[chunk], chunks.tall[chunk + 1]
            single_span = chunks.single[chunk], chunks.single[chunk + 1]
            begin = chunks.starts[chunk]
            for row in range(chunks.starts[chunk + 1] - begin):
                spread_mask(state.masks[chunks.inputs[begin + row]], x + row * TILE * FLOAT)
        live |= run_panels(
            layer, x, y, state.counts[tile], tall_indices, tall_span, single_indices, single_span
        )
        chunk += 1
    if layer.curve:
        count = state.counts[tile]
        padding = np.uint64(64 - count)
        live = curves(layer.curve, y, layer.n_out, (count + LANES - 1) // LANES)
        live = live << padding >> padding
    return live


@jit(_i64(_ints, _i64))
def find_tile(layers_of_tiles, layer):
    """Return the first tile waiting for a layer (or `FREE`), -1 where there is none."""
    for tile in range(len(layers_of_tiles)):
        if layers_of_tiles[tile] == layer:
            return tile
    return -1


@jit(_i64(_ints, _ints))
def next_parked(layers_of_tiles, counts):
    """Return the parked tile that is furthest behind, the fullest of those, -1 without any."""
    best = -1
    for tile in range(len(layers_of_tiles)):
        layer = layers_of_tiles[tile]
        if layer != FREE and (
            best < 0
            or layer < layers_of_tiles[best]
            or (layer == layers_of_tiles[best] and counts[tile] > counts[best])
        ):
            best = tile
    return best


@jit(types.void(state_type, _i64, _u64, _i64, _i64))
def move_samples(state, source, bits, target, neurons):
    """Append the samples set in `bits` of one tile to another."""
    lanes, begins, end = state.lanes, state.begins, state.counts[target]
    for first in range(0, TILE, LANES):
        begins[first // LANES], place = end, first
        for sample in range(first, min(first + LANES, state.counts[source])):
            if bits >> np.uint64(sample) & ONE:
                lanes[place] = sample - first
                state.ids[target, end] = state.ids[source, sample]
                state.shares[target, end] = state.shares[source, sample]
                place, end = place + 1, end + 1
    state.counts[target] = end
    pack_lanes(
        state.tiles[source].ctypes.data, state.tiles[target].ctypes.data, neurons,
        lanes.ctypes.data, begins.ctypes.data,
    )  # fmt: skip


@jit(_i64(state_type, _i64, _u64, _i64, _i64))
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


@jit(_i64(state_type, _i64, _u64))
def count_samples(state, tile, bits):
    """Return how many samples the rows in `bits` stand for."""
    total = 0
    for sample in range(state.counts[tile]):
        if bits >> np.uint64(sample) & ONE:
            total += state.shares[tile, sample]
    return total


@jit(types.boolean(row_type, _i64, _i64, _i64))
def equal_samples(rows, neurons, one, other):
    """Tell whether two samples of a tile are equal bit for bit (0.0 and -0.0 count as equal)."""
    for begin in range(0, neurons * TILE, TILE):  # noqa: SIM110 (compiled)
        if rows[begin + one] != rows[begin + other]:
            return False
    return True


@jit(_u64(state_type, _i64, _u64, _i64))
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


@jit(types.boolean(state_type, _i64))
def worth_merging(state, index):
    """Estimate whether looking for equal samples before layer `index` pays.

    The first tiles that come by are looked at; after those every 16th, or all while a quarter of
    the looks find something.
    """
    visits, looks, finds = state.looks[index]
    state.looks[index, 0] += 1
    return looks < 2 or finds * 4 >= looks or visits % 16 == 0


@inlined
def advance(layers, chunks, masked, tile, state):
    """Take a tile from the layer it waits for through all the others.

    Parameters
    ----------
    layers : ndarray of LAYER
    chunks : first.Chunks
        Of the first layer.
    masked : bool
        Whether the tile's samples lie as masks, for a first layer in chunks.
    tile : int
    state : State

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
        live = run_layer(layer, chunks, masked and index == 0, tile, other, state)
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
