"""Networks with edges at random places: no structure for an engine to find."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from teraedge.activations import Activation, ReLU
from teraedge.datasets._weights import Weights, check_weights, check_whole, draw_weights
from teraedge.errors import OptionsError
from teraedge.network import Layer, Network


def network(
    sizes: Sequence[int],
    *,
    fan_in: int | None = None,
    density: float | None = None,
    weights: Weights = "normal",
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
    seed: int = 0,
) -> Network:
    """Return a network with edges placed uniformly at random.

    Parameters
    ----------
    sizes : list of int
        Neurons at each border, input first: one more than there are layers.
    fan_in : int, optional
        Edges that every neuron reads, from distinct sources. Give this or `density`.
    density : float, optional
        Share of all possible edges that each layer has, above 0 and at most 1; their number is
        rounded, and at least 1.
    weights : float, "normal", "uniform" or callable, default "normal"
        A constant for all edges; or random with variance 2 / fan-in, normal or uniform; or a
        function ``(generator, edges) -> values``. Stored in float32.
    bias : None, scalar or array, optional
        The same for every layer.
    activation : Activation, default ReLU()
    seed : int, default 0
        Everything random follows from it; each layer is the same whenever it is made.

    Returns
    -------
    Network
        Lazy: layers are made on demand and not kept.

    Raises
    ------
    OptionsError
        If a value is not allowed.

    Examples
    --------
    >>> network([784] + [1000] * 4 + [10], fan_in=20)
    Network('random', 5 layers, 784 -> 10, 80,200 edges)
    """
    check_weights(weights)
    borders = _check_sizes(sizes)
    _check_amount(fan_in, density, min(borders[:-1]))
    source = _RandomLayers(
        sizes=borders,
        fan_in=fan_in,
        density=density,
        weights=weights,
        bias=bias,
        activation=ReLU() if activation is None else activation,
        seed=check_whole("seed", seed, 0),
    )
    return Network(source, name="random")


def _check_sizes(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, Sequence | np.ndarray) or isinstance(sizes, str) or len(sizes) < 2:
        raise OptionsError(
            f"sizes is {sizes!r}; give a list of the neurons at each border, two at least"
        )
    return tuple(check_whole("a size", size) for size in sizes)


def _check_amount(fan_in: int | None, density: float | None, sources: int) -> None:
    if (fan_in is None) == (density is None):
        raise OptionsError(
            f"fan_in is {fan_in!r} and density is {density!r}; give one and leave out the other"
        )
    if fan_in is not None and check_whole("fan_in", fan_in) > sources:
        raise OptionsError(
            f"fan_in is {fan_in}; give at most {sources}, the neurons of the smallest layer's input"
        )
    if density is not None and not 0 < density <= 1:
        raise OptionsError(f"density is {density!r}; give a number above 0 and at most 1")


@dataclass(frozen=True)
class _RandomLayers:
    """The layers of a random network, each made when asked for."""

    sizes: tuple[int, ...]
    fan_in: int | None
    density: float | None
    weights: Weights
    bias: ArrayLike | None
    activation: Activation
    seed: int

    @property
    def edges(self) -> int:
        """Stored weights of all layers."""
        return sum(map(self._edges, range(len(self))))

    def _edges(self, index: int) -> int:
        n_in, n_out = self.sizes[index : index + 2]
        if self.density is not None:
            return max(1, round(self.density * n_in * n_out))
        return (self.fan_in or 0) * n_out

    def __len__(self) -> int:
        return len(self.sizes) - 1

    def __getitem__(self, index: int) -> Layer:
        index = range(len(self))[index]
        n_in, n_out = self.sizes[index : index + 2]
        edges = self._edges(index)
        generator = np.random.default_rng([self.seed, index])
        # The transpose is made first: a row of it is what a neuron reads.
        if self.fan_in is None:
            places = _distinct(generator, 1, n_in * n_out, edges)
        else:
            places = _distinct(generator, n_out, n_in, self.fan_in)
        targets, sources = np.divmod(places, n_in)
        starts = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=n_out))])
        values = draw_weights(self.weights, generator, edges, edges / n_out)
        csc = sp.csc_array((values, sources, starts), shape=(n_in, n_out))
        return Layer(csc.tocsr(), self.bias, self.activation)


def _distinct(
    generator: np.random.Generator, groups: int, population: int, count: int
) -> NDArray[np.int64]:
    """Draw `count` distinct members of each group, every subset being equally likely.

    Returns
    -------
    ndarray of int64, shape (groups * count,)
        group * population + member, ascending.
    """
    if count > population // 2:  # draw those left out: fewer, and few of them twice
        left_out = _distinct(generator, groups, population, population - count)
        return np.setdiff1d(np.arange(groups * population), left_out, assume_unique=True)
    drawn = np.empty(0, np.int64)
    missing = np.full(groups, count)
    # As drawing one at a time and ignoring what is there already; half or more are new each time.
    while missing.any():
        owners = np.repeat(np.arange(groups), missing)
        fresh = owners * population + generator.integers(population, size=len(owners))
        drawn = np.sort(np.concatenate([drawn, fresh]))
        drawn = drawn[np.diff(drawn, prepend=-1) > 0]
        missing = count - np.bincount(drawn // population, minlength=groups)
    return drawn
