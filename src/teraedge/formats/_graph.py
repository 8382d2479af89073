"""What importers find in a model: a graph of linear maps, activations, scales and sums.

`_chain` makes layers of it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.activations import Activation, Identity
from teraedge.errors import ModelError


@dataclass(eq=False)
class Value:
    """A value of the graph: what an operation gives for a sample.

    Attributes
    ----------
    shape : tuple of int
        Without the axis of samples; values lie in C order.
    inputs : tuple of Value
    where : str
        What it is in the model, for people.
    """

    shape: tuple[int, ...]
    inputs: "tuple[Value, ...]" = ()
    where: str = ""

    @property
    def size(self) -> int:
        """Numbers a sample."""
        return math.prod(self.shape)


@dataclass(eq=False)
class Linear(Value):
    """x W + b."""

    weights: sp.csr_array = field(default=None)
    bias: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class Activated(Value):
    """f(x)."""

    activation: Activation = field(default_factory=Identity)


@dataclass(eq=False)
class Scaled(Value):
    """X times `scale` plus `shift`, elementwise."""

    scale: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class Sum(Value):
    """The sum of the inputs, each times its factor."""

    factors: tuple[float, ...] = ()


@dataclass(eq=False)
class Ending(Value):
    """What may only come at the end, over all numbers of a sample: a head, or argmax."""

    kind: str = "argmax"


def ended(x: Value, kind: str, axis: Any, where: str) -> Ending:
    """Return a head or argmax over an axis, which must be that of the outputs."""
    if len(x.shape) != 1 or axis not in (1, -1):
        raise ModelError(
            f"{where} goes over axis {axis} of {len(x.shape) + 1}; give axis 1, over the outputs "
            "of a sample"
        )
    return Ending(x.shape, (x,), where, kind)


def linear(x: Value, weights: Any, bias: Any, where: str) -> Linear:
    """Return x W + b.

    Parameters
    ----------
    x : Value
        Of shape (n_in,).
    weights : sparse or dense array, shape (n_in, n_out)
    bias : array, shape (n_out,), or None
    where : str
    """
    if x.shape != weights.shape[:1]:
        raise ModelError(
            f"{where} reads {weights.shape[0]} numbers a sample and is given {_shape(x)}; flatten "
            "them first, or give the shape of the input"
        )
    bias = np.zeros(weights.shape[1]) if bias is None else np.asarray(bias, np.float64)
    bias = np.broadcast_to(bias, (weights.shape[1],))
    return Linear((weights.shape[1],), (x,), where, sp.csr_array(weights), bias)


def given_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of the input that a caller gives, checked."""
    sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else (shape,)
    if not sizes or not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
        raise ModelError(
            f"input_shape is {shape!r}; give whole numbers above 0, without the axis of samples, "
            "such as (784,) or (1, 28, 28)"
        )
    return tuple(int(size) for size in sizes)


def activated(x: Value, activation: Activation, where: str) -> Value:
    """Return f(x)."""
    return x if activation == Identity() else Activated(x.shape, (x,), where, activation)


def scaled(x: Value, scale: Any, shift: Any, where: str) -> Value:
    """Return x times `scale` plus `shift`, which broadcast to the shape of x."""
    try:
        scale, shift = (
            np.broadcast_to(np.asarray(part, np.float64), x.shape).ravel()
            for part in (scale, shift)
        )
    except ValueError:
        raise ModelError(
            f"{where} has constants of shape {np.shape(scale)} and {np.shape(shift)} for "
            f"{_shape(x)} numbers a sample; they must broadcast to them"
        ) from None
    return Scaled(x.shape, (x,), where, scale, shift)


def added(values: Iterable[Value], factors: Iterable[float], where: str) -> Value:
    """Return the sum of values, each times its factor."""
    values = tuple(values)
    if len({value.shape for value in values}) > 1:
        shapes = " and ".join(_shape(value) for value in values)
        raise ModelError(f"{where} adds values of {shapes} numbers a sample; give equal shapes")
    return Sum(values[0].shape, values, where, tuple(factors))


def reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    """Return x with the same numbers in another shape."""
    return Sum(shape, (x,), x.where, (1.0,))


def _shape(value: Value) -> str:
    return " x ".join(map(str, value.shape)) or "1"
