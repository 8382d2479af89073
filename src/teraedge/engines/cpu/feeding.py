"""The compiled functions at the ends of a run: samples into tiles, and rows out of them."""

from numba import types

from teraedge.engines.cpu.kernels import advance, find_tile
from teraedge.engines.cpu.simd import TILE, spread_bits
from teraedge.engines.cpu.state import FREE, layers_type, row_type, scratch_type, state_type
from teraedge.jit import jit

_i64 = types.int64
_bytes = types.Array(types.uint8, 2, "C", readonly=True)
LINE = 16
"""float32 values of a cache line."""


def _vector(dtype):
    return types.Array(dtype, 1, "C", readonly=True)


_DENSE = [
    types.Array(t, 2, "A", readonly=True) for t in (types.uint8, types.float32, types.float64)
]
_SPARSE = [
    (_vector(index), _vector(index), _vector(types.float32)) for index in (types.int32, types.int64)
]


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


@jit(types.void(_bytes, _i64, _i64, row_type, scratch_type))
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


load_dense = jit(*[types.void(kind, _i64, _i64, row_type) for kind in _DENSE])(_load_dense)
load_sparse = jit(*[types.void(*kind, _i64, _i64, _i64, row_type) for kind in _SPARSE])(
    _load_sparse
)

_span = types.UniTuple(_i64, 2)


@jit(_span(_bytes, _i64, _i64, _i64, layers_type, state_type))
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


@jit(*[_span(kind, _i64, _i64, _i64, layers_type, state_type) for kind in _DENSE])
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


@jit(*[_span(types.Tuple(kind), _i64, _i64, _i64, layers_type, state_type) for kind in _SPARSE])
def run_sparse(features, first, last, size, layers, state):
    """As `run_packed`, for a CSR matrix given as (indptr, indices, data)."""
    indptr, indices, data = features
    for begin in range(first, last, size):
        end = min(begin + size, last)
        tile = claim(state, begin, end)
        load_sparse(indptr, indices, data, layers[0].n_in, begin, end, state.tiles[tile])
        tile = advance(layers, tile, state)
        if tile >= 0:
            return end, tile
    return last, -1


@jit(types.void(row_type, types.float32[:, ::1]))
def store_rows(tile, out):
    """Copy the samples of a tile to rows, shape (samples, neurons)."""
    neurons = out.shape[1]
    for begin in range(0, neurons, LINE):
        for sample in range(out.shape[0]):
            for neuron in range(begin, min(begin + LINE, neurons)):
                out[sample, neuron] = tile[neuron * TILE + sample]
