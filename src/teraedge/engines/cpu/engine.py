"""The driver of the CPU kernels: threads, segments of layers, and the result."""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event, Lock
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cpu import kernels
from teraedge.engines.cpu.pool import Fill, Pool, Tile, filler
from teraedge.engines.cpu.program import Program
from teraedge.engines.cpu.simd import HEIGHT, LANES, TILE
from teraedge.engines.engine import Engine, Progress
from teraedge.errors import DeviceError
from teraedge.features import Features, as_features
from teraedge.network import Network
from teraedge.options import Options
from teraedge.plan.plan import Plan
from teraedge.result import LayerTrace, Result

Feed = Callable[[Pool], int]
"""Fills a free tile of the pool with samples that nobody has taken yet; returns the tile."""
Emit = Callable[[Pool, int], Tile]
"""Copies the samples of a tile out of the pool."""


class CpuEngine(Engine):
    """Runs a plan on CPU threads; made by `teraedge.compile`.

    Every thread has a pool of tiles and takes the next samples when it is done with some, so that
    threads only wait for each other at the end of a segment of layers. Runs of one engine that are
    started from several threads queue up.
    """

    device = "cpu"

    def __init__(self, network: Network, options: Options) -> None:
        start = perf_counter()
        self.options = options
        self._plan = Plan(network, options, HEIGHT)
        self.n_in, self.n_out, self.edges = self._plan.n_in, self._plan.n_out, self._plan.edges
        self._resident: Program | None = None
        if self._plan.resident:
            self._resident = self._program(0, self._plan.resident)
        self._threads = options.threads or usable_cores()
        self._executor = ThreadPoolExecutor(self._threads, "teraedge")
        self._pools: list[Pool] = []
        self._lock = Lock()
        self._closed = False
        self.compile_seconds = perf_counter() - start

    def run(self, features: Any, *, progress: Progress | None = None) -> Result:  # noqa: D102
        with self._lock:
            if self._closed:
                raise DeviceError("the engine is closed; compile the network again")
            start = perf_counter()
            checked = as_features(features, self.n_in)
            blocks, threads = self._run(checked, progress)
            return Result(
                (checked.shape[0], self.n_out),
                blocks,
                self._trace(threads),
                seconds=perf_counter() - start,
                nominal_edges=checked.shape[0] * self.edges,
                exact=self._exact(),
            )

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._closed = True
            self._executor.shutdown()
            self._pools.clear()
            self._resident = None

    def _run(self, features: Features, progress: Progress | None) -> tuple[list[Tile], int]:
        """Take all samples through all segments; returns (ids, rows) blocks and threads used."""
        samples = features.shape[0]
        # Few samples are spread over all threads, rather than filling the tiles of some.
        size = min(TILE, max(LANES, -(-samples // (self._threads * LANES)) * LANES))
        threads = max(1, min(self._threads, -(-samples // size)))
        while len(self._pools) < threads:
            self._pools.append(Pool(self._plan.width, len(self._plan.origin)))
        for pool in self._pools:
            pool.reset()
        fill = filler(features)
        groups = [np.arange(i, min(i + size, samples)) for i in range(0, samples, size)]
        feeds: list[Feed] = [_feed_features(fill, ids) for ids in groups]
        tiles: list[Tile] = []
        for program in self._programs():
            last = program.span.stop == len(self._plan.origin)
            neurons = program.layers[-1].n_out
            copy = Pool.copy_rows if last else Pool.copy_tile
            tiles = self._run_segment(
                program, feeds, partial(copy, neurons=neurons), threads, progress
            )
            feeds = [_feed_tile(tile) for tile in tiles]
        return tiles, threads

    def _run_segment(
        self,
        program: Program,
        feeds: list[Feed],
        emit: Emit,
        threads: int,
        progress: Progress | None,
    ) -> list[Tile]:
        stop = Event()
        taken = itertools.count()
        total = len(self._plan.origin)

        def take() -> Iterator[Feed]:
            while not stop.is_set() and (number := next(taken)) < len(feeds):
                yield feeds[number]
                feeds[number] = _no_feed  # a tile of a segment before is freed when it is read
                if progress is not None:
                    done = (number + 1) / len(feeds) * len(program.layers)
                    progress((program.first + done) / total)

        work = [
            self._executor.submit(_work, program, pool, take(), emit)
            for pool in self._pools[:threads]
        ]
        try:
            return [tile for thread in work for tile in thread.result()]
        finally:
            stop.set()  # after an error or an interrupt the other threads end early
            for thread in work:
                thread.cancel()
                if not thread.cancelled():
                    thread.exception()

    def _programs(self) -> Iterator[Program]:
        if self._resident is not None:
            yield self._resident
        for first, layers in self._plan.streamed():
            yield self._program(first, layers)

    def _program(self, first: int, layers: Any) -> Program:
        after = self._plan.droppable[first + 1 : first + 1 + len(layers)]
        return Program(first, layers, [bool(drop) for drop in after])

    def _exact(self) -> list[str]:
        """Name what makes runs faster without changing the answer."""
        return ["prune"] * bool(self._plan.droppable.any()) + list(self._plan.saved)

    def _trace(self, threads: int) -> list[LayerTrace]:
        used = self._pools[:threads]
        live = np.sum([pool.live for pool in used], axis=0).tolist()
        executed = np.sum([pool.executed for pool in used], axis=0).tolist()
        seconds = (np.sum([pool.nanos for pool in used], axis=0) / (1e9 * threads)).tolist()
        trace = [LayerTrace(0, 0, 0.0)] * (self._plan.origin[-1] + 1)
        for origin, *row in zip(self._plan.origin, live, executed, seconds, strict=True):
            before = trace[origin]  # a layer as given may run in several parts
            trace[origin] = LayerTrace(row[0], before.edges + row[1], before.seconds + row[2])
        return trace


def usable_cores() -> int:
    """Return the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _feed_features(fill: Fill, ids: NDArray[np.int64]) -> Feed:
    def feed(pool: Pool) -> int:
        tile = pool.claim(ids)
        fill(ids, pool.tiles[tile], pool.scratch)
        return tile

    return feed


def _feed_tile(done: Tile) -> Feed:
    ids, rows = done

    def feed(pool: Pool) -> int:
        tile = pool.claim(ids)
        pool.tiles[tile, : len(rows)] = rows
        return tile

    return feed


def _no_feed(pool: Pool) -> int:
    raise AssertionError("samples were taken twice")


def _work(program: Program, pool: Pool, feeds: Iterator[Feed], emit: Emit) -> list[Tile]:
    """Run one thread of a segment: take samples until none are left, then what is parked."""
    counters = [array[program.span] for array in (pool.live, pool.executed, pool.nanos)]
    done = []

    def advance(tile: int) -> None:
        tile = kernels.advance(
            program.table, tile, pool.tiles, pool.ids, pool.counts, pool.waits, *counters
        )
        if tile >= 0:
            done.append(emit(pool, tile))
            pool.waits[tile] = kernels.FREE

    for feed in feeds:
        advance(feed(pool))
    while (tile := kernels.next_parked(pool.waits)) >= 0:
        advance(tile)
    return done
