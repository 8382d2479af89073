"""The networks of mode A, random and RadiX-Nets, drawn fast, with what rivals need beside them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

import teraedge
from teraedge.datasets import radixnet
from teraedge.options import Precision
from teraedge.plan.terms import bf16_terms

UPPER = 32.0
BIAS = 0.05
SAMPLES = {1024: 60_000, 4096: 60_000, 16384: 30_000, 65536: 10_000}
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
FAN_IN = 32
WORK = 2e11
"""Executed edges that a run is to have: 25 ms at the fastest rate there may be, so that layers
weigh more than what is before and after them."""
MAX_LAYERS = 64
LARGE = 20_000_000
"""Edges of a layer from which on one is enough: they take long to draw and to lay out."""
MAX_EDGES = 50_000_000
"""Of a layer: more take minutes to draw and lay out."""


@dataclass(frozen=True)
class Case:
    """A network to be measured, not yet drawn.

    Attributes
    ----------
    name : str
        As "random-4096-5%" or "radixnet-1024-32-width-16".
    neurons, fan_in, layers, samples : int
    width : int
        Of a RadiX-Net; 0 for a random network, and 1 for the least there is.
    """

    name: str
    neurons: int
    fan_in: int
    layers: int
    samples: int
    width: int = 0

    @property
    def edges(self) -> int:
        """Of the whole network."""
        return self.neurons * self.fan_in * self.layers

    @property
    def expected_seconds(self) -> float:
        """To draw, to lay out, and to run with all rivals; a rough guess."""
        return 6 + self.edges * 4e-7 + self.edges * self.samples / 1e12 * 20


@dataclass(frozen=True)
class Drawn:
    """A network, and its layers as a rival reads them.

    Attributes
    ----------
    network : teraedge.Network
    weights : list of csr_array of float32, shape (n_out, n_in)
        The transpose of each layer's, with int32 indices, sorted.
    bias : list of ndarray of float32, shape (n_out,)
    """

    network: teraedge.Network
    weights: list[sp.csr_array]
    bias: list[NDArray[np.float32]]


def cases() -> list[Case]:
    """Return all cases, small layers first."""
    found = []
    for neurons, samples in SAMPLES.items():
        fans = {f"{FAN_IN}": FAN_IN}
        fans |= {f"{density:.1%}".replace(".0%", "%"): round(density * neurons)
                 for density in DENSITIES}  # fmt: skip
        for label, fan_in in fans.items():
            layers = depth(neurons, fan_in, samples)
            found.append(Case(f"random-{neurons}-{label}", neurons, fan_in, layers, samples))
        layers = depth(neurons, FAN_IN, samples)
        for width, label in ((1, ""), (16, "-width-16")):
            if width == 1 and radix_width(neurons) == 16:
                continue  # the least width there is
            name = f"radixnet-{neurons}-{FAN_IN}{label}"
            found.append(Case(name, neurons, FAN_IN, layers, samples, width))
    return sorted(found, key=lambda case: case.neurons * case.fan_in)


def depth(neurons: int, fan_in: int, samples: int) -> int:
    """Return the layers that make a run long enough to be timed.

    Examples
    --------
    >>> depth(1024, 32, 60_000), depth(65536, 32, 10_000), depth(65536, 328, 10_000)
    (64, 10, 1)
    """
    least = 2 if neurons * fan_in < LARGE else 1
    return min(max(ceil(WORK / (neurons * fan_in * samples)), least), MAX_LAYERS)


def radix_width(neurons: int, fan_in: int = FAN_IN) -> int:
    """Return the width of the RadiX-Net that has the least.

    Examples
    --------
    >>> [radix_width(neurons) for neurons in (1024, 4096, 16384)]
    [1, 16, 4]
    """
    for width in (1, 2, 4, 8, 16, 32):
        radix, size = fan_in // width, neurons // width
        while size > 1 and radix > 1 and size % radix == 0:
            size //= radix
        if size == 1 and radix > 1:
            return width
    raise ValueError(f"no RadiX-Net has {neurons} neurons and fan-in {fan_in}")


def draw(case: Case, seed: int = 1) -> Drawn:
    """Draw a case's weights; layers are made side by side on all cores."""

    def layer(index: int) -> tuple[teraedge.Layer, sp.csr_array, NDArray[np.float32]]:
        made = made_by(case, index, seed)
        generator = np.random.default_rng([seed, index, 2])
        bias = generator.uniform(-BIAS, BIAS, case.neurons).astype(np.float32)
        weights = made.T.tocsr()
        return teraedge.Layer(weights, bias, teraedge.ClippedReLU(UPPER)), made, bias

    made_by = radix_layer(case, seed) if case.width else random_layer
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        layers, weights, bias = zip(*pool.map(layer, range(case.layers)), strict=True)
    return Drawn(teraedge.Network(list(layers), name=case.name), list(weights), list(bias))


def rounded(drawn: Drawn, precision: Precision) -> Drawn:
    """Return a network with its weights rounded to what activations are stored as."""
    weights = [
        sp.csr_array((_rounded(w.data, precision), w.indices, w.indptr), w.shape)
        for w in drawn.weights
    ]
    layers = [
        teraedge.Layer(w.T.tocsr(), layer.bias, layer.activation)
        for w, layer in zip(weights, drawn.network, strict=True)
    ]
    return Drawn(teraedge.Network(layers, name=drawn.network.name), weights, drawn.bias)


def _rounded(values: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    if precision == "fp16":
        return values.astype(np.float16).astype(np.float32)
    return (bf16_terms(values)[0].astype(np.uint32) << 16).view(np.float32)


def radix_layer(case: Case, seed: int) -> Callable[[Case, int, int], sp.csr_array]:
    """Return what makes the transposed layers of a RadiX-Net with its neurons renamed."""
    width = case.width if case.width > 1 else None
    network = radixnet.uniform(
        case.neurons, case.fan_in, case.layers, width=width, relabel=True, seed=seed
    )

    def make(_: Case, index: int, __: int) -> sp.csr_array:
        return network[index].weights.T.tocsr()

    return make


def random_layer(case: Case, index: int, seed: int) -> sp.csr_array:
    """Return a transposed layer of a random network: exactly fan_in inputs for every neuron."""
    generator = np.random.default_rng([seed, index])
    sources = distinct(generator, case.neurons, case.neurons, case.fan_in)
    values = generator.standard_normal(sources.size, np.float32)
    values *= np.float32(np.sqrt(2 / case.fan_in))  # keeps the size of activations (He et al.)
    starts = np.arange(0, sources.size + 1, case.fan_in, dtype=np.int32)
    return sp.csr_array((values, sources.ravel(), starts), shape=(case.neurons, case.neurons))


def distinct(
    generator: np.random.Generator, rows: int, population: int, count: int
) -> NDArray[np.int32]:
    """Draw `count` distinct numbers below `population` for each row, each subset equally likely.

    Returns
    -------
    ndarray of int32, shape (rows, count)
        Ascending in every row.
    """
    if count * 16 > population:  # the places of the least of random numbers
        drawn = np.empty((rows, count), np.int32)
        step = max(1, (1 << 24) // population)
        for first in range(0, rows, step):
            part = drawn[first : first + step]
            keys = generator.random((len(part), population), np.float32)
            part[:] = np.argpartition(keys, count - 1, axis=1)[:, :count]
        drawn.sort(axis=1)
        return drawn
    drawn = np.sort(generator.integers(population, size=(rows, count), dtype=np.int32), axis=1)
    again = np.arange(rows)
    # Numbers that came twice are drawn anew until there are none, as if drawn one at a time.
    while len(again):
        part = drawn[again]
        twice = np.zeros(part.shape, np.bool_)
        twice[:, 1:] = part[:, 1:] == part[:, :-1]
        hit = twice.any(axis=1)
        again, part, twice = again[hit], part[hit], twice[hit]
        part[twice] = generator.integers(population, size=int(twice.sum()), dtype=np.int32)
        part.sort(axis=1)
        drawn[again] = part
    return drawn
