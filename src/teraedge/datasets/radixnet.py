"""RadiX-Nets: sparse networks in which every input reaches every output by equally many paths.

The construction of Robinett and Kepner, "RadiX-Net: Structured Sparse Matrices for Deep Neural
Networks" (arXiv 1905.00416), with weights, biases and relabelings on top.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teraedge.activations import Activation, ReLU
from teraedge.datasets._circulant import circulant_destinations, regular_csr
from teraedge.datasets._weights import Weights, check_weights, check_whole, draw_weights
from teraedge.errors import OptionsError
from teraedge.network import Layer, Network

_SHOWN = 8  # fan-ins that an error message offers


def network(
    systems: Sequence[Sequence[int]],
    widths: int | Sequence[int] | None = None,
    *,
    size: int | None = None,
    weights: Weights = "normal",
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
    relabel: bool = False,
    seed: int = 0,
) -> Network:
    """Return the RadiX-Net of some mixed-radix numeral systems.

    Each radix makes one layer. In the layer of the i-th radix of a system (N_1, N_2, ...), source
    s has edges to the destinations s + n * (N_1 * ... * N_(i-1)) mod N', for n = 0 ... N_i - 1: it
    may change the i-th digit. Widening replaces every neuron of border k by ``widths[k]`` neurons,
    and every edge by all edges between the neurons that replace its ends (a Kronecker product).

    Parameters
    ----------
    systems : list of lists of int
        The radices, 2 or more. All systems but the last have the same product N', which the
        product of the last divides.
    widths : int or list of int, optional
        Neurons that replace one, at each of the ``layers + 1`` borders, input first; one number
        for all. By default 1.
    size : int, optional
        N'; by default the product of the first system. Needed only for a single system that is
        not to reach all of N' neurons.
    weights : float, "normal", "uniform" or callable, default "normal"
        A constant for all edges; or random with variance 2 / fan-in, normal or uniform; or a
        function ``(generator, edges) -> values``. Stored in float32.
    bias : None, scalar or array, optional
        The same for every layer.
    activation : Activation, default ReLU()
    relabel : bool, default False
        Rename the neurons between layers at random, which hides the structure and changes no path
        between inputs and outputs, which keep their names.
    seed : int, default 0
        Everything random follows from it; each layer is the same whenever it is made.

    Returns
    -------
    Network
        Lazy: layers are made on demand and not kept.

    Raises
    ------
    OptionsError
        If the systems break the rule above or another value is not allowed.

    Examples
    --------
    >>> network([[2, 2, 3], [3, 4]], widths=5)
    Network('radixnet', 5 layers, 60 -> 60, 4,200 edges)
    >>> network([[3, 2]], weights=1.0)[0].weights.toarray().astype(int)
    array([[1, 1, 1, 0, 0, 0],
           [0, 1, 1, 1, 0, 0],
           [0, 0, 1, 1, 1, 0],
           [0, 0, 0, 1, 1, 1],
           [1, 0, 0, 0, 1, 1],
           [1, 1, 0, 0, 0, 1]])
    """
    check_weights(weights)
    radices, size = _check_systems(systems, size)
    source = _RadixLayers(
        size=size,
        steps=tuple(_steps(radices)),
        widths=_check_widths(widths, sum(map(len, radices))),
        weights=weights,
        bias=bias,
        activation=ReLU() if activation is None else activation,
        relabel=relabel,
        seed=check_whole("seed", seed, 0),
    )
    return Network(source, name="radixnet")


def uniform(
    neurons: int,
    fan_in: int,
    layers: int,
    *,
    width: int | None = None,
    weights: Weights = "normal",
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
    relabel: bool = False,
    seed: int = 0,
) -> Network:
    """Return a RadiX-Net whose layers all have the same neurons and edges.

    Every neuron has `fan_in` edges in and out. The systems have one radix r = fan_in / width, and
    neurons / width is a power of r: so many layers connect every input with every output.

    Parameters
    ----------
    neurons, fan_in, layers : int
    width : int, optional
        Of the widening; by default the smallest that fits. The Graph Challenge has 16.
    weights, bias, activation, relabel, seed
        As for `network`.

    Returns
    -------
    Network

    Raises
    ------
    OptionsError
        If no such network exists; the message says which fan-ins exist for these neurons.

    Examples
    --------
    >>> uniform(1024, 32, 10)
    Network('radixnet', 10 layers, 1024 -> 1024, 327,680 edges)
    """
    neurons = check_whole("neurons", neurons)
    fan_in, layers = check_whole("fan_in", fan_in), check_whole("layers", layers)
    wanted = None if width is None else check_whole("width", width)
    choices = [
        (found, radix, digits)
        for found, radix, digits in _uniform_systems(neurons)
        if found * radix == fan_in and wanted in (None, found)
    ]
    if not choices:
        raise OptionsError(_no_uniform(neurons, fan_in, wanted))
    found, radix, digits = min(choices)
    full, rest = divmod(layers, digits)
    return network(
        [[radix] * digits] * full + [[radix] * rest] * (rest > 0),
        found,
        size=neurons // found,
        weights=weights,
        bias=bias,
        activation=activation,
        relabel=relabel,
        seed=seed,
    )


def _uniform_systems(neurons: int) -> Iterator[tuple[int, int, int]]:
    """Give all (width, radix, digits) with width * radix**digits = neurons."""
    for width in range(1, neurons // 2 + 1):
        size, rest = divmod(neurons, width)
        if rest:
            continue
        digits = 1
        while 2**digits <= size:
            radix = round(size ** (1 / digits))
            if radix**digits == size:
                yield width, radix, digits
            digits += 1


def _no_uniform(neurons: int, fan_in: int, width: int | None) -> str:
    possible = {w * radix for w, radix, _ in _uniform_systems(neurons) if width in (None, w)}
    nearest = sorted(sorted(possible, key=lambda other: abs(other - fan_in))[:_SHOWN])
    of_width = "" if width is None else f" and width {width}"
    advice = (
        f"fan-ins that exist, the nearest first to last: {', '.join(map(str, nearest))}"
        if nearest
        else "choose another number of neurons or width"
    )
    return f"no uniform RadiX-Net has {neurons} neurons, fan-in {fan_in}{of_width}; {advice}"


def _check_systems(systems: Any, size: int | None) -> tuple[list[list[int]], int]:
    """Return the radices and N', or raise OptionsError."""
    try:
        radices = [list(system) for system in systems]
    except TypeError:
        radices = []
    if not radices or not all(radices):
        raise OptionsError(
            f"systems is {systems!r}; give a list of lists of radices, such as [[2, 2, 3], [4, 3]]"
        )
    radices = [[check_whole("a radix", radix, 2) for radix in system] for system in radices]
    products = [prod(system) for system in radices]
    size = products[0] if size is None else check_whole("size", size, 2)
    if any(product != size for product in products[:-1]) or size % products[-1]:
        raise OptionsError(
            f"the systems have products {products} for size {size}; all but the last must equal "
            "the size, and the last must divide it"
        )
    return radices, size


def _check_widths(widths: Any, layers: int) -> tuple[int, ...]:
    if widths is None or isinstance(widths, int | np.integer):
        return (check_whole("widths", 1 if widths is None else widths),) * (layers + 1)
    checked = tuple(check_whole("a width", width) for width in widths)
    if len(checked) != layers + 1:
        raise OptionsError(
            f"widths has {len(checked)} numbers; {layers} layers have {layers + 1} borders"
        )
    return checked


def _steps(radices: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Give each layer's radix and the place value of its digit."""
    for system in radices:
        place = 1
        for radix in system:
            yield radix, place
            place *= radix


@dataclass(frozen=True)
class _RadixLayers:
    """The layers of a RadiX-Net, each made when asked for."""

    size: int
    steps: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    weights: Weights
    bias: ArrayLike | None
    activation: Activation
    relabel: bool
    seed: int

    @property
    def edges(self) -> int:
        """Stored weights of all layers."""
        borders = zip(self.widths[:-1], self.widths[1:], strict=True)
        return self.size * sum(
            radix * n_in * n_out
            for (radix, _), (n_in, n_out) in zip(self.steps, borders, strict=True)
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Layer:
        index = range(len(self))[index]
        (radix, place), width_in, width_out = self.steps[index], *self.widths[index : index + 2]
        destinations = circulant_destinations(
            np.arange(self.size * width_in) % self.size,
            np.arange(radix) * place,
            self.size,
            width_out,
        )
        if self.relabel:
            destinations = destinations[self._old_names(index)]
            destinations = np.sort(self._new_names(index + 1)[destinations], axis=1)
        values = draw_weights(
            self.weights,
            np.random.default_rng([self.seed, index, 0]),
            destinations.size,
            radix * width_in,
        )
        csr = regular_csr(destinations, values, self.size * width_out)
        return Layer(csr, self.bias, self.activation)

    def _old_names(self, border: int) -> NDArray[np.int32]:
        """Return the neuron that each new name stands for; inputs and outputs keep theirs."""
        names = np.arange(self.size * self.widths[border], dtype=np.int32)
        if 0 < border < len(self):
            np.random.default_rng([self.seed, border, 1]).shuffle(names)
        return names

    def _new_names(self, border: int) -> NDArray[np.int32]:
        """Return the new name of each neuron: the inverse of `_old_names`."""
        old = self._old_names(border)
        new = np.empty_like(old)
        new[old] = np.arange(len(old), dtype=np.int32)
        return new
