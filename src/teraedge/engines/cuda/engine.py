"""The driver of the CUDA kernels: features in, segments of layers, rows out."""

from collections.abc import Callable
from functools import partial
from threading import RLock
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda import driver
from teraedge.engines.cuda.calibrate import rates_of, typical
from teraedge.engines.cuda.driver import Memory
from teraedge.engines.cuda.feeder import Chunk, Feeder
from teraedge.engines.cuda.feeding import DeviceFeatures, Given, Loader, as_given
from teraedge.engines.cuda.keeping import Keeper
from teraedge.engines.cuda.launcher import ROUNDING, Launcher, layer_address
from teraedge.engines.cuda.once import Once, without_lone
from teraedge.engines.cuda.output import DeviceResult, Owed, Pending, Rows
from teraedge.engines.cuda.planning import plan_of
from teraedge.engines.cuda.program import pack, packed_size
from teraedge.engines.cuda.state import SPARE_TILES, Counters, RunState, bytes_a_sample
from teraedge.engines.cuda.tracing import merged, trace_of
from teraedge.engines.engine import Engine, Progress
from teraedge.errors import DeviceError, FeatureError
from teraedge.host import memory_bytes
from teraedge.network import Network
from teraedge.options import ITEMSIZE, Options, parse_bytes
from teraedge.plan.device import DeviceLayer
from teraedge.plan.explain import SAMPLES, Explanation, LastRun, explain
from teraedge.plan.kernel_sizes import COLUMNS, STATIC_SHARED
from teraedge.plan.plan import LaidOutPlan, Plan
from teraedge.plan.predict import streamed
from teraedge.plan.segments import Segment, segments
from teraedge.result import LayerTrace, LazyBlock, LazyBlocks, Result
from teraedge.rounding import stored_as

Kept = TypeVar("Kept")

SHARE = 0.9
"""Of the free device memory, what samples may take."""
LAYER_SHARE = 0.5
"""Of the free device memory, what layers may take by default."""
HOST_SHARE = 4
"""Layers that stream are kept on the host if they take at most this part of its memory."""


class CudaEngine(Engine):
    """Runs a plan on one NVIDIA GPU; made by `teraedge.compile`.

    All that a run does is queued on one stream, and the host waits only for the result. Where all
    layers are on the device, the launches are one CUDA graph. Runs of one engine that are started
    from several threads queue up.
    """

    def __init__(
        self, network: Network | LaidOutPlan[DeviceLayer], options: Options, device: str
    ) -> None:
        start = perf_counter()
        self.device, self.options = device, options
        self._closed = False
        self._lock = RLock()
        self._graphs: dict[bool, driver.Graph] = {}  # by whether features are packed
        self._deferred: Segment | None = None  # the last, run when rows are asked for
        self._device = driver.open_device(device)
        self.hardware = self._device.name
        try:
            self._compile(network)
        except BaseException:
            self.close()
            raise
        self.compile_seconds = perf_counter() - start

    def _compile(self, network: Network | LaidOutPlan[DeviceLayer]) -> None:
        memory = self.options.memory
        free = self._device.free_bytes()
        budget = int(free * LAYER_SHARE) if memory is None else min(free, parse_bytes(memory))
        self._plan = self._planned(network, budget)
        self.n_in, self.n_out, self.edges = self._plan.n_in, self._plan.n_out, self._plan.edges
        self.head = self._plan.head
        ran = {part.choice.kernel for part in self._plan.parts}
        self._rounding = [
            *self._plan.rounding,
            *(ROUNDING[name] for name in ROUNDING if name in ran),
        ]
        self._stream = self._device.stream()
        precision = self.options.precision
        self._launcher = Launcher(self._device, precision)
        self._loader = Loader(self._device, self._stream, precision)
        self._keeper = Keeper(self._device, self._stream, self._loader, self._plan)
        self._state: RunState | None = None
        self._once = Once(self._device, self._stream, self._launcher)
        self._chunk = self._send_resident(budget)
        self._first_kernel = self._plan.parts[0].choice.kernel if self._plan.parts else None
        if self._chunk is not None and self._chunk.segments[0].bit_samples:
            self._first_kernel = "bits"
        self._ran: list[Segment] = []
        self._edges = np.array([part.edges for part in self._plan.parts], np.uint64)
        self._last: Callable[[], tuple[list[LayerTrace], LastRun]] | None = None
        self._owed = Owed()
        host_bytes = (memory_bytes() or 0) // HOST_SHARE
        self._feeder = Feeder(self._device, self._plan, host_bytes)

    def run(self, features: Any, *, progress: Progress | None = None) -> Result:  # noqa: D102
        with self._lock:
            if self._closed:
                raise DeviceError("the engine is closed; compile the network again")
            start = perf_counter()
            return self._run(
                as_given(features, self.n_in, self._device, self._stream), start, progress
            )

    def explain(self) -> Explanation:  # noqa: D102
        plan = self._plan
        last = None if self._last is None else self._last()[1]
        samples = SAMPLES if last is None else last.samples
        stay = len(plan.resident)
        others = [streamed(part, samples, self._rates) for part in plan.parts[stay:]]
        return explain(
            [*plan.parts[:stay], *others],
            plan.edges_given,
            device=f"{self.device}: {self.hardware}{stored_as(self.options.precision)}",
            workers=1,
            transfer=None,
            last=last,
        )

    def close(self) -> None:  # noqa: D102
        with self._lock:
            if not self._closed and hasattr(self, "_owed"):
                self._owed.store()
            self._closed = True
            self._free_graphs()
            self._device.close()

    def _planned(
        self, network: Network | LaidOutPlan[DeviceLayer], budget: int
    ) -> Plan[DeviceLayer]:
        """Return the plan, and note the rates that it stands on."""
        if isinstance(network, LaidOutPlan):
            self._rates = typical(self._device)
            return network
        self._rates = rates_of(self._device, self.device)
        return plan_of(network, self.options, self._device, self._rates, budget)

    def _send_resident(self, budget: int) -> Chunk | None:
        """Bring the layers that stay to the device, within so many bytes."""
        layers = self._plan.resident
        if not layers:
            return None
        droppable = self._plan.droppable[1 : 1 + len(layers)].tolist()
        nbytes = packed_size(layers)
        self._layers = self._device.allocate(nbytes)
        packed = np.empty(nbytes, np.uint8)
        room = self._device.shared_bytes - STATIC_SHARED
        merge = self.options.merge
        parts = list(segments(layers, droppable, 0, rates=self._rates, merge=merge, room=room))
        parts = self._once.send(layers, parts, budget - nbytes)
        pack(layers, droppable, parts, self._layers.address, packed)
        self._stream.to_device(self._layers, packed)
        self._stream.synchronize()
        self._plan.resident = without_lone(layers)
        for segment in parts:
            self._launcher.prepare(segment)
        # Who lives is known before values are only copied, as passes do at the end.
        whole = len(layers) == len(self._plan.parts) and droppable[-1]
        if whole and layers[-1].copies and len(parts) > 1 and parts[-1].count == 1:
            self._deferred = parts.pop()
        return Chunk(0, parts, self._layers.address)

    def _run(self, features: Given, start: float, progress: Progress | None) -> Result:
        """Take all samples through the network, as many at a time as there is memory for."""
        self._owed.leave_tiles()
        samples = features.shape[0]
        state = self._prepare(samples)
        on_device = features if isinstance(features, DeviceFeatures) else None
        stored: Callable[[], tuple[Memory, Memory]] | None = None
        blocks: LazyBlocks = ()
        if samples <= state.samples and self._plan.droppable[-1]:  # so live is nonzero
            counted = [self._run_batch(features, 0, samples, state)]
            ids = state.alive
            if on_device is None:
                slots = Pending(self._lock, self._storing(self._keeper.slots, state, counted[0]))
                blocks = _as_blocks(slots)
                self._owed.add(slots)
            else:
                every = partial(self._keeper.all, samples)
                aside = partial(self._keeper.aside, samples)
                rows = Pending(
                    self._lock,
                    self._storing(every, state, counted[0]),
                    self._storing(aside, state, counted[0]),
                )
                stored = rows
                self._owed.add(rows)
        else:
            out = None if on_device is None else self._keeper.rows_of_all(samples)
            counted, blocks, ids = self._run_batches(features, samples, state, out, progress)
            if out is not None:
                stored = partial(_same, self._keeper.after_head(out, samples))
        seconds = perf_counter() - start
        if progress is not None:
            progress(1.0)
        last = int(sum(counters.live[-1] for counters in counted))
        fields: dict[str, Any] = {
            "seconds": seconds,
            "nominal_edges": samples * self.edges,
            "exact": [
                *["prune"] * (last < samples),
                *["merge"] * any(map(merged, counted)),
                *self._plan.saved,
            ],
            "passes": self._plan.saved,
            "rounding": self._rounding,
            "live": ids,
            "head": self._plan.head,
            "precision": self.options.precision,
        }
        ran = list(self._ran)
        if self._deferred is not None and self._deferred not in ran:
            ran.append(self._deferred)
        blocks_each = self._launcher.blocks_of(ran)
        self._last = partial(
            trace_of, self._plan.origin, self._edges, blocks_each, samples, counted
        )
        shape, trace = (samples, self.n_out), partial(_first, self._last)
        if on_device is not None and stored is not None:
            return DeviceResult(stored, on_device, shape, trace, **fields)
        return Result(shape, blocks, trace, **fields)

    def _run_batches(
        self,
        features: Given,
        samples: int,
        state: RunState,
        out: Memory | None,
        progress: Progress | None,
    ) -> tuple[list[Counters], list[LazyBlock], NDArray[np.int64]]:
        """Run samples in batches, rows being stored in between: in `out`, if given, by sample."""
        blocks: list[LazyBlock] = []
        live = np.zeros(samples, np.bool_)
        counted: list[Counters] = []
        for first in range(0, max(samples, 1), state.samples):
            last = min(first + state.samples, samples)
            counted.append(self._run_batch(features, first, last, state))
            store = self._storing(partial(self._keeper.store, out), state, counted[-1])
            rows, found = store()
            live[found.ids[found.nonzero]] = True
            if out is None:
                lazy = Rows(rows, (len(found.used), self.n_out), found.used)
                # What comes in batches would not fit the device as a whole.
                whole = state.samples >= samples
                blocks.append((found.ids[found.used], lazy if whole else lazy()))
            if progress is not None:
                progress(last / max(samples, 1))
        return counted, blocks, np.flatnonzero(live)

    def _storing(
        self, store: Callable[[RunState, Counters, int], Kept], state: RunState, counters: Counters
    ) -> Callable[[], Kept]:
        """Return what stores rows of the run that was, once the layer put off has run, too."""

        def run() -> Kept:
            last, chunk = self._deferred, self._chunk
            if last is None or chunk is None:
                return store(state, counters, len(self._ran))
            if last not in self._ran:
                self._launch(Chunk(0, [last], chunk.table), state)
                state.fetch(self._stream)
                self._stream.synchronize()
            return store(state, state.counters, len(self._ran))

        return run

    def _prepare(self, samples: int) -> RunState:
        """Return memory for a batch of so many samples, or for as many as there is room for."""
        plan = self._plan
        wanted = max(-(-samples // COLUMNS) * COLUMNS, COLUMNS)
        if self._state is not None and (self._state.samples >= wanted or self._state.is_largest):
            return self._state
        if self._state is not None:
            self._free_graphs()
            self._state.free()
            self._state = None
        layers = len(plan.origin)
        kept = 0 if self._chunk is None else len(self._chunk.segments)
        kept += self._deferred is not None
        most = kept + layers - len(plan.resident)
        width = plan.width * ITEMSIZE[self.options.precision]
        row_bytes = width, max(width, 4 * self.n_in)  # the second takes features as they are given
        each = bytes_a_sample(row_bytes, most) + 4 * self.n_out
        free = self._device.free_bytes()
        room = (int(free * SHARE / each) // COLUMNS - SPARE_TILES) * COLUMNS
        if room < COLUMNS:
            least = int((1 + SPARE_TILES) * COLUMNS * each)
            raise DeviceError(
                f"{COLUMNS} samples of {plan.width} neurons take {least:,} bytes and "
                f"{free:,} are free on {self._device.name}; give Options(memory=...) less for "
                "layers, or close other programs on this GPU"
            )
        self._state = RunState(
            self._device,
            row_bytes,
            layers,
            most,
            min(wanted, room),
            wanted >= room,
            self._once.equal,
        )
        self._state.install(self._stream)
        return self._state

    def _run_batch(self, features: Given, first: int, last: int, state: RunState) -> Counters:
        """Take some samples through all layers; returns what was counted."""
        piece, packed = self._loader.give(features, first, last, state, self._first_kernel)
        kept = None if packed else self._load(state, piece)
        self._ran = []
        if self._chunk is not None:
            if packed not in self._graphs:
                self._graphs[packed] = self._capture(self._chunk, state, packed)
            self._graphs[packed].launch(self._stream)
            self._ran = list(self._chunk.segments)
        elif packed:
            self._load(state)
        if self._feeder.streams:
            self._feeder.run(self._stream, lambda chunk: self._launch(chunk, state))
            self._finish(state)
        self._stream.synchronize()
        del kept, piece
        counters = state.counters
        if self._deferred is not None:  # which changes nobody's life
            counters.live[-1] = counters.ran[-1] = counters.live[-2]
        if counters.invalid[0]:
            raise FeatureError(
                "features hold NaN, infinity or values beyond fp32; give finite numbers"
            )
        return counters

    def _load(self, state: RunState, features: Given | None = None) -> Any:
        """Queue the start of a run and the loading of its features, by default packed ones."""
        state.begin(self._stream)
        if features is not None:
            return self._loader.load_rows(features, self.n_in, state)
        sorts = bool(self._plan.droppable.any())
        return self._loader.load_bits(
            self.n_in, state, first_kernel=self._first_kernel, sorts=sorts
        )

    def _capture(self, chunk: Chunk, state: RunState, packed: bool) -> driver.Graph:
        """Return the graph of the layers that stay; of all of a run if its features are packed."""
        with self._stream.capture() as graph:
            if packed:
                self._load(state)
            self._launch(chunk, state)
            if not self._feeder.streams:
                self._finish(state)
        return graph

    def _finish(self, state: RunState) -> None:
        """Queue what brings the answer to the host."""
        if self._plan.droppable[-1]:
            self._loader.mark(state, len(self._ran))
        state.fetch(self._stream)

    def _launch(self, chunk: Chunk, state: RunState) -> None:
        """Queue the segments of a chunk, after those of the chunks before."""
        for segment in chunk.segments:
            address = layer_address(chunk.table, segment.first - chunk.first)
            self._once.launch(segment, address, state, len(self._ran))
            self._ran.append(segment)

    def _free_graphs(self) -> None:
        for graph in self._graphs.values():
            graph.free()
        self._graphs.clear()


def _as_blocks(pending: Pending[LazyBlock]) -> LazyBlocks:
    """Return what a result asks for its rows."""
    return lambda: [pending()]


def _same(value: Any) -> Any:
    return value


def _first(pair: Callable[[], tuple[Any, Any]]) -> Any:
    return pair()[0]
