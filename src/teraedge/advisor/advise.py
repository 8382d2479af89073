"""Run the layers of a network, and others of their shapes, and say what sparsity is worth."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from math import exp, inf, log
from time import perf_counter
from typing import Any, Literal, TypeAlias

import numpy as np

from teraedge.advisor.dense import dense_program
from teraedge.advisor.patterns import PATTERNS, unstructured
from teraedge.engines import compile as compile_network
from teraedge.errors import OptionsError
from teraedge.network import Layer, Network
from teraedge.options import Options

Target = Literal["latency", "throughput"]
Step: TypeAlias = Callable[[], None]
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6)
WORTH = 1.1
"""How many times as fast as dense a layer has to be before that is called a gain."""
DENSE_BYTES = 2**31
"""Of a weight matrix that is stored whole, at most."""
_WEIGHTS_A_RUN = 2**32
_SAMPLES = 256, 4096
_REPEAT = 5, 60
_SECONDS = 0.12  # of repetitions


@dataclass(frozen=True)
class Advice:
    """What sparsity is worth in layers that are alike; times are seconds a sample.

    Attributes
    ----------
    layers : list of int
        Their numbers, from 0.
    n_in, n_out : int
    density : float
    seconds : float
        As the layer is now.
    dense_seconds : float or None
        Of a whole matrix of this shape; None where it would be too large.
    curve : list of (density, seconds)
        Of random edges, by ascending density.
    patterns : dict of str to (density, seconds)
        Other patterns of about the present density.
    """

    layers: list[int]
    n_in: int
    n_out: int
    density: float
    seconds: float
    dense_seconds: float | None
    curve: list[tuple[float, float]] = field(default_factory=list)
    patterns: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        """How many times as fast as dense the layer is now."""
        return None if self.dense_seconds is None else self.dense_seconds / self.seconds

    @property
    def gains_below(self) -> float | None:
        """The density from which down random edges are `WORTH` times as fast as dense.

        The largest that was tried where all are, 0 where none is, None where none was tried.
        """
        if self.dense_seconds is None or not self.curve:
            return None
        wanted, before = self.dense_seconds / WORTH, (0.0, 0.0)
        for density, seconds in self.curve:
            if seconds > wanted:
                if before == (0.0, 0.0):
                    return 0.0
                # Between two densities the time is taken to be a power of the density.
                slope = log(seconds / before[1]) / log(density / before[0])
                return before[0] * exp(log(wanted / before[1]) / slope)
            before = density, seconds
        return before[0]

    def to_json(self) -> dict[str, Any]:
        """Return the advice as plain values."""
        return {**asdict(self), "gain": self.gain, "gains_below": self.gains_below}


@dataclass(frozen=True)
class Advised:
    """The advice for a network.

    Attributes
    ----------
    device, hardware, target : str
    samples : int
        That ran side by side, at most.
    dense_program : str
        What ran the dense layers.
    advice : list of Advice
        Those with the most edges first.
    left_out : list of int
        Layers that time ran out for.
    """

    device: str
    hardware: str
    target: str
    samples: int
    dense_program: str
    advice: list[Advice]
    left_out: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**vars(self), "advice": [one.to_json() for one in self.advice]}


def advise(
    network: Network,
    device: str = "cpu",
    *,
    target: Target = "throughput",
    budget: float = 45.0,
    progress: Callable[[float], None] | None = None,
) -> Advised:
    """Measure, layer by layer, what the sparsity of a network is worth on a device.

    Each layer runs alone, on random features of which half are zero after an activation that makes
    zeros; beside it a dense layer, random edges of several densities, and other patterns.

    Parameters
    ----------
    network : Network
    device : str, default "cpu"
    target : {"latency", "throughput"}
        One sample at a time, or many side by side.
    budget : float, default 45
        Seconds, about; what has not been measured when they have passed is left out.
    progress : callable, optional
        Told how much is done, from 0 to 1.

    Returns
    -------
    Advised

    Raises
    ------
    OptionsError
        If the target is not known.
    DeviceError
        If there is no such device.
    """
    if target not in ("latency", "throughput"):
        raise OptionsError(f"target is {target!r}; allowed: 'latency', 'throughput'")
    end = perf_counter() + budget
    benches = [
        _Bench(network[layers[0]], layers, device, target, _has_zeros(network, layers[0]))
        for layers in _alike(network)
    ]
    # First what each layer is worth now; then what it could be, those of most edges first.
    steps = [step for bench in benches for step in bench.first()]
    steps += [step for bench in benches for step in bench.others()]
    for number, step in enumerate(steps, 1):
        if perf_counter() > end:
            break
        step()
        if progress is not None:
            progress(number / len(steps))
    ran = [bench for bench in benches if bench.was_run]
    return Advised(
        device,
        next((bench.hardware for bench in ran), device),
        target,
        max((len(bench.features) for bench in ran), default=1),
        dense_program(device)[0],
        [bench.advice() for bench in ran],
        sorted(number for bench in benches if not bench.was_run for number in bench.layers),
    )


def _alike(network: Network) -> list[list[int]]:
    """Return the layers of the same shape and about the same density, those of most edges first."""
    groups: dict[tuple[int, int, str], list[int]] = {}
    edges = {}
    for number, layer in enumerate(network):
        key = layer.n_in, layer.n_out, f"{layer.edges:.1e}"
        groups.setdefault(key, []).append(number)
        edges[key] = layer.edges
    return [groups[key] for key in sorted(groups, key=lambda key: -edges[key])]


def _has_zeros(network: Network, number: int) -> bool:
    """Tell whether a layer reads what an activation has set to zero in half of the places."""
    return number > 0 and network[number - 1].activation.clamp[0] == 0


class _Bench:
    """Layers that are alike, one of which runs, and what is compared with it."""

    def __init__(
        self, layer: Layer, layers: list[int], device: str, target: Target, has_zeros: bool
    ) -> None:
        self.layers, self._layer, self._device = layers, layer, device
        self._shape = layer.n_in, layer.n_out
        samples = 1
        if target == "throughput":
            fewest, most = _SAMPLES
            samples = min(most, max(fewest, _WEIGHTS_A_RUN // (layer.n_in * layer.n_out)))
        rng = np.random.default_rng(0)
        self.features = rng.normal(size=(samples, layer.n_in)).astype(np.float32)
        if has_zeros:
            np.maximum(self.features, 0, out=self.features)
        self.hardware = ""
        self._now = inf
        self._dense: float | None = None
        self._density = layer.edges / (layer.n_in * layer.n_out)
        self._curve: dict[float, float] = {}
        self._patterns: dict[str, tuple[float, float]] = {}

    @property
    def was_run(self) -> bool:
        """Whether anything was measured."""
        return self._now < inf

    def first(self) -> list[Step]:
        """Return what is to be measured first: the layer as it is, and dense."""
        steps: list[Step] = [self._measure_now]
        if 4 * self._layer.n_in * self._layer.n_out <= DENSE_BYTES:
            steps.append(self._measure_dense)
        return steps

    def others(self) -> list[Step]:
        """Return what is to be measured then: other patterns, and random edges."""
        if not self._layer.edges:
            return []
        size = self._layer.n_in * self._layer.n_out
        densities = [one for one in DENSITIES if 8 * one * size <= DENSE_BYTES]
        densities.sort(key=lambda one: abs(log(one / 0.2)))
        return [
            *(partial(self._measure_pattern, name) for name in PATTERNS),
            *(partial(self._measure_random, one) for one in (self._density, *densities)),
        ]

    def advice(self) -> Advice:
        """Return what was measured."""
        return Advice(
            self.layers,
            *self._shape,
            self._density,
            self._now,
            self._dense,
            sorted(self._curve.items()),
            self._patterns,
        )

    def _measure_now(self) -> None:
        self._now = self._seconds(self._layer.weights)

    def _measure_dense(self) -> None:
        weights = np.random.default_rng(0).normal(0, 0.1, self._shape).astype(np.float32)
        bias = np.zeros(self._shape[1], np.float32)
        _, start = dense_program(self._device)
        run = start(self.features, weights, bias)
        self._dense = min(self._best(run), self._seconds(weights))

    def _measure_pattern(self, name: str) -> None:
        weights = PATTERNS[name](*self._shape, self._density)
        if weights is not None:
            density = weights.nnz / (self._shape[0] * self._shape[1])
            self._patterns[name] = density, self._seconds(weights)

    def _measure_random(self, density: float) -> None:
        self._curve[density] = self._seconds(unstructured(*self._shape, density))

    def _seconds(self, weights: Any) -> float:
        """Return the seconds a sample of a layer with other weights; nothing is dropped."""
        layer = Layer(weights, self._layer.bias, self._layer.activation)
        options = Options.mode("a")
        with compile_network(Network([layer]), self._device, options) as engine:
            self.hardware = engine.hardware
            return self._best(lambda: engine.run(self.features).trace[0].seconds)

    def _best(self, run: Callable[[], float]) -> float:
        """Return the seconds a sample of the fastest run: others on the machine only add time."""
        run()
        best, end, number = inf, perf_counter() + _SECONDS, 0
        while number < _REPEAT[0] or (perf_counter() < end and number < _REPEAT[1]):
            best, number = min(best, run()), number + 1
        return max(best, 1e-9) / len(self.features)
