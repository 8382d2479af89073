"""A thread's memory: a small pool of tiles, its counters, and the way samples enter and leave."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cpu import feeding, kernels
from teraedge.engines.cpu.simd import TILE, VECTORS
from teraedge.engines.cpu.state import FREE, HALF, State

TILES = 18
"""Tiles a thread: one that runs, one that it is written to, and 16 that may be parked."""

MAX_BLOCK = 2**24
"""Bytes of the largest block that rows are taken from: GNU's allocator hands freed blocks of up to
32 MB out again, whose pages are there already."""


class Samples(NamedTuple):
    """Samples out of the pool.

    Attributes
    ----------
    ids, shares : ndarray of int64, shape (samples,)
        Each sample, and how many equal ones it stands for.
    values : ndarray of float32
        (samples, neurons) at the end of a network, (neurons * TILE,) between two segments.
    """

    ids: NDArray[np.int64]
    shares: NDArray[np.int64]
    values: NDArray[np.float32]


class Pool:
    """Tiles for layers of up to `width` neurons, and the trace of what this thread ran.

    Everything is allocated here; pages that no tile ever touches cost nothing.
    """

    def __init__(self, width: int, layers: int) -> None:
        row = -(-width // 8) * 8 * TILE  # packed features fill eight neurons at a time
        self._memory = np.zeros(TILES * row + 32, np.float32)
        offset = -self._memory.ctypes.data % 64 // 4  # rows start at cache lines
        self.tiles = self._memory[offset : offset + TILES * row].reshape(TILES, row)
        self.ids = np.empty((TILES, TILE), np.int64)
        self.shares = np.empty((TILES, TILE), np.int64)
        self.counts = np.zeros(TILES, np.int64)
        self.waits = np.full(TILES, FREE, np.int64)
        self.scratch = np.zeros(feeding.LINE * TILE, np.uint8)
        self.masks = np.empty(-(-width // 8) * 8, np.uint64)
        self.hashes = np.zeros(TILE, np.uint32)
        self.lanes = np.zeros(TILE, np.int32)
        self.begins = np.zeros(VECTORS, np.int64)
        self.live = np.zeros(layers, np.int64)
        self.executed = np.zeros(layers, np.int64)
        self.nanos = np.zeros(layers, np.int64)
        self.looks = np.zeros((layers + 1, 3), np.int64)

    def reset(self, rows: int) -> None:
        """Forget a previous run, also one that failed half way; expect so many rows at the end."""
        self.waits[:] = FREE
        self._rows, self._next_rows = np.empty((0, 0), np.float32), rows
        for counter in (self.live, self.executed, self.nanos, self.looks):
            counter[:] = 0

    def state(self, span: slice, same_as: NDArray[np.int64], look_until: int) -> State:
        """Return what kernels work on in a segment of the layers `span`."""
        return State(
            *(self.tiles, self.ids, self.shares, self.counts, self.waits),
            *(self.live[span], self.executed[span], self.nanos[span]),
            self.looks[span.start : span.stop + 1],
            *(self.scratch, self.masks, self.hashes, self.lanes, self.begins, same_as, look_until),
        )

    def put(self, samples: Samples) -> bool:
        """Add samples from another segment to a tile that waits for the first layer.

        Returns whether it is to go on: it waits for more until it is more than half full, but not
        where that would leave fewer than the two free tiles that the next samples need.
        """
        count = len(samples.ids)
        tile = int(kernels.find_tile(self.waits, 0)) if count <= HALF else -1
        if tile < 0:
            tile = int(kernels.find_tile(self.waits, FREE))
            self.waits[tile], self.counts[tile] = 0, 0
        lanes = slice(self.counts[tile], self.counts[tile] + count)
        self.ids[tile, lanes] = samples.ids
        self.shares[tile, lanes] = samples.shares
        rows = samples.values.reshape(-1, TILE)
        self.tiles[tile].reshape(-1, TILE)[: len(rows), lanes] = rows[:, :count]
        self.counts[tile] += count
        free = np.count_nonzero(self.waits == FREE)
        return bool(self.counts[tile] > HALF or free < 2)

    def take(self, tile: int, neurons: int, rows: bool) -> Samples:
        """Free a tile and return its samples, as `rows` or as they lie in the tile."""
        count = self.counts[tile]
        if rows:
            values = self._take_rows(count, neurons)
            feeding.store_rows(self.tiles[tile], values)
        else:
            values = self.tiles[tile, : neurons * TILE].copy()
        self.waits[tile] = FREE
        return Samples(self.ids[tile, :count].copy(), self.shares[tile, :count].copy(), values)

    def _take_rows(self, count: int, neurons: int) -> NDArray[np.float32]:
        """Return room for the rows of some samples, from a block for those of many.

        A system that gives memory in small pages takes as long for each as two layers for what is
        in it, so blocks grow: NumPy asks for large pages from 4 MB on.
        """
        if len(self._rows) < count:
            self._rows = np.empty((max(self._next_rows, count), neurons), np.float32)
            self._next_rows = min(2 * len(self._rows), max(TILE, MAX_BLOCK // (4 * neurons)))
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows
