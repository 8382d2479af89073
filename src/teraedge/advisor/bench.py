"""A layer and what it is compared with, as programs to be measured."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from math import inf, log
from typing import Any, Literal, TypeAlias

import numpy as np

from teraedge.advisor.advice import Advice
from teraedge.advisor.dense import dense_program
from teraedge.advisor.patterns import PATTERNS, unstructured
from teraedge.advisor.rounds import Program, Ready
from teraedge.engines import compile as compile_network
from teraedge.host import usable_cores
from teraedge.network import Layer, Network
from teraedge.options import Options

Target = Literal["latency", "throughput"]
Make: TypeAlias = Callable[[], Any]
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6)
DENSE_BYTES = 2**31
"""Of a weight matrix that is stored whole, at most."""
_EDGE_BYTES = 8
_WEIGHTS_A_RUN = 2**32, 2**29
"""Times samples, about: on a GPU, and on a core of a CPU, where a short run is less disturbed."""
_SAMPLES = 256, 128
"""At least, likewise."""
_MOST_SAMPLES = 4096


class Bench:
    """Layers that are alike, one of which runs, and what is compared with it."""

    def __init__(
        self, layer: Layer, layers: list[int], device: str, target: Target, has_zeros: bool
    ) -> None:
        self.layers, self._layer, self._device = layers, layer, device
        self._shape = layer.n_in, layer.n_out
        self._size = layer.n_in * layer.n_out
        self._density = layer.edges / self._size
        self.features = _features(layer, target, device, has_zeros)
        self.hardware = ""
        self._known: dict[bytes, Program] = {}
        self._now = self._program(lambda: self._layer.weights, self._density)
        self._dense: list[Program] = []
        if 4 * self._size <= DENSE_BYTES:
            self._dense = [
                self._program(self._whole, 1.0),
                Program(self._start_dense, 4 * self._size, spins=True),
            ]
        self._random = {one: self._program(partial(self._edges, one), one) for one in self._tried()}
        self._densities: dict[str, float] = {}  # of patterns that there are
        self._patterns = {
            name: self._program(partial(self._pattern, name), self._density)
            for name in (PATTERNS if layer.edges else ())
        }

    @property
    def was_run(self) -> bool:
        """Whether the layer was measured."""
        return self._now.seconds < inf

    @property
    def rounds(self) -> int:
        """How many turns the layer had."""
        return len(self._now.turns)

    def first(self) -> list[Program]:
        """Return what is to be measured first: the layer as it is, and dense."""
        return [self._now, *self._dense]

    def others(self) -> list[Program]:
        """Return what is to be measured then: other patterns, and random edges."""
        return [*self._patterns.values(), *self._random.values()]

    def advice(self) -> Advice:
        """Return what was measured."""

        def seconds(program: Program) -> float:
            return program.seconds / len(self.features)

        dense = min(map(seconds, self._dense), default=inf)
        return Advice(
            self.layers,
            *self._shape,
            self._density,
            seconds(self._now),
            None if dense == inf else dense,
            sorted((one, seconds(run)) for one, run in self._random.items() if run.seconds < inf),
            {
                name: (density, seconds(self._patterns[name]))
                for name, density in self._densities.items()
                if self._patterns[name].seconds < inf
            },
        )

    def _tried(self) -> list[float]:
        """Return densities, the most telling first."""
        if not self._layer.edges:
            return []
        tried = [one for one in DENSITIES if 8 * one * self._size <= DENSE_BYTES]
        return [self._density, *sorted(tried, key=lambda one: abs(log(one / 0.2)))]

    def _whole(self) -> Any:
        return np.random.default_rng(0).normal(0, 0.1, self._shape).astype(np.float32)

    def _edges(self, density: float) -> Any:
        return unstructured(*self._shape, density)

    def _pattern(self, name: str) -> Any:
        weights = PATTERNS[name](*self._shape, self._density)
        if weights is not None:
            self._densities[name] = weights.nnz / self._size
        return weights

    def _program(self, make: Make, density: float) -> Program:
        program = Program(
            lambda: self._start(make, program), int(_EDGE_BYTES * density * self._size)
        )
        return program

    def _start(self, make: Make, program: Program) -> Ready | Program | None:
        """Compile a layer with other weights; nothing is dropped when it runs."""
        weights = make()
        if weights is None:
            return None
        layer = Layer(weights, self._layer.bias, self._layer.activation)
        # A pattern of density 1 is any other: measured twice, it would seem to differ from itself.
        same = self._known.setdefault(_places(layer), program)
        if same is not program:
            return same
        engine = compile_network(Network([layer]), self._device, Options.mode("a"))
        self.hardware = engine.hardware
        return Ready(lambda: engine.run(self.features).trace[0].seconds, engine.close)

    def _start_dense(self) -> Ready:
        _, start = dense_program(self._device)
        run = start(self.features, self._whole(), np.zeros(self._shape[1], np.float32))
        return Ready(run, lambda: None)


def _features(layer: Layer, target: Target, device: str, has_zeros: bool) -> np.ndarray:
    """Return random features, of which half are zero where an activation makes zeros."""
    samples = 1
    if target == "throughput":
        cores = usable_cores() if device == "cpu" else 1
        weights, fewest = (given[device == "cpu"] * cores for given in (_WEIGHTS_A_RUN, _SAMPLES))
        samples = min(_MOST_SAMPLES, max(fewest, weights // (layer.n_in * layer.n_out)))
    features = np.random.default_rng(0).normal(size=(samples, layer.n_in)).astype(np.float32)
    return np.maximum(features, 0, out=features) if has_zeros else features


def _places(layer: Layer) -> bytes:
    """Return what tells where the edges of a layer are, whatever their weights."""
    if layer.edges == layer.n_in * layer.n_out:
        return b"all"
    found = blake2b()
    for part in (layer.weights.indptr, layer.weights.indices):
        found.update(np.ascontiguousarray(part).data)
    return found.digest()
