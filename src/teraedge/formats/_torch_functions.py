# ruff: noqa: A002 (parameters have the names that torch gives them)
"""What reads each function and each method of a traced PyTorch module; see `_torch_trace`.

All take the reader, the node for people, and the arguments of the function.
"""

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody does)

from teraedge.activations import GELU, Activation, Sigmoid, SiLU, Tanh, clipped
from teraedge.errors import ModelError
from teraedge.formats import _graph
from teraedge.formats._graph import Value
from teraedge.formats._support import unsupported

if TYPE_CHECKING:
    from teraedge.formats._torch_trace import Reader


class _Batch:
    """The number of samples, which a module may ask for."""


BATCH = _Batch()


def relu(reader: "Reader", where: str, input: Value, inplace: bool = False) -> Value:
    return _graph.activated(input, clipped(0.0, math.inf), where)


def relu6(reader: "Reader", where: str, input: Value, inplace: bool = False) -> Value:
    return _graph.activated(input, clipped(0.0, 6.0), where)


def hardtanh(
    reader: "Reader",
    where: str,
    input: Value,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Value:
    return _graph.activated(input, clipped(float(min_val), float(max_val)), where)


def clamp(
    reader: "Reader",
    where: str,
    input: Value,
    min: Any = None,
    max: Any = None,
) -> Value:
    if any(isinstance(bound, Value | torch.Tensor) for bound in (min, max)):
        raise ModelError(f"{where} has bounds that are tensors; give numbers")
    lower = -math.inf if min is None else float(min)
    return _graph.activated(input, clipped(lower, math.inf if max is None else float(max)), where)


def gelu(reader: "Reader", where: str, input: Value, approximate: str = "none") -> Value:
    return _graph.activated(input, GELU(approximate), where)


def _curve(activation: Activation) -> Callable[..., Value]:
    def read(reader: "Reader", where: str, input: Value, inplace: bool = False) -> Value:
        return _graph.activated(input, activation, where)

    return read


def same(reader: "Reader", where: str, input: Value, *_: Any, **__: Any) -> Value:
    return input


def linear(
    reader: "Reader",
    where: str,
    input: Value,
    weight: Any,
    bias: Any = None,
) -> Value:
    return reader.linear(where, input, weight, bias)


def matmul(reader: "Reader", where: str, input: Any, other: Any) -> Value:
    if isinstance(other, Value) or not isinstance(input, Value):
        raise unsupported(f"a product whose second factor is no constant ({where})")
    weights = reader.numbers(other, where)
    if weights.ndim != 2:
        raise ModelError(f"{where} has weights of shape {weights.shape}; give a matrix")
    return _graph.linear(input, weights, None, where)


def _ending(head: str) -> Callable[..., Value]:
    def read(
        reader: "Reader", where: str, input: Value, dim: Any = None, *_: Any, **__: Any
    ) -> Value:
        return _graph.ended(input, head, dim, where)

    return read


softmax, log_softmax, argmax = map(_ending, ("softmax", "log_softmax", "argmax"))


def flatten(
    reader: "Reader",
    where: str,
    input: Value,
    start_dim: int = 0,
    end_dim: int = -1,
) -> Value:
    axes = len(input.shape) + 1
    start, end = start_dim % axes, end_dim % axes
    if start == 0:
        raise ModelError(f"{where} flattens the axis of samples; give start_dim=1")
    middle = math.prod(input.shape[start - 1 : end])
    return _graph.reshaped(input, (*input.shape[: start - 1], middle, *input.shape[end:]))


def unflatten(where: str, x: Value, dim: int, sizes: Any) -> Value:
    axis = dim % (len(x.shape) + 1) - 1
    shape = (*x.shape[:axis], *map(int, sizes), *x.shape[axis + 1 :])
    if axis < 0 or math.prod(shape) != x.size:
        raise ModelError(f"{where} gives the shape {shape} to {x.size} numbers a sample")
    return _graph.reshaped(x, shape)


def reshape(reader: "Reader", where: str, input: Value, *sizes: Any) -> Value:
    wanted = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else [*sizes]
    if wanted and wanted[0] == -1 and -1 not in wanted[1:]:
        wanted[0] = BATCH
    if not wanted or wanted[0] is not BATCH or BATCH in wanted[1:]:
        raise ModelError(
            f"{where} gives the shape {tuple(wanted)}; the axis of samples must stay, as in "
            "x.flatten(1) or x.view(x.size(0), -1)"
        )
    shape = [int(size) for size in wanted[1:]]
    known = -math.prod(shape) if -1 in shape else math.prod(shape)
    if -1 in shape and known and input.size % known == 0:
        shape[shape.index(-1)] = input.size // known
    if math.prod(shape) != input.size:
        raise ModelError(f"{where} gives the shape {tuple(shape)} to {input.size} numbers a sample")
    return _graph.reshaped(input, tuple(shape))


def size(reader: "Reader", where: str, input: Value, dim: int | None = None) -> Any:
    sizes = (BATCH, *input.shape)
    return sizes if dim is None else sizes[dim]


def get_attribute(reader: "Reader", where: str, thing: Any, name: str) -> Any:
    if isinstance(thing, Value) and name == "shape":
        return size(reader, where, thing)
    if isinstance(thing, Value):
        raise unsupported(f"the attribute {name} ({where})")
    return getattr(thing, name)


def get_item(reader: "Reader", where: str, thing: Any, key: Any) -> Any:
    if isinstance(thing, Value):
        raise unsupported(f"indexing of a tensor ({where})")
    return thing[key]


def add(
    reader: "Reader",
    where: str,
    input: Any,
    other: Any,
    alpha: float = 1,
) -> Any:
    return _sum(reader, where, input, other, float(alpha))


def subtract(
    reader: "Reader",
    where: str,
    input: Any,
    other: Any,
    alpha: float = 1,
) -> Any:
    return _sum(reader, where, input, other, -float(alpha))


def _sum(reader: "Reader", where: str, one: Any, other: Any, factor: float) -> Any:
    if isinstance(one, Value) and isinstance(other, Value):
        return _graph.added((one, other), (1.0, factor), where)
    if isinstance(one, Value):
        shift = reader.numbers(other, where) * factor
        return _graph.scaled(one, 1.0, shift, where)
    if isinstance(other, Value):
        return _graph.scaled(other, factor, reader.numbers(one, where), where)
    return one + factor * other


def multiply(reader: "Reader", where: str, input: Any, other: Any) -> Any:
    if isinstance(input, Value) and isinstance(other, Value):
        raise unsupported(f"a product of two values ({where})")
    if isinstance(input, Value):
        return _graph.scaled(input, reader.numbers(other, where), 0.0, where)
    if isinstance(other, Value):
        return _graph.scaled(other, reader.numbers(input, where), 0.0, where)
    return input * other


def divide(reader: "Reader", where: str, input: Any, other: Any) -> Any:
    if isinstance(other, Value):
        raise unsupported(f"a quotient by a value ({where})")
    if isinstance(input, Value):
        divisor = reader.numbers(other, where).astype(np.float64)
        return _graph.scaled(input, 1 / divisor, 0.0, where)
    return input / other


def negate(reader: "Reader", where: str, input: Any) -> Any:
    return _graph.scaled(input, -1.0, 0.0, where) if isinstance(input, Value) else -input


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.mm: matmul,
    operator.matmul: matmul,
    F.relu: relu,
    torch.relu: relu,
    F.relu6: relu6,
    F.hardtanh: hardtanh,
    torch.clamp: clamp,
    torch.clip: clamp,
    F.gelu: gelu,
    F.silu: _curve(SiLU()),
    F.sigmoid: _curve(Sigmoid()),
    torch.sigmoid: _curve(Sigmoid()),
    F.tanh: _curve(Tanh()),
    torch.tanh: _curve(Tanh()),
    F.softmax: softmax,
    torch.softmax: softmax,
    F.log_softmax: log_softmax,
    torch.log_softmax: log_softmax,
    torch.argmax: argmax,
    F.dropout: same,
    torch.flatten: flatten,
    torch.reshape: reshape,
    getattr: get_attribute,
    operator.getitem: get_item,
    operator.add: add,
    operator.iadd: add,
    torch.add: add,
    operator.sub: subtract,
    operator.isub: subtract,
    torch.sub: subtract,
    operator.mul: multiply,
    operator.imul: multiply,
    torch.mul: multiply,
    operator.truediv: divide,
    torch.div: divide,
    operator.neg: negate,
    torch.neg: negate,
}
"""What reads a function: takes the reader, the node for people, and its arguments."""

METHODS: dict[str, Callable[..., Any]] = {
    "matmul": matmul,
    "relu": relu,
    "relu_": relu,
    "clamp": clamp,
    "clamp_": clamp,
    "clip": clamp,
    "sigmoid": _curve(Sigmoid()),
    "sigmoid_": _curve(Sigmoid()),
    "tanh": _curve(Tanh()),
    "tanh_": _curve(Tanh()),
    "softmax": softmax,
    "log_softmax": log_softmax,
    "argmax": argmax,
    "flatten": flatten,
    "view": reshape,
    "reshape": reshape,
    "size": size,
    "contiguous": same,
    "float": same,
    "add": add,
    "add_": add,
    "sub": subtract,
    "mul": multiply,
    "mul_": multiply,
    "div": divide,
    "neg": negate,
}
"""The same for methods of a tensor."""
