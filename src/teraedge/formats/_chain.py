"""From a graph of linear maps, activations and sums, as importers find it, to a chain of layers.

Values are computed from neurons that run: a value is x = n M + c, with n the last layer so far. A
linear map, a scale or a sum only changes M and c; an activation makes the next layer, f(n M + c).
What is needed later, as x in the residual sum x + g(x), is carried through that layer beside it,
in the cheapest way that keeps it exactly:

- by the neurons it is computed from, where f(n) = n for all values that they can have (ReLU after
  ReLU, any values where f is the identity);
- by itself, where f(x) = x for all its values;
- by two halves f(x) and f(-x), where f(x) - f(-x) = x: ReLU, and, with the rounding of f, GELU and
  SiLU, which are x P(x) with P(x) + P(-x) = 1.

Where none of them holds, the sum is refused. Scales are folded in float64 and rounded once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.activations import Activation, Identity
from teraedge.errors import ModelError
from teraedge.network import Layer, Network


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


class _Map(NamedTuple):
    """A value as n M + c of the neurons n of the last layer."""

    matrix: sp.csr_array
    constant: NDArray[np.float64]

    @property
    def edges(self) -> int:
        return int(self.matrix.nnz)

    @property
    def picks(self) -> bool:
        """Whether each number comes from one neuron at most."""
        return bool((np.bincount(self.matrix.indices, minlength=1) <= 1).all())

    def times(self, factor: Any) -> "_Map":
        return _Map(sp.csr_array(self.matrix * factor), self.constant * factor)


class _Chain:
    """The layers so far, and the values that the last of them gives."""

    def __init__(self, given: Value, dtype: np.dtype[Any]) -> None:
        self.layers: list[Layer] = []
        self.dtype = dtype
        self.neurons = given.size
        self.lower, self.upper = np.full(self.neurons, -np.inf), np.full(self.neurons, np.inf)
        self.maps: dict[Value, _Map] = {given: _identity(self.neurons)}

    def write(self, value: Value, x: _Map, activation: Activation, keep: list[Value]) -> None:
        """Add the layer f(x), which is `value`, and carry what is to be kept."""
        carried = [self._carried(other, activation, value) for other in keep]
        parts = [x, *(through for through, _, _, _ in carried)]
        matrix = sp.csr_array(sp.hstack([part.matrix for part in parts], format="csr"))
        matrix.eliminate_zeros()
        bias = np.concatenate([part.constant for part in parts])
        self.layers.append(self._layer(matrix, bias, activation))
        self.neurons = matrix.shape[1]
        size = x.matrix.shape[1]
        lower, upper = activation.range
        ranges = [(np.full(size, lower), np.full(size, upper)), *(part[2:] for part in carried)]
        self.maps = {value: _placed(_identity(size), 0, self.neurons)}
        begin = size
        for other, (through, back, *_) in zip(keep, carried, strict=True):
            self.maps[other] = _placed(back, begin, self.neurons)
            begin += through.matrix.shape[1]
        self.lower = np.concatenate([low for low, _ in ranges])
        self.upper = np.concatenate([high for _, high in ranges])

    def materialise(self, value: Value, keep: list[Value]) -> None:
        """Make a value the neurons of the last layer, beside others."""
        others = [other for other in dict.fromkeys(keep) if other is not value]
        self.write(value, self.maps[value], Identity(), others)

    def _layer(self, matrix: sp.csr_array, bias: NDArray[Any], activation: Activation) -> Layer:
        with np.errstate(over="ignore"):
            weights, single = matrix.astype(self.dtype), bias.astype(self.dtype)
        if not (np.isfinite(weights.data).all() and np.isfinite(single).all()):
            raise ModelError(
                f"layer {len(self.layers)} has a weight or bias that is not a finite {self.dtype}; "
                "check the model, its variances above all"
            )
        return Layer(weights, single if single.any() else None, activation)

    def _range(self, x: _Map) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return between which bounds the numbers of a value lie."""
        positive, negative = x.matrix.maximum(0).T, x.matrix.minimum(0).T
        with np.errstate(invalid="ignore"):  # infinity less infinity
            lower = x.constant + _dot(positive, self.lower) + _dot(negative, self.upper)
            upper = x.constant + _dot(positive, self.upper) + _dot(negative, self.lower)
        return np.nan_to_num(lower, nan=-np.inf, posinf=np.inf, neginf=-np.inf), np.nan_to_num(
            upper, nan=np.inf, posinf=np.inf, neginf=-np.inf
        )

    def _carried(
        self, other: Value, activation: Activation, beside: Value
    ) -> tuple[_Map, _Map, NDArray[Any], NDArray[Any]]:
        """Return how a value goes through a layer and is read behind it, and the neurons' range."""
        x = self.maps[other]
        low, high = activation.keeps
        read = np.flatnonzero(np.diff(x.matrix.indptr))
        ways = []
        if (self.lower[read] >= low).all() and (self.upper[read] <= high).all():
            pick = _identity(self.neurons).matrix[:, read]
            through = _Map(sp.csr_array(pick), np.zeros(len(read)))
            back = _Map(sp.csr_array(x.matrix[read]), x.constant)
            ways.append((through, back, self.lower[read], self.upper[read]))
        lower, upper = self._range(x)
        if (lower >= low).all() and (upper <= high).all():
            ways.append((x, _identity(other.size), lower, upper))
        if not ways and activation.halves:
            both = sp.csr_array(sp.hstack([x.matrix, -x.matrix], format="csr"))
            through = _Map(both, np.concatenate([x.constant, -x.constant]))
            eye = sp.eye_array(other.size)
            back = _Map(sp.csr_array(sp.vstack([eye, -eye])), np.zeros(other.size))
            bottom = activation.range[0]
            ends = np.full(2 * other.size, bottom), np.full(2 * other.size, np.inf)
            ways.append((through, back, *ends))
        if not ways:
            raise ModelError(
                f"{other.where} is needed again after {beside.where}, and a chain of layers cannot "
                f"carry it past {activation!r}; use ReLU, GELU or SiLU there, or cut the model "
                "into chains"
            )
        return min(ways, key=lambda way: way[0].edges + way[1].edges)


def _dot(matrix: Any, vector: NDArray[Any]) -> NDArray[Any]:
    """Multiply, where infinities meet stored numbers other than zero only."""
    matrix = sp.csr_array(matrix)
    matrix.eliminate_zeros()
    return np.asarray(matrix @ vector)


def _identity(size: int) -> _Map:
    return _Map(sp.csr_array(sp.eye_array(size)), np.zeros(size))


def _placed(x: _Map, begin: int, neurons: int) -> _Map:
    """Return a map of some neurons as one of all of them."""
    coo = x.matrix.tocoo()
    shape = neurons, x.matrix.shape[1]
    return _Map(sp.csr_array((coo.data, (coo.row + begin, coo.col)), shape=shape), x.constant)


def chain(
    output: Value,
    *,
    dtype: Any,
    head: str | None = None,
    name: str | None = None,
    notes: Iterable[str] = (),
) -> Network:
    """Return the network that computes a value.

    Parameters
    ----------
    output : Value
        Of one axis.
    dtype : dtype
        Of the model's numbers; weights become float32, or float64 for float64.
    head, name : str, optional
    notes : iterable of str
        More is added where sums made the network larger.

    Raises
    ------
    ModelError
        If the graph cannot be a chain.
    """
    output, found, notes = _without_ending(output, notes)
    head = found or head
    order = _order(output)
    for value in order:
        for before in value.inputs:
            if isinstance(before, Ending):
                raise ModelError(
                    f"{before.where} is followed by {value.where}; it is supported at the end only"
                )
    last_use = {x: index for index, value in enumerate(order) for x in value.inputs}
    last_use[output] = len(order)
    given = order[0]
    built = _Chain(given, np.result_type(dtype, np.float32))
    for index, value in enumerate(order[1:], 1):
        kept = [other for other in built.maps if last_use.get(other, -1) > index]
        _add(built, value, kept)
        built.maps = {
            other: x for other, x in built.maps.items() if last_use.get(other, -1) > index
        }
    x = built.maps[output]
    whole = _identity(built.neurons)
    same = x.matrix.shape == whole.matrix.shape and (x.matrix != whole.matrix).nnz == 0
    if not (built.layers and same and not x.constant.any()):
        built.materialise(output, [])
    edges = sum(layer.edges for layer in built.layers)
    more = edges - sum(value.weights.nnz for value in order if isinstance(value, Linear))
    if more > 0:
        notes = [
            *notes,
            f"{more:,} of {edges:,} edges were added: for values carried past layers to the sums "
            "that need them, and for what no layer beside it can take in",
        ]
    return Network(built.layers, head=head, name=name, notes=notes)


def _without_ending(output: Value, notes: Iterable[str]) -> tuple[Value, str | None, Iterable[str]]:
    """Return what is before the head and argmax, the head, and the notes with one on argmax."""
    kinds = []
    while isinstance(output, Ending) or (isinstance(output, Sum) and output.factors == (1.0,)):
        if isinstance(output, Ending):
            kinds.append(output.kind)
        output = output.inputs[0]
    if kinds[:1] == ["argmax"]:
        notes = [*notes, "argmax at the end is left out: Result.labels is it"]
        kinds = kinds[1:]
    if len(kinds) > 1:
        raise ModelError(f"the model ends with {' of '.join(kinds)}; give it one of them")
    return output, kinds[0] if kinds else None, notes


def _add(built: _Chain, value: Value, kept: list[Value]) -> None:
    """Take in the next value of the graph; `kept` are those that are needed after it."""
    maps = built.maps
    if isinstance(value, Activated):
        x = value.inputs[0]
        for other in kept:
            if built.maps[other].edges > 2 * other.size:  # rather once than carried and read
                follows = isinstance(x, Scaled | Sum) and set(x.inputs) <= {*kept, other}
                built.materialise(other, kept if follows else [*kept, x])
                if follows:
                    _add(built, x, kept)
        built.write(value, built.maps[x], value.activation, kept)
    elif isinstance(value, Linear):
        x = value.inputs[0]
        if not maps[x].picks:
            built.materialise(x, kept)
        matrix, constant = built.maps[x]
        weights = value.weights.astype(np.float64)
        built.maps[value] = _Map(sp.csr_array(matrix @ weights), constant @ weights + value.bias)
    elif isinstance(value, Scaled):
        x_scaled = maps[value.inputs[0]].times(value.scale)
        maps[value] = _Map(x_scaled.matrix, x_scaled.constant + value.shift)
    elif not isinstance(value, Sum):
        raise ModelError(f"{value.where} is used in a way that is not supported")
    else:
        matrix, constant = maps[value.inputs[0]].times(value.factors[0])
        for x, factor in zip(value.inputs[1:], value.factors[1:], strict=True):
            more = maps[x].times(factor)
            matrix, constant = sp.csr_array(matrix + more.matrix), constant + more.constant
        maps[value] = _Map(matrix, constant)


def _order(output: Value) -> list[Value]:
    """Return the values that one is computed from, and itself, each after its inputs."""
    found: dict[Value, None] = {}
    waiting: list[tuple[Value, bool]] = [(output, False)]
    while waiting:
        value, ready = waiting.pop()
        if value in found:
            continue
        if ready:
            found[value] = None
            continue
        waiting.append((value, True))
        waiting += [(x, False) for x in reversed(value.inputs)]
    order = list(found)
    if any(not value.inputs for value in order[1:]) or order[0].inputs:
        raise ModelError("the model has more than one input; give one that has a single tensor")
    return order
