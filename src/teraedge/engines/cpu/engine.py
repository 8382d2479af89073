"""The driver of the CPU kernels: threads, segments of layers, and the result."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import Any, Self
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cpu import feeding
from teraedge.engines.cpu.batch import costs_of, in_tiles, tile_size
from teraedge.engines.cpu.calibrate import constants
from teraedge.engines.cpu.few import MOST, SHALLOW, FewSamples
from teraedge.engines.cpu.pool import Pool, Samples
from teraedge.engines.cpu.program import Program
from teraedge.engines.cpu.ran import Ran
from teraedge.engines.cpu.simd import HEIGHT, LANES, TILE
from teraedge.engines.cpu.work import Work, features_work, no_work, tile_work, tiles_of
from teraedge.engines.engine import Engine, Progress
from teraedge.errors import DeviceError
from teraedge.features import Features, as_features
from teraedge.host import cpu_model, memory_bytes, usable_cores
from teraedge.network import Layer, Network
from teraedge.options import Options, parse_bytes
from teraedge.plan.explain import Explanation, LastRun, explain
from teraedge.plan.fingerprint import layer_fingerprint
from teraedge.plan.packing import VERSION, pack_panels, unpack_panels
from teraedge.plan.panels import PanelLayer, panel_layer
from teraedge.plan.plan import Plan, nbytes_of
from teraedge.plan.saved import LoadedPlan, SavedPlan, save_plan
from teraedge.result import Block, LayerTrace, Result
from teraedge.text import count

_UNKNOWN_MEMORY = 8 * 2**30  # where the system does not say

ROWS = 10
"""Bytes of all layouts together, at most, in bytes of the panels."""

_ENGINE = {"device": "cpu", "layout": VERSION, "lanes": LANES, "tile": TILE, "height": HEIGHT}
"""What a saved plan must have been made for."""

_ROUNDING = [
    "the edges of a neuron are summed in the order of its inputs",
]
"""How the kernels order sums; see `rounding.statements`."""


class CpuEngine(Engine):
    """Runs a plan on CPU threads; made by `teraedge.compile`.

    Every thread has a pool of tiles and takes the next samples when it is done with some, so that
    threads only wait for each other at the end of a segment of layers. Runs of one engine that are
    started from several threads queue up.
    """

    device = "cpu"

    def __init__(self, plan: Plan[PanelLayer], options: Options, start: float) -> None:
        self.options = options
        self.hardware = cpu_model()
        self._plan = plan
        self.n_in, self.n_out, self.edges = self._plan.n_in, self._plan.n_out, self._plan.edges
        self.head = self._plan.head
        self._resident: Program | None = None
        if self._plan.resident:
            self._resident = self._program(0, self._plan.resident)
        self._threads = options.threads or usable_cores()
        self._executor = ThreadPoolExecutor(self._threads, "teraedge")
        self._pools: list[Pool] = []
        self._rounding = (*plan.rounding, *_ROUNDING)
        self._edges = [part.edges for part in plan.parts]
        self._costs = costs_of(plan.parts, self._threads)
        self._last: Callable[[], LastRun] | None = None
        self._few: FewSamples | None = None
        self._most_together = MOST
        self._lock = Lock()
        self._closed = False
        self.compile_seconds = perf_counter() - start

    @classmethod
    def compile(cls, network: Network, options: Options) -> Self:
        """Plan a network."""
        start = perf_counter()
        speeds = constants()
        # Layers that are equal in all but their place are laid out, and lie in memory, once.
        kept = WeakValueDictionary[str, PanelLayer]()

        def lay_out(layer: Layer) -> PanelLayer:
            key = layer_fingerprint(layer)
            found = kept.get(key)
            if found is None:
                found = kept[key] = panel_layer(layer, speeds)
            return found

        return cls(Plan(network, options, lay_out, _memory(options)), options, start)

    @classmethod
    def load(cls, saved: SavedPlan, options: Options) -> Self:
        """Go on from a saved plan."""
        start = perf_counter()
        saved.check_engine(_ENGINE)
        unpack = partial(unpack_panels, height=HEIGHT)
        return cls(LoadedPlan(saved, _memory(options), unpack), options, start)

    def save(self, path: str | Path) -> None:  # noqa: D102
        save_plan(path, self._plan, self.options, _ENGINE, pack_panels)

    def run(self, features: Any, *, progress: Progress | None = None) -> Result:  # noqa: D102
        with self._lock:
            if self._closed:
                raise DeviceError("the engine is closed; compile the network again")
            start = perf_counter()
            few = self._run_few(features, start)
            if few is None:
                given, features = features, as_features(features, self.n_in)
                if type(given) is not type(features):  # an array of another library
                    few = self._run_few(features, start)
            return self._run(features, start, progress) if few is None else few

    def explain(self) -> Explanation:  # noqa: D102
        speeds, plan = constants(), self._plan
        return explain(
            plan.parts,
            plan.edges_given,
            device=f"cpu: {self.hardware}, {count(self._threads, 'thread')}",
            workers=self._threads,
            transfer=1e-9 * (self.n_in * speeds.load + self.n_out * speeds.store),
            last=None if self._last is None else self._last(),
        )

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._closed = True
            self._executor.shutdown()
            self._pools.clear()
            self._resident = None
            if self._few is not None:
                self._few.close()

    def _run_few(self, features: Any, start: float) -> Result | None:
        """Run a few dense samples by rows; None where there are more, or they cannot be taken."""
        if (
            type(features) is not np.ndarray
            or features.ndim != 2
            or not 0 < len(features) <= self._most_together
            or features.shape[1] != self.n_in
            or features.dtype.kind not in "biuf"
        ):
            return None
        few = self._ready_few()
        if few is None or len(features) > few.most:
            return None
        if features.dtype != np.float32 or not features.flags.c_contiguous:
            with np.errstate(over="ignore"):
                features = np.ascontiguousarray(features, np.float32)
        outputs = few.run(features)
        if outputs is None:
            return None  # and whoever checks the features says what is wrong
        samples, noted = len(features), few.noted.copy()
        dead = self._plan.droppable[-2] and noted[0, -1] < samples
        ids = np.flatnonzero(few.nonzero[:samples]) if dead else None
        # Only made when asked for: a run takes microseconds.
        ran = partial(Ran.shared, samples, noted, self._edges)
        self._last = lambda: ran().last(samples, 1)
        return Result(
            (samples, self.n_out),
            outputs if ids is None else [(ids, outputs[ids])],
            partial(_trace, ran, self._plan.origin),
            seconds=perf_counter() - start,
            nominal_edges=samples * self.edges,
            exact=["prune", *self._plan.saved] if dead else list(self._plan.saved),
            passes=self._plan.saved,
            rounding=self._rounding,
            head=self.head,
        )

    def _ready_few(self) -> FewSamples | None:
        """Lay the network out for few samples, where that was not done; None where it cannot be."""
        if self._few is None and self._most_together:
            if not self._has_room_for_rows() or self._resident is None:
                self._most_together = 0
                return None
            self._few = FewSamples(self._resident, self._plan.droppable[1:], self._threads)
            self._most_together = self._few.most
        return self._few

    def _has_room_for_rows(self) -> bool:
        """Tell whether all layers stay in memory, and may a second time, by rows."""
        plan = self._plan
        held = nbytes_of(plan.resident)
        return len(plan.resident) == len(plan.origin) and ROWS * held <= _memory(self.options)

    def _run(self, features: Features, start: float, progress: Progress | None) -> Result:
        """Take all samples through all segments, or some of them through layers that are shared."""
        samples = features.shape[0]
        same_as = np.arange(samples)
        tiled = self._in_tiles(features)
        blocks, pools = self._run_tiles(features, tiled, same_as, progress)
        ran = Ran.in_tiles(pools, self._edges)
        if self._few is not None and tiled < samples:
            block, after = self._run_shared(self._few, features, tiled)
            blocks, ran = [*blocks, block], ran.plus(after)
            if progress is not None and not tiled:
                progress(1.0)
        whole = not tiled and len(blocks) == 1 and len(blocks[0][0]) == samples
        trace = ran.trace(self._plan.origin)
        self._last = partial(ran.last, samples, max(1, len(pools)))
        merged = any(pool.looks[:, 2].any() for pool in pools)
        return Result(
            (samples, self.n_out),
            blocks[0][1] if whole else blocks,
            trace,
            seconds=perf_counter() - start,
            nominal_edges=samples * self.edges,
            # What made the run faster without changing the answer.
            exact=["prune"] * (trace[-1].live < samples) + ["merge"] * merged + [*self._plan.saved],
            passes=self._plan.saved,
            rounding=self._rounding,
            same_as=_roots(same_as) if self.options.merge else None,
            head=self.head,
        )

    def _in_tiles(self, features: Features) -> int:
        """Return how many samples, the first ones, run in tiles; threads share the others."""
        samples = int(features.shape[0])
        shallow = self._most_together == MOST and len(self._plan.origin) <= SHALLOW
        if not shallow or not isinstance(features, np.ndarray):
            return samples
        tiled = in_tiles(samples, self._threads, self._costs)
        return samples if tiled < samples and self._ready_few() is None else tiled

    def _run_shared(self, few: FewSamples, features: Any, first: int) -> tuple[Block, Ran]:
        """Run samples, `first` and following, that all threads share."""
        ids = np.arange(first, len(features))
        outputs, nonzero, noted = few.run_many(features[first:])
        ran = Ran.shared(len(ids), noted, self._edges)
        if self._plan.droppable[-2] and ran.live[-1] < len(ids):
            return (ids[nonzero], outputs[nonzero]), ran
        return (ids, outputs), ran

    def _run_tiles(
        self,
        features: Features,
        samples: int,
        same_as: NDArray[np.int64],
        progress: Progress | None,
    ) -> tuple[list[Block], list[Pool]]:
        """Take the first samples through all segments; returns also what threads ran them in."""
        if not samples and features.shape[0]:
            return [], []
        if self._few is not None:
            self._few.rest()
        size = tile_size(samples, self._threads)
        threads = max(1, min(self._threads, -(-samples // size)))
        while len(self._pools) < threads:
            self._pools.append(Pool(self._plan.width, len(self._plan.origin)))
        # Where samples can die nobody knows how many rows come out: begin with room for few.
        rows = TILE if self._plan.droppable[:-1].any() else -(-samples // threads)
        for pool in self._pools:
            pool.reset(rows)
        source = feeding.sources(features)
        # Enough pieces that threads end together, few enough that Python is not in the way.
        step = size * max(1, min(16, samples // (size * threads * 8)))
        work: list[Work] = [
            features_work(source, first, min(first + step, samples), size)
            for first in range(0, samples, step)
        ]
        done: list[Samples] = []
        for program in self._programs():
            done = self._run_segment(program, work, threads, same_as, progress)
            work = [tile_work(tile) for tile in done]
        return [(tile.ids, tile.values) for tile in done], self._pools[:threads]

    def _run_segment(
        self,
        program: Program,
        work: list[Work],
        threads: int,
        same_as: NDArray[np.int64],
        progress: Progress | None,
    ) -> list[Samples]:
        stop = Event()
        taken = itertools.count()
        total = len(self._plan.origin)

        def take() -> Iterator[Work]:
            while not stop.is_set() and (number := next(taken)) < len(work):
                yield work[number]
                work[number] = no_work  # samples of the segment before are freed once they ran
                if progress is not None:
                    done = (number + 1) / len(work) * len(program.layers)
                    progress((program.first + done) / total)

        def run(pool: Pool) -> list[Samples]:
            final, neurons = program.span.stop == total, program.layers[-1].n_out
            look_until = len(program.layers) - final if self.options.merge else -1
            state = pool.state(program.span, same_as, look_until)
            tiles = tiles_of(program, pool, state, take())
            return [pool.take(tile, neurons, rows=final) for tile in tiles]

        running = [self._executor.submit(run, pool) for pool in self._pools[:threads]]
        try:
            return [tile for thread in running for tile in thread.result()]
        finally:
            stop.set()  # after an error or an interrupt the other threads end early
            wait(running)

    def _programs(self) -> Iterator[Program]:
        if self._resident is not None:
            yield self._resident
        for first, layers in self._plan.streamed():
            yield self._program(first, layers)

    def _program(self, first: int, layers: Any) -> Program:
        after = self._plan.droppable[first + 1 : first + 1 + len(layers)]
        return Program(first, layers, [bool(drop) for drop in after])


def _trace(ran: Callable[[], Ran], origin: list[int]) -> list[LayerTrace]:
    return ran().trace(origin)


def _memory(options: Options) -> int:
    """Return the bytes that compiled layers may take."""
    if options.memory is not None:
        return parse_bytes(options.memory)
    return (memory_bytes() or _UNKNOWN_MEMORY) // 2


def _roots(same_as: NDArray[np.int64]) -> NDArray[np.int64]:
    """Follow samples that run for others, which may have been merged later, to those that ran."""
    while not np.array_equal(further := same_as[same_as], same_as):
        same_as = further
    return same_as
