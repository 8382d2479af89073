"""What reads each ONNX operation; see `_onnx_read`. All take the reader and the node."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from teraedge.activations import GELU, Activation, Sigmoid, SiLU, Tanh, clipped
from teraedge.errors import ModelError
from teraedge.formats import _chain
from teraedge.formats._chain import Activated, Scaled, Value
from teraedge.formats._conv import REFUSED, convolved
from teraedge.formats._support import unsupported

if TYPE_CHECKING:
    from teraedge.formats._onnx_read import Node, Reader

BATCH = 4_611_686_018_427_387_847
"""Stands for the number of samples among sizes."""


@dataclass(eq=False)
class _Erf(Value):
    """Scale erf(x / sqrt 2) + shift of the input x: half a GELU, which has to be met by x."""

    scale: float = 1.0
    shift: float = 0.0


def gemm(reader: "Reader", node: "Node") -> Value:
    x, weights = node.value(0), node.input(1)
    if isinstance(weights, Value):
        raise unsupported(f"a product of two values ({node.where})")
    if node.attributes.get("transA", 0):
        raise ModelError(f"{node.where} transposes the samples (transA); give one that does not")
    weights = reader.numbers(weights, node.where) * node.attributes.get("alpha", 1.0)
    if node.attributes.get("transB", 0):
        weights = weights.T
    bias = node.constant(2)
    if bias is not None:
        bias = _for_sample(reader.numbers(bias, node.where), 1, node)
        bias = bias.astype(np.float64) * node.attributes.get("beta", 1.0)
    return _linear(x, weights, bias, node)


def matmul(reader: "Reader", node: "Node") -> Value:
    weights = node.input(1)
    if isinstance(weights, Value) or not isinstance(node.input(0), Value):
        raise unsupported(f"a product whose second factor is no constant ({node.where})")
    return _linear(node.value(0), reader.numbers(weights, node.where), None, node)


def _linear(x: Value, weights: Any, bias: Any, node: "Node") -> Value:
    if weights.ndim != 2:
        raise ModelError(f"{node.where} has weights of shape {weights.shape}; give a matrix")
    return _chain.linear(x, weights, bias, node.where)


def _for_sample(array: Any, axes: int, node: "Node") -> Any:
    """Return a constant without the axis of samples, along which it must be the same."""
    if array.ndim <= axes:
        return array
    if array.ndim > axes + 1 or array.shape[0] != 1:
        raise ModelError(f"{node.where} has a constant of shape {array.shape}: one a sample")
    return array[0]


def add(reader: "Reader", node: "Node") -> Value:
    factor = -1.0 if node.kind == "Sub" else 1.0
    values = [one for one in node.inputs if isinstance(one, Value)]
    if len(values) == len(node.inputs):
        factors = [1.0, *[factor] * (len(values) - 1)]
        return _chain.added(values, factors, node.where)
    if len(values) != 1 or len(node.inputs) != 2:
        raise ModelError(f"{node.where} adds constants and values; give two of them")
    x = values[0]
    first = isinstance(node.input(0), Value)
    constant = reader.numbers(node.constant(1 if first else 0), node.where)
    constant = _for_sample(constant, len(x.shape), node)
    scale, shift = (1.0, factor * constant) if first else (factor, constant)
    if isinstance(x, _Erf):
        return _Erf(x.shape, x.inputs, x.where, x.scale * scale, x.shift * scale + _one(shift))
    return _chain.scaled(x, scale, shift, node.where)


def _one(constant: Any) -> float:
    """Return the only number of a constant, NaN where there are several."""
    numbers = np.unique(constant)
    return float(numbers[0]) if len(numbers) == 1 else math.nan


def multiply(reader: "Reader", node: "Node") -> Value:
    one, other = node.inputs
    if isinstance(one, Value) and isinstance(other, Value):
        for x, gate in ((one, other), (other, one)):
            product = _gated(x, gate, node)
            if product is not None:
                return product
        raise unsupported(f"a product of two values ({node.where})")
    x, constant = (one, node.constant(1)) if isinstance(one, Value) else (other, node.constant(0))
    factor = reader.numbers(constant, node.where).astype(np.float64)
    factor = _for_sample(factor, len(x.shape), node)
    if isinstance(x, _Erf):
        number = _one(factor)
        return _Erf(x.shape, x.inputs, x.where, x.scale * number, x.shift * number)
    return _chain.scaled(x, factor, 0.0, node.where)


def _gated(x: Value, gate: Value, node: "Node") -> Value | None:
    """Return x Sigmoid(x) as SiLU, and c x (erf(x / sqrt 2) + 1) as GELU."""
    if isinstance(gate, Activated) and gate.activation == Sigmoid() and gate.inputs == (x,):
        return _chain.activated(x, SiLU(), node.where)
    if not isinstance(gate, _Erf):
        return None
    factor, source = 1.0, gate.inputs[0]
    if isinstance(x, Scaled) and x.inputs == (source,) and not x.shift.any():
        factor = _one(x.scale)
    elif x is not source:
        return None
    if not math.isclose(gate.scale, gate.shift, rel_tol=1e-6):
        return None
    whole = 2 * gate.scale * factor
    value = _chain.activated(source, GELU(), node.where)
    return value if whole == 1 else _chain.scaled(value, whole, 0.0, node.where)


def divide(reader: "Reader", node: "Node") -> Value:
    if isinstance(node.input(1), Value):
        raise unsupported(f"a quotient by a value ({node.where})")
    divisor = reader.numbers(node.constant(1), node.where).astype(np.float64)
    divisor = _for_sample(divisor, len(node.value(0).shape), node)
    return _chain.scaled(node.value(0), 1 / divisor, 0.0, node.where)


def negate(reader: "Reader", node: "Node") -> Value:
    return _chain.scaled(node.value(0), -1.0, 0.0, node.where)


def erf(reader: "Reader", node: "Node") -> Value:
    x = node.value(0)
    if isinstance(x, Scaled) and not x.shift.any():
        factor = _one(x.scale)
        if math.isclose(factor, math.sqrt(0.5), rel_tol=1e-6):
            return _Erf(x.shape, x.inputs, node.where)
    raise unsupported(f"{node.where} outside of a GELU, x / 2 (1 + erf(x / sqrt 2)),")


def _activation(activation: Activation) -> Callable[["Reader", "Node"], Value]:
    def read(reader: "Reader", node: "Node") -> Value:
        return _chain.activated(node.value(0), activation, node.where)

    return read


def clip(reader: "Reader", node: "Node") -> Value:
    lower = node.number(1, node.attributes.get("min", -math.inf))
    upper = node.number(2, node.attributes.get("max", math.inf))
    largest = float(np.finfo(np.float32).max)  # what opset 6 has for no bound
    bounds = -math.inf if lower <= -largest else lower, math.inf if upper >= largest else upper
    return _chain.activated(node.value(0), clipped(*bounds), node.where)


def extreme(reader: "Reader", node: "Node") -> Value:
    """Min and Max with a constant."""
    values = [one for one in node.inputs if isinstance(one, Value)]
    if len(values) != 1 or len(node.inputs) != 2:
        raise unsupported(f"{node.where} of several values")
    bound = node.number(1 if isinstance(node.input(0), Value) else 0, 0.0)
    bounds = (-math.inf, bound) if node.kind == "Min" else (bound, math.inf)
    return _chain.activated(values[0], clipped(*bounds), node.where)


def hard_sigmoid(reader: "Reader", node: "Node") -> Value:
    slope, shift = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    scaled = _chain.scaled(node.value(0), slope, shift, node.where)
    return _chain.activated(scaled, clipped(0.0, 1.0), node.where)


def gelu(reader: "Reader", node: "Node") -> Value:
    approximate = node.attributes.get("approximate", "none")
    return _chain.activated(node.value(0), GELU(approximate), node.where)


def swish(reader: "Reader", node: "Node") -> Value:
    if node.attributes.get("alpha", 1.0) != 1:
        raise ModelError(f"{node.where} has an alpha other than 1, which is not supported")
    return _chain.activated(node.value(0), SiLU(), node.where)


def batch_norm(reader: "Reader", node: "Node") -> Value:
    if node.attributes.get("training_mode", 0):
        raise ModelError(f"{node.where} is in training mode; export the model in eval mode")
    x = node.value(0)
    parts = []
    for index in range(1, 5):
        part = node.constant(index)
        if part is None or not x.shape or part.shape != x.shape[:1]:
            raise ModelError(f"{node.where} does not fit a value of shape {x.shape}")
        parts.append(reader.numbers(part, node.where).astype(np.float64))
    gamma, beta, mean, variance = parts
    scale = gamma / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    across = (-1,) + (1,) * (len(x.shape) - 1)  # a channel has one scale
    shift = beta - mean * scale
    return _chain.scaled(x, scale.reshape(across), shift.reshape(across), node.where)


def conv(reader: "Reader", node: "Node") -> Value:
    if not reader.lower_conv:
        raise ModelError(f"{node.where} is a convolution; {REFUSED}")
    kernel = reader.numbers(node.constant(1), node.where)
    bias = node.constant(2)
    axes = kernel.ndim - 2
    if axes not in (1, 2):
        raise unsupported(f"{node.where} of {axes} sizes")
    stride = node.attributes.get("strides", [1] * axes)
    dilation = node.attributes.get("dilations", [1] * axes)
    x = node.value(0)
    pads = node.attributes.get("pads", [0] * 2 * axes)
    padding = list(zip(pads[:axes], pads[axes:], strict=True))
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        padding = []
        for size, by, step, length in zip(
            x.shape[1:], stride, dilation, kernel.shape[2:], strict=True
        ):
            total = max((-(-size // by) - 1) * by + step * (length - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    value, note = convolved(
        x,
        kernel,
        None if bias is None else reader.numbers(bias, node.where),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=node.attributes.get("group", 1),
        where=node.where,
    )
    reader.notes.append(note)
    return value


def same(reader: "Reader", node: "Node") -> Value:
    return node.value(0)


def cast(reader: "Reader", node: "Node") -> Value:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    if np.dtype(dtype).kind != "f" and np.dtype(dtype).name != "bfloat16":
        raise ModelError(f"{node.where} turns values into {dtype}; only real numbers are supported")
    return node.value(0)


def flatten(reader: "Reader", node: "Node") -> Value:
    x = node.value(0)
    if node.attributes.get("axis", 1) % (len(x.shape) + 1) != 1:
        raise ModelError(f"{node.where} flattens the axis of samples; give axis=1")
    return _chain.reshaped(x, (x.size,))


def reshape(reader: "Reader", node: "Node") -> Value:
    x = node.value(0)
    wanted = node.constant(1)
    sizes = [] if wanted is None else [int(size) for size in wanted.ravel()]
    rest = sizes[1:]
    if not node.attributes.get("allowzero", 0):
        rest = [
            x.shape[k] if size == 0 and k < len(x.shape) else size for k, size in enumerate(rest)
        ]
    known = math.prod(size for size in rest if size != -1)
    if rest.count(-1) == 1 and sizes[0] != -1 and known > 0 and x.size % known == 0:
        rest[rest.index(-1)] = x.size // known
    keeps = sizes and sizes[0] in (0, -1, BATCH, reader.batch)
    if not keeps or math.prod(rest) != x.size or min(rest, default=1) < 1:
        shape = ["samples" if size == BATCH else size for size in sizes]
        raise ModelError(
            f"{node.where} gives the shape {shape} to {x.size} numbers a sample; the axis of "
            "samples must stay, as in [0, -1]"
        )
    return _chain.reshaped(x, tuple(rest))


def softmax(reader: "Reader", node: "Node") -> Value:
    x = node.value(0)
    axis = node.attributes.get("axis", -1 if reader.opset >= 13 else 1)
    return _chain.ended(x, "softmax" if node.kind == "Softmax" else "log_softmax", axis, node.where)


def argmax(reader: "Reader", node: "Node") -> Value:
    if node.attributes.get("select_last_index", 0):
        raise ModelError(f"{node.where} takes the last of several; only the first is supported")
    return _chain.ended(node.value(0), "argmax", node.attributes.get("axis", 0), node.where)


NODES: dict[str, Callable[["Reader", "Node"], Value]] = {
    "Gemm": gemm,
    "MatMul": matmul,
    "Add": add,
    "Sub": add,
    "Sum": add,
    "Mul": multiply,
    "Div": divide,
    "Neg": negate,
    "Erf": erf,
    "Relu": _activation(clipped(0.0, math.inf)),
    "Sigmoid": _activation(Sigmoid()),
    "Tanh": _activation(Tanh()),
    "Clip": clip,
    "Min": extreme,
    "Max": extreme,
    "HardSigmoid": hard_sigmoid,
    "Gelu": gelu,
    "Swish": swish,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "Identity": same,
    "Dropout": same,
    "Cast": cast,
    "Flatten": flatten,
    "Reshape": reshape,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "ArgMax": argmax,
}
