"""A thread's memory: a small pool of tiles, its counters, and the way samples enter and leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.engines.cpu import feeding, kernels
from teraedge.engines.cpu.simd import TILE, VECTORS
from teraedge.engines.cpu.state import FREE, HALF, State
from teraedge.features import Features, PackedFeatures

TILES = 18
"""Tiles a thread: one that runs, one that it is written to, and 16 that may be parked."""


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
        self.scratch = np.zeros(TILE, np.uint8)
        self.hashes = np.zeros(TILE, np.uint32)
        self.lanes = np.zeros(TILE, np.int32)
        self.begins = np.zeros(VECTORS, np.int64)
        self.live = np.zeros(layers, np.int64)
        self.executed = np.zeros(layers, np.int64)
        self.nanos = np.zeros(layers, np.int64)
        self.looks = np.zeros((layers + 1, 3), np.int64)

    def reset(self) -> None:
        """Forget a previous run, also one that failed half way."""
        self.waits[:] = FREE
        for counter in (self.live, self.executed, self.nanos, self.looks):
            counter[:] = 0

    def state(self, span: slice, same_as: NDArray[np.int64], look_until: int) -> State:
        """Return what kernels work on in a segment of the layers `span`."""
        return State(
            *(self.tiles, self.ids, self.shares, self.counts, self.waits),
            *(self.live[span], self.executed[span], self.nanos[span]),
            self.looks[span.start : span.stop + 1],
            *(self.scratch, self.hashes, self.lanes, self.begins, same_as, look_until),
        )

    def put(self, samples: Samples) -> int:
        """Add samples from another segment to a tile that waits for the first layer.

        Returns the tile where it is more than half full, else -1: it waits for more. It must not
        wait where that would leave fewer than the two free tiles that the next samples need.
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
        return tile if self.counts[tile] > HALF or free < 2 else -1

    def take(self, tile: int, neurons: int, rows: bool) -> Samples:
        """Free a tile and return its samples, as `rows` or as they lie in the tile."""
        count = self.counts[tile]
        if rows:
            values = np.empty((count, neurons), np.float32)
            feeding.store_rows(self.tiles[tile], values)
        else:
            values = self.tiles[tile, : neurons * TILE].copy()
        self.waits[tile] = FREE
        return Samples(self.ids[tile, :count].copy(), self.shares[tile, :count].copy(), values)


Runner = Callable[[int, int, int, Any, State], tuple[int, int]]
"""Of `feeding.run_packed`, for features that are bound already."""


def runner(features: Features) -> Runner:
    """Return the kernel that takes samples of these features through a segment."""
    kernel: Any
    given: Any
    if isinstance(features, PackedFeatures):
        kernel, given = feeding.run_packed, np.ascontiguousarray(features.bits)
    elif isinstance(features, sp.csr_array):
        data = features.data.astype(np.float32, copy=False)
        kernel, given = feeding.run_sparse, (features.indptr, features.indices, data)
    else:
        kernel, given = feeding.run_dense, np.asarray(features)
        if given.dtype == np.bool_:
            given = given.view(np.uint8)
        elif given.dtype not in (np.uint8, np.float32, np.float64):
            given = given.astype(np.float32)

    def run(first: int, last: int, size: int, table: Any, state: State) -> tuple[int, int]:
        return kernel(given, first, last, size, table, state)  # type: ignore[no-any-return]

    return run
