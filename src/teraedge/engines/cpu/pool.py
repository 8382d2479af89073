"""A thread's memory: a small pool of tiles, its counters, and the way samples enter and leave."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.engines.cpu import kernels
from teraedge.engines.cpu.simd import TILE
from teraedge.features import Features, PackedFeatures

TILES = 18
"""Tiles a thread: one that runs, one that it is written to, and 16 that may be parked."""

Tile = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Samples out of the pool: their ids, and their values."""


class Pool:
    """Tiles for layers of up to `width` neurons, and the trace of what this thread ran.

    Everything is allocated here; pages that no tile ever touches cost nothing.
    """

    def __init__(self, width: int, layers: int) -> None:
        row = -(-width // 8) * 8 * TILE  # packed features fill eight neurons at a time
        self._memory = np.empty(TILES * row + 16, np.float32)
        offset = -self._memory.ctypes.data % 64 // 4  # rows start at cache lines
        self.tiles = self._memory[offset : offset + TILES * row].reshape(TILES, row)
        self.ids = np.empty((TILES, TILE), np.int64)
        self.counts = np.zeros(TILES, np.int64)
        self.waits = np.full(TILES, kernels.FREE, np.int64)
        self.scratch = np.zeros(TILE, np.uint8)
        self.live = np.zeros(layers, np.int64)
        self.executed = np.zeros(layers, np.int64)
        self.nanos = np.zeros(layers, np.int64)

    def reset(self) -> None:
        """Forget a previous run, also one that failed half way."""
        self.waits[:] = kernels.FREE
        for counter in (self.live, self.executed, self.nanos):
            counter[:] = 0

    def claim(self, ids: NDArray[np.int64]) -> int:
        """Take a free tile for samples `ids`, to start at a segment's first layer."""
        tile = int(kernels.find_tile(self.waits, kernels.FREE))
        self.waits[tile] = 0
        self.counts[tile] = len(ids)
        self.ids[tile, : len(ids)] = ids
        return tile

    def copy_tile(self, tile: int, neurons: int) -> Tile:
        """Return the samples of a tile as they are: ids, and rows of `TILE` samples a neuron."""
        ids = self.ids[tile, : self.counts[tile]].copy()
        return ids, self.tiles[tile, : neurons * TILE].copy()

    def copy_rows(self, tile: int, neurons: int) -> Tile:
        """Return the samples of a tile as ids and rows, shape (samples, neurons)."""
        ids = self.ids[tile, : self.counts[tile]].copy()
        rows = np.empty((len(ids), neurons), np.float32)
        kernels.store_rows(self.tiles[tile], rows)
        return ids, rows


Fill = Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.uint8]], None]


def filler(features: Features) -> Fill:
    """Return the function that fills a tile from these features: (ids, tile, scratch)."""
    if isinstance(features, PackedFeatures):
        bits = np.ascontiguousarray(features.bits)
        return lambda ids, rows, scratch: kernels.load_packed(bits, ids, rows, scratch)
    if isinstance(features, sp.csr_array):
        data = features.data.astype(np.float32, copy=False)
        parts = features.indptr, features.indices, data
        return lambda ids, rows, _: kernels.load_sparse(*parts, ids, rows, features.shape[1])
    dense: NDArray[Any] = np.asarray(features)
    if dense.dtype == np.bool_:
        dense = dense.view(np.uint8)
    elif dense.dtype not in (np.uint8, np.float32, np.float64):
        dense = dense.astype(np.float32)
    return lambda ids, rows, _: kernels.load_dense(dense, ids, rows)
