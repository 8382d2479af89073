"""The plan of a network: the layers that run, laid out, and which of them stay in memory."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from teraedge.errors import ModelError
from teraedge.host import usable_cores
from teraedge.network import Layer, Network
from teraedge.options import Options, Precision
from teraedge.passes.draft import Wiring
from teraedge.passes.rewriter import Begun, Rewriter
from teraedge.plan.choice import Choice, Part
from teraedge.plan.fingerprint import Fingerprint
from teraedge.rounding import statements

log = logging.getLogger(__name__)

LARGE = 200_000
"""Edges from which on layers are laid out side by side, in threads."""
WORKERS = 8
"""Layers that are laid out at a time, at most; so many are in memory."""


class LaidOut(Protocol):
    """A layer as a device's kernels read it."""

    @property
    def n_in(self) -> int:
        """Neurons it reads."""

    @property
    def n_out(self) -> int:
        """Neurons it writes."""

    @property
    def edges(self) -> int:
        """Edges a sample executes."""

    @property
    def bias(self) -> NDArray[np.float32]:
        """Of each output neuron, shape (n_out,)."""

    @property
    def clamp(self) -> tuple[float, float]:
        """The bounds of the activation: outputs are held between the two."""

    @property
    def curve(self) -> str:
        """The curve of the activation, one of `activations.CURVES`."""

    @property
    def nbytes(self) -> int:
        """Bytes it takes on the device."""

    @property
    def choice(self) -> Choice:
        """Why it is laid out as it is."""


L = TypeVar("L", bound=LaidOut)
T = TypeVar("T")


class Plan(Generic[L]):
    """How an engine runs a network.

    The layers are read once, two neighbours at a time, rewritten by the passes and laid out. What
    is laid out stays within the memory given; of a larger network the first layers stay, and the
    others are read, rewritten and laid out again in every run, as much of them at a time as fits.

    Parameters
    ----------
    network : Network
    options : Options
    lay_out : callable
        Takes a Layer that runs and returns it as the engine's kernels read it. Knows nothing of
        other layers.
    memory : int
        Bytes for layers that are laid out.
    places : int, default 1
        How much of what `streamed` yields is in memory at a time.

    Attributes
    ----------
    n_in, n_out, edges, head : int, and str or None
        Of the network as given.
    width : int
        The largest number of neurons before or after any layer that runs.
    edges_given : list of int
        Of each layer as given.
    fingerprint : str
        Of the network as given: another one has another.
    origin : list of int
        For each layer that runs, the number of the layer as given that it is part of.
    parts : list of Part
        Of every layer that runs, what `explain` needs to know.
    resident : list of LaidOut
        The first layers that run, as many as stay in memory.
    droppable : ndarray of bool, shape (layers that run + 1,)
        Whether a row that is all zero before layer l (after the last, for l = layers) stays zero
        through every layer from there on, so that its sample is dead: f(b) = 0 in all of them.
    saved : Counter
        Edges a sample need no longer execute, by pass.
    curved : bool
        Whether a layer has a smooth activation.
    streamed_bytes : int
        Bytes of all layers that do not stay.
    room : int
        Bytes that `streamed` yields together, at most.
    """

    n_in: int
    n_out: int
    edges: int
    head: str | None
    width: int
    edges_given: list[int]
    fingerprint: str
    origin: list[int]
    parts: list[Part]
    resident: list[L]
    droppable: NDArray[np.bool_]
    saved: Counter[str]
    curved: bool
    streamed_bytes: int
    room: int
    _precision: Precision = "fp32"  # of plans that are not made from a network

    def __init__(
        self,
        network: Network,
        options: Options,
        lay_out: Callable[[Layer], L],
        memory: int,
        places: int = 1,
    ) -> None:
        self._network, self._passes = network, options.chosen_passes
        self._precision = options.precision
        self._layout, self._budget, self._places = lay_out, memory, places
        self.n_in = self.width = network.n_in
        self.head = network.head
        self.n_out = self.edges = 0
        self.curved = False
        self.origin, self.parts, self.resident, self.edges_given = [], [], [], []
        self._cut = 0, Wiring.identity(self.n_in)
        quiet = self._read()
        suffix = np.logical_and.accumulate(np.array([*quiet, True])[::-1])[::-1]
        self.droppable = suffix if options.prune else np.zeros_like(suffix)
        log.info(
            "%d layers run as %d, of which %d stay in memory with %.1f MB; edges saved: %s",
            len(network),
            len(self.origin),
            len(self.resident),
            nbytes_of(self.resident) / 1e6,
            ", ".join(f"{count:,} by {name}" for name, count in self.saved.items()) or "none",
        )

    def _read(self) -> list[bool]:
        """Lay the network out; returns for each layer that runs whether zero rows stay zero."""
        quiet: list[bool] = []
        held = cut_layers = largest = 0
        rewriter, fingerprint = Rewriter(self._passes, self._cut[1]), Fingerprint()
        for given, parts in self._laid_out(0, rewriter, fingerprint.add):
            if held <= self._budget * 3 // 4:
                # If not all fits, keep up to here: the rest needs room to come several at a time.
                self._cut, cut_layers = (given.number, given.inputs), len(self.origin)
            for part in parts:
                held += part.nbytes
                largest = max(largest, part.nbytes)
                if held <= self._budget:
                    self.resident.append(part)
                quiet.append(_keeps_zero(part))
                self.origin.append(given.number)
                self.parts.append(part_of(part, given.number))
                self.width = max(self.width, part.n_out)
                self.curved |= bool(part.curve)
            self.edges_given.append(given.edges)
            self.edges += given.edges
            self.n_out = given.n_out
        if held > self._budget:
            del self.resident[cut_layers:]
        self.streamed_bytes = held - nbytes_of(self.resident)
        self.room = max((self._budget - nbytes_of(self.resident)) // self._places, largest)
        self.saved = +rewriter.saved  # without zeros
        fingerprint.add_head(self.head)
        self.fingerprint = fingerprint.hexdigest()
        return quiet

    @property
    def rounding(self) -> list[str]:
        """What makes the last bits differ from those of the reference; see `rounding`."""
        return statements(self.saved, self.curved, self.head, self._precision)

    def streamed(self) -> Iterator[tuple[int, list[L]]]:
        """Yield (first layer, layers) for what is not resident, as many at a time as have room."""
        first = len(self.resident)
        segment: list[L] = []
        for part in self._later():
            if segment and nbytes_of(segment) + part.nbytes > self.room:
                yield first, segment
                first, segment = first + len(segment), []
            segment.append(part)
        if segment:
            yield first, segment

    def layers(self) -> Iterator[L]:
        """Yield every layer that runs; those that are not resident are made one at a time."""
        yield from self.resident
        yield from self._later()

    def _later(self) -> Iterator[L]:
        """Yield the layers that are not resident."""
        if len(self.resident) == len(self.origin):
            return
        start, inputs = self._cut
        for _, parts in self._laid_out(start, Rewriter(self._passes, inputs), None):
            yield from parts

    def _laid_out(
        self, start: int, rewriter: Rewriter, watch: Callable[[Layer], None] | None
    ) -> Iterator[tuple["_Given", list[L]]]:
        """Rewrite layers `start` and following one by one, and lay them out.

        Of large ones, several at a time are begun, and laid out, in threads.
        """
        workers = min(WORKERS, usable_cores())
        waiting: deque[tuple[_Given, list[Callable[[], L]]]] = deque()
        with ThreadPoolExecutor(workers, "teraedge-plan") as pool:
            aside = _Aside(pool, workers)
            begun = aside.ahead(_windows(self._network[start:]), rewriter)
            for index, (layer, begin) in enumerate(begun, start):
                if watch is not None:
                    watch(layer)
                given = _Given(index, layer.edges, layer.n_out, rewriter.inputs)
                with _numbered(index):
                    parts = rewriter.finish(begin())
                tasks = [aside.task(layer, partial(self._layout, part)) for part in parts]
                waiting.append((given, tasks))
                while len(waiting) > aside.places(layer):
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())


class LaidOutPlan(Plan[L]):
    """The plan of some layers that are laid out already, all of which stay and run as they are.

    Parameters
    ----------
    layers : list of LaidOut
    """

    def __init__(self, layers: list[L]) -> None:
        self.resident, self.origin = layers, list(range(len(layers)))
        self.n_in, self.n_out, self.head = layers[0].n_in, layers[-1].n_out, None
        self.width = max(self.n_in, *(layer.n_out for layer in layers))
        self.parts = [part_of(layer, index) for index, layer in enumerate(layers)]
        self.edges_given = [layer.edges for layer in layers]
        self.edges = sum(self.edges_given)
        self.droppable = np.zeros(len(layers) + 1, np.bool_)
        self.saved, self.fingerprint, self.curved = Counter(), "", False
        self.streamed_bytes = self.room = 0


class _Aside(NamedTuple):
    """Work on large layers in the threads of a pool, some layers at a time."""

    pool: ThreadPoolExecutor
    workers: int

    def places(self, layer: Layer) -> int:
        """Return how many layers like this one may be under way."""
        return self.workers if layer.edges >= LARGE else 0

    def task(self, layer: Layer, call: Callable[[], T]) -> Callable[[], T]:
        """Start a call for a large layer; returns a function that gives its result."""
        return self.pool.submit(call).result if self.workers > 1 and self.places(layer) else call

    def ahead(
        self, windows: Iterable[tuple[Layer, Layer | None]], rewriter: Rewriter
    ) -> Iterator[tuple[Layer, Callable[[], Begun]]]:
        """Yield each layer with a function that begins to rewrite it, or has begun long since."""
        waiting: deque[tuple[Layer, Callable[[], Begun]]] = deque()
        for layer, following in windows:
            waiting.append((layer, self.task(layer, partial(rewriter.begin, layer, following))))
            while len(waiting) > self.places(layer):
                yield waiting.popleft()
        yield from waiting


class _Given(NamedTuple):
    """What is remembered of a layer as given; `inputs`: what it reads."""

    number: int
    edges: int
    n_out: int
    inputs: Wiring


def _finished(given: _Given, tasks: list[Callable[[], L]]) -> tuple[_Given, list[L]]:
    with _numbered(given.number):
        return given, [task() for task in tasks]


@contextmanager
def _numbered(layer: int) -> Iterator[None]:
    """Let errors say which layer they are of."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"layer {layer}: {error}") from None


def _windows(network: Network) -> Iterator[tuple[Layer, Layer | None]]:
    """Yield each layer with the one after it."""
    return pairwise(chain(network, (None,)))  # type: ignore[arg-type]


def part_of(layer: LaidOut, origin: int) -> Part:
    """Return what is remembered of a layer when it is not in memory."""
    return Part(origin, layer.n_in, layer.n_out, layer.edges, layer.nbytes, layer.choice)


def nbytes_of(layers: Iterable[LaidOut]) -> int:
    """Return the bytes of layers that are laid out."""
    return sum(layer.nbytes for layer in layers)


def _keeps_zero(layer: LaidOut) -> bool:
    """Tell whether a zero row stays zero: f(b) = 0 for every neuron, in the engine's arithmetic."""
    lower, upper = layer.clamp
    if layer.curve == "sigmoid" or (layer.curve and layer.bias.any()):
        return False
    return not np.clip(layer.bias, lower, upper).any()
