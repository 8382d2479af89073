"""The compiled functions at the ends of a run: samples into tiles, and rows out of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numba import types
from numpy.typing import NDArray

from teraedge.engines.cpu.first import chunks_type
from teraedge.engines.cpu.kernels import advance, find_tile, next_parked
from teraedge.engines.cpu.simd import LANES, TILE, lane_masks, spread_bits, transpose_lanes
from teraedge.engines.cpu.state import FREE, layers_type, row_type, scratch_type, state_type
from teraedge.features import Features, PackedFeatures
from teraedge.jit import inlined, jit

FLOAT = 4
"""Bytes of a value."""
LINE = 16
"""Bytes of a sample's packed features that are read together: 128 neurons."""
RUN = 128
"""float32 values of a sample that are read or written together: prefetching starts after a few
lines, and a line at a time of many samples gives it nothing to follow."""
PACKED, DENSE, SPARSE, PARKED = range(4)
UNTIL_NONE = 2**62
"""So many parked tiles: one that goes on may be parked again and again."""


class Source(NamedTuple):
    """Where tiles are filled from, in one type for all, so that kernels are compiled once.

    Attributes
    ----------
    kind : int
        `PACKED`, `DENSE` or `SPARSE` features; `PARKED` for tiles that wait in the pool already.
    begin : int
        The sample in the first row of dense features; zero for others.
    bits : ndarray of uint8, shape (samples, bytes)
        Of packed features; else empty, as the following are where they are of another kind.
    dense : ndarray of float32, shape (samples, neurons)
    indptr, indices, data : ndarray of int64, int32 and float32
        A CSR matrix (samples, neurons).
    """

    kind: int
    begin: int
    bits: Any
    dense: Any
    indptr: Any
    indices: Any
    data: Any


def _frozen(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return a read-only view, which is what kernels take, of the array or of its copy as dtype."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


_NOTHING = Source(
    PARKED,
    0,
    _frozen(np.empty((0, 0)), np.uint8),
    _frozen(np.empty((0, 0)), np.float32),
    _frozen(np.empty(0), np.int64),
    _frozen(np.empty(0), np.int32),
    _frozen(np.empty(0), np.float32),
)


def parked() -> Source:
    """Return the pool's parked tiles as a source."""
    return _NOTHING


def sources(features: Features) -> Callable[[int, int], Source]:
    """Return a function of first and last that gives these samples, or more, as kernels read them.

    Only dense features of another type, or whose rows are not in order, are copied, and of them
    only these samples at a time.
    """
    if isinstance(features, PackedFeatures):
        whole = _NOTHING._replace(kind=PACKED, bits=_frozen(features.bits, np.uint8))
    elif isinstance(features, sp.csr_array):
        whole = _NOTHING._replace(
            kind=SPARSE,
            indptr=_frozen(features.indptr, np.int64),
            indices=_frozen(features.indices, np.int32),
            data=_frozen(features.data, np.float32),
        )
    else:
        dense = np.asarray(features)
        return lambda first, last: _NOTHING._replace(
            kind=DENSE, begin=first, dense=_frozen(dense[first:last], np.float32)
        )
    return lambda first, last: whole


def _readonly(dtype: Any, axes: int) -> Any:
    return types.Array(dtype, axes, "C", readonly=True)


_i64 = types.int64
_bits, _dense = _readonly(types.uint8, 2), _readonly(types.float32, 2)
_indptr, _indices = _readonly(_i64, 1), _readonly(types.int32, 1)
_data = _readonly(types.float32, 1)
source_type = types.NamedTuple([_i64, _i64, _bits, _dense, _indptr, _indices, _data], Source)


@jit(_i64(state_type, _i64, _i64))
def claim(state, first, last):
    """Take a free tile for samples `first` to `last`, to start at a segment's first layer."""
    tile = find_tile(state.waits, FREE)
    state.waits[tile] = 0
    state.counts[tile] = last - first
    for sample in range(last - first):
        state.ids[tile, sample] = first + sample
        state.shares[tile, sample] = 1
    return tile


@inlined
def gather_bytes(bits, first, last, begin, scratch):
    """Copy `LINE` bytes from `begin` of each sample to scratch, a row of `TILE` a byte.

    Part of a cache line of each sample at a time: a column of them may fall into one set.
    """
    for sample in range(last - first):
        for byte in range(begin, min(begin + LINE, bits.shape[1])):
            scratch[(byte - begin) * TILE + sample] = bits[first + sample, byte]


@jit(types.void(_bits, _i64, _i64, row_type, scratch_type))
def load_packed(bits, first, last, tile, scratch):
    """Fill a tile with samples `first` to `last` of packed 0/1 features.

    The tile has room for whole bytes of neurons; `scratch` is `LINE` x `TILE` bytes.
    """
    for begin in range(0, bits.shape[1], LINE):
        gather_bytes(bits, first, last, begin, scratch)
        for byte in range(begin, min(begin + LINE, bits.shape[1])):
            spread_bits(tile.ctypes.data, byte * 8, scratch.ctypes.data + (byte - begin) * TILE)


@jit(types.void(_bits, _i64, _i64, types.uint64[::1], scratch_type))
def load_masks(bits, first, last, masks, scratch):
    """As `load_packed`, but into a mask of samples a neuron."""
    for begin in range(0, bits.shape[1], LINE):
        gather_bytes(bits, first, last, begin, scratch)
        for byte in range(begin, min(begin + LINE, bits.shape[1])):
            row = scratch.ctypes.data + (byte - begin) * TILE
            lane_masks(row, masks.ctypes.data + byte * 8 * 8)


@jit(types.void(_dense, _i64, _i64, row_type))
def load_dense(features, first, last, tile):
    """Fill a tile with samples `first` to `last` of a dense matrix (samples, neurons).

    `RUN` values of `LANES` samples at a time: a column of samples may fall into one set of a cache.
    """
    neurons, count = features.shape[1], last - first
    whole_neurons, whole_samples = neurons // LANES * LANES, count // LANES * LANES
    origin = features.ctypes.data + first * neurons * FLOAT
    for run in range(0, whole_neurons, RUN):
        for sample in range(0, whole_samples, LANES):
            for neuron in range(run, min(run + RUN, whole_neurons), LANES):
                transpose_lanes(
                    origin + (sample * neurons + neuron) * FLOAT, neurons,
                    tile.ctypes.data + (neuron * TILE + sample) * FLOAT, TILE,
                )  # fmt: skip
    for neuron in range(neurons):
        begin = whole_samples if neuron < whole_neurons else 0
        for sample in range(begin, count):
            tile[neuron * TILE + sample] = features[first + sample, neuron]
        for sample in range(count, min(-(-count // LANES) * LANES, TILE)):
            tile[neuron * TILE + sample] = 0


@jit(types.void(_indptr, _indices, _data, _i64, _i64, _i64, row_type))
def load_sparse(indptr, indices, data, neurons, first, last, tile):
    """Fill a tile with samples `first` to `last` of a CSR matrix (samples, neurons)."""
    tile[: neurons * TILE] = 0
    for sample in range(last - first):
        for entry in range(indptr[first + sample], indptr[first + sample + 1]):
            tile[indices[entry] * TILE + sample] = data[entry]


@jit(types.void(source_type, _i64, _i64, _i64, row_type, scratch_type))
def load(source, neurons, first, last, tile, scratch):
    """Fill a tile with samples `first` to `last` of features."""
    if source.kind == PACKED:
        load_packed(source.bits, first, last, tile, scratch)
    elif source.kind == DENSE:
        load_dense(source.dense, first - source.begin, last - source.begin, tile)
    else:
        load_sparse(source.indptr, source.indices, source.data, neurons, first, last, tile)


@jit(types.UniTuple(_i64, 2)(source_type, _i64, _i64, _i64, layers_type, chunks_type, state_type))
def run(source, first, last, size, layers, chunks, state):
    """Take samples `first` to `last` of the source through all layers, `size` at a time.

    Where the source is `PARKED`, so many tiles of the pool go on instead, from the furthest behind.

    Returns
    -------
    first, tile : int
        As soon as a tile has gone through: the first sample not yet taken, and the tile; at the
        end `last` and -1.
    """
    masked = source.kind == PACKED and len(chunks.inputs) > 0
    while first < last:
        if source.kind == PARKED:
            tile, end = next_parked(state.waits, state.counts), first + 1
            if tile < 0:
                break
        else:
            end = min(first + size, last)
            tile = claim(state, first, end)
            if masked:
                load_masks(source.bits, first, end, state.masks, state.scratch)
            else:
                load(source, layers[0].n_in, first, end, state.tiles[tile], state.scratch)
        first = end
        tile = advance(layers, chunks, masked, tile, state)
        if tile >= 0:
            return first, tile
    return last, -1


@jit(types.void(row_type, types.float32[:, ::1]))
def store_rows(tile, out):
    """Copy the samples of a tile to rows, shape (samples, neurons)."""
    count, neurons = out.shape
    whole_neurons, whole_samples = neurons // LANES * LANES, count // LANES * LANES
    for run in range(0, whole_neurons, RUN):
        for sample in range(0, whole_samples, LANES):
            for neuron in range(run, min(run + RUN, whole_neurons), LANES):
                transpose_lanes(
                    tile.ctypes.data + (neuron * TILE + sample) * FLOAT, TILE,
                    out.ctypes.data + (sample * neurons + neuron) * FLOAT, neurons,
                )  # fmt: skip
    for sample in range(count):
        for neuron in range(0 if sample >= whole_samples else whole_neurons, neurons):
            out[sample, neuron] = tile[neuron * TILE + sample]
