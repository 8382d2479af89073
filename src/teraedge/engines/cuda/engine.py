"""The driver of the CUDA kernels: features in, segments of layers, rows out."""

from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np

from teraedge.engines.cuda import driver
from teraedge.engines.cuda.feeder import PLACES, Chunk, Feeder
from teraedge.engines.cuda.feeding import DeviceFeatures, Given, Loader, as_given
from teraedge.engines.cuda.launcher import Launcher, layer_address
from teraedge.engines.cuda.output import DeviceResult, Rows
from teraedge.engines.cuda.program import pack, packed_size
from teraedge.engines.cuda.state import SPARE_TILES, Counters, RunState, bytes_a_sample
from teraedge.engines.engine import Engine, Progress
from teraedge.errors import DeviceError, FeatureError
from teraedge.host import memory_bytes
from teraedge.network import Layer, Network
from teraedge.options import Options, parse_bytes
from teraedge.plan import gpu
from teraedge.plan.device import COLUMNS, LANES, DeviceLayer
from teraedge.plan.explain import SAMPLES, Explanation, LastRun, explain
from teraedge.plan.plan import Plan
from teraedge.plan.predict import predicted, streamed
from teraedge.plan.segments import Segment, segments
from teraedge.result import LayerTrace, LazyBlock, Result
from teraedge.rounding import statements

_ROUNDING = "edges of the resident kernel are summed in an order that suits shared memory"
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

    def __init__(self, network: Network, options: Options, device: str) -> None:
        start = perf_counter()
        self.device, self.options = device, options
        self._closed = False
        self._lock = Lock()
        self._graph: driver.Graph | None = None
        self._device = driver.open_device(device)
        self.hardware = self._device.name
        try:
            self._compile(network)
        except BaseException:
            self.close()
            raise
        self.compile_seconds = perf_counter() - start

    def _compile(self, network: Network) -> None:
        memory = self.options.memory
        free = self._device.free_bytes()
        budget = int(free * LAYER_SHARE) if memory is None else min(free, parse_bytes(memory))
        self._plan = Plan(network, self.options, self._lay_out, budget, PLACES)
        self.n_in, self.n_out, self.edges = self._plan.n_in, self._plan.n_out, self._plan.edges
        self.head = self._plan.head
        self._stream = self._device.stream()
        self._launcher = Launcher(self._device)
        self._loader = Loader(self._device, self._stream)
        self._state: RunState | None = None
        self._chunk = self._send_resident()
        self._ran: list[Segment] = []
        self._last: LastRun | None = None
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
        samples = SAMPLES if self._last is None else self._last.samples
        stay = len(plan.resident)
        return explain(
            [*plan.parts[:stay], *(streamed(part, samples) for part in plan.parts[stay:])],
            plan.edges_given,
            device=f"{self.device}: {self.hardware}",
            workers=1,
            transfer=None,
            last=self._last,
        )

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._closed = True
            self._free_graph()
            self._device.close()

    def _lay_out(self, layer: Layer) -> DeviceLayer:
        laid_out = gpu.lay_out(layer, self._device.shared_bytes)
        return predicted(laid_out, self._device.multiprocessors * self._device.clock_hz)

    def _send_resident(self) -> Chunk | None:
        """Bring the layers that stay to the device."""
        layers = self._plan.resident
        if not layers:
            return None
        droppable = self._plan.droppable[1 : 1 + len(layers)].tolist()
        nbytes = packed_size(layers)
        self._layers = self._device.allocate(nbytes)
        packed = np.empty(nbytes, np.uint8)
        pack(layers, droppable, self._layers.address, packed)
        self._stream.to_device(self._layers, packed)
        self._stream.synchronize()
        chunk = Chunk(0, list(segments(layers, droppable, 0)), self._layers.address)
        for segment in chunk.segments:
            self._launcher.prepare(segment)
        return chunk

    def _run(self, features: Given, start: float, progress: Progress | None) -> Result:
        """Take all samples through the network, as many at a time as there is memory for."""
        samples = features.shape[0]
        state = self._prepare(samples)
        out = None
        if isinstance(features, DeviceFeatures):
            out = self._device.allocate(samples * self.n_out * 4, outlives=True)
            if self._plan.droppable.any():  # else every row is written
                self._stream.fill(out, 0)
        blocks: list[LazyBlock] = []
        live = np.zeros(samples, np.bool_)
        counted: list[Counters] = []
        for first in range(0, max(samples, 1), state.samples):
            last = min(first + state.samples, samples)
            counters = self._run_batch(features, first, last, state)
            counted.append(counters)
            number = len(self._ran)
            slots, order = int(counters.slots[number]), int(counters.order[number])
            nbytes = _whole_words(slots) * self.n_out * 4
            rows = out or self._device.allocate(nbytes, outlives=True)
            self._loader.store(state, number, self.n_out, rows, by_id=out is not None)
            found = state.live(self._stream, number, slots, order)
            self._stream.synchronize()
            live[found.ids[found.nonzero]] = True
            if out is None:
                lazy = Rows(rows, (_whole_words(slots), self.n_out), found.used)
                # What comes in batches would not fit the device as a whole.
                whole = state.samples >= samples
                blocks.append((found.ids[found.used], lazy if whole else lazy()))
            if progress is not None:
                progress(last / max(samples, 1))
        shape = samples, self.n_out
        after = out
        if out is not None and self._plan.head is not None:
            after = self._device.allocate(samples * self.n_out * 4, outlives=True)
            self._loader.apply_head(self._plan.head, out, shape, after)
            self._stream.synchronize()
        ids = np.flatnonzero(live)
        seconds = perf_counter() - start
        trace = self._trace(samples, counted)
        fields: dict[str, Any] = {
            "seconds": seconds,
            "nominal_edges": samples * self.edges,
            "exact": ["prune"] * (trace[-1].live < samples) + list(self._plan.saved),
            "passes": self._plan.saved,
            "rounding": [*statements(self._plan.saved), _ROUNDING],
            "live": ids,
            "head": self._plan.head,
        }
        if isinstance(features, DeviceFeatures) and out is not None and after is not None:
            return DeviceResult(out, after, features, shape, trace, **fields)
        return Result(shape, blocks, trace, **fields)

    def _prepare(self, samples: int) -> RunState:
        """Return memory for a batch of so many samples, or for as many as there is room for."""
        plan = self._plan
        wanted = max(-(-samples // COLUMNS) * COLUMNS, COLUMNS)
        if self._state is not None and (self._state.samples >= wanted or self._state.is_largest):
            return self._state
        if self._state is not None:
            self._free_graph()
            self._state.free()
            self._state = None
        each = bytes_a_sample(plan.width, len(plan.origin)) + 4 * self.n_out
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
            self._device, plan.width, len(plan.origin), min(wanted, room), wanted >= room
        )
        self._state.install(self._stream)
        return self._state

    def _run_batch(self, features: Given, first: int, last: int, state: RunState) -> Counters:
        """Take some samples through all layers; returns what was counted."""
        state.clear(self._stream)
        kept = self._loader.load(features, first, last, self.n_in, state)
        self._ran = []
        if self._chunk is not None:
            if self._graph is None:
                with self._stream.capture() as graph:
                    self._launch(self._chunk, state)
                self._graph = graph
                self._ran = []
            self._graph.launch(self._stream)
            self._ran += self._chunk.segments
        if self._feeder.streams:
            self._feeder.run(self._stream, lambda chunk: self._launch(chunk, state))
        counters = state.counters(self._stream)
        del kept
        if counters.invalid[0]:
            raise FeatureError(
                "features hold NaN, infinity or values beyond fp32; give finite numbers"
            )
        return counters

    def _launch(self, chunk: Chunk, state: RunState) -> None:
        """Queue the segments of a chunk, after those of the chunks before."""
        for segment in chunk.segments:
            address = layer_address(chunk.table, segment.first - chunk.first)
            self._launcher.launch(self._stream, segment, address, state, len(self._ran))
            self._ran.append(segment)

    def _trace(self, samples: int, batches: list[Counters]) -> list[LayerTrace]:
        live = np.sum([counters.live for counters in batches], axis=0).tolist()
        ran = np.sum([counters.ran for counters in batches], axis=0)
        edges = ran * np.array([part.edges for part in self._plan.parts], np.uint64)
        blocks = np.concatenate(
            [np.full(part.count, self._launcher.blocks_of(part)) for part in self._ran]
        )
        nanos = np.sum([counters.nanos for counters in batches], axis=0)
        seconds = (nanos / blocks / 1e9).tolist()
        origin = self._plan.origin
        trace = [LayerTrace(0, 0, 0.0)] * (origin[-1] + 1)
        for layer, *row in zip(origin, live, edges.tolist(), seconds, strict=True):
            before = trace[layer]  # a layer as given may run in several parts
            trace[layer] = LayerTrace(row[0], before.edges + row[1], before.seconds + row[2])
        self._last = LastRun(samples, ran.tolist(), seconds, 1)
        return trace

    def _free_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
            self._graph = None


def _whole_words(slots: int) -> int:
    """Return the slots of whole words of masks."""
    return -(-slots // LANES) * LANES
