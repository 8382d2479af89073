"""The values on the edges of generated networks."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teraedge.errors import OptionsError

Weights: TypeAlias = float | str | Callable[[np.random.Generator, int], ArrayLike]
"""A constant, the name of a distribution, or a function (generator, edges) -> values."""

DISTRIBUTIONS = ("normal", "uniform")


def check_weights(weights: Weights) -> None:
    """Raise OptionsError unless `weights` is one of the forms of `Weights`."""
    constant = isinstance(weights, Real) and math.isfinite(weights)
    if not (constant or callable(weights) or weights in DISTRIBUTIONS):
        raise OptionsError(
            f"weights is {weights!r}; give a finite number, one of "
            f"{', '.join(map(repr, DISTRIBUTIONS))}, or a function (generator, edges) -> values"
        )


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int, or raise OptionsError if it is not whole or below `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise OptionsError(f"{name} is {value!r}; give a whole number of {least} or more")
    return int(value)


def draw_weights(
    weights: Weights, generator: np.random.Generator, edges: int, fan_in: float
) -> NDArray[np.float32]:
    """Return the weights of one layer.

    Parameters
    ----------
    weights : Weights
        "normal" has standard deviation sqrt(2 / fan_in) and "uniform" lies within
        +-sqrt(6 / fan_in), so that activations keep their size through ReLU layers (He et al.,
        "Delving Deep into Rectifiers", arXiv 1502.01852).
    generator : numpy.random.Generator
    edges : int
    fan_in : float
        Edges a neuron reads (on average).

    Returns
    -------
    ndarray of float32, shape (edges,)

    Raises
    ------
    OptionsError
        If a function does not return one number for each edge.
    """
    if callable(weights):
        values = np.asarray(weights(generator, edges), dtype=np.float32)
        if values.shape != (edges,):
            raise OptionsError(
                f"the weights function returned shape {values.shape}; return ({edges},) values"
            )
        return values
    if weights == "normal":
        return generator.standard_normal(edges, np.float32) * np.float32(math.sqrt(2 / fan_in))
    if weights == "uniform":
        bound = np.float32(math.sqrt(6 / fan_in))
        return (2 * generator.random(edges, np.float32) - 1) * bound
    return np.full(edges, weights, np.float32)
