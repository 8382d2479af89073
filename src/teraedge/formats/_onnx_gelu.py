"""GELU and SiLU that files spell out in several nodes, as exporters do for old operation sets.

GELU is c x (g(x) + 1) with c = 1/2 and the gate g(x) = erf(x / sqrt 2), or the tanh of a polynomial
of x; SiLU is x Sigmoid(x). The pieces are values that only make sense in these formulas.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import GELU, Activation, Sigmoid, SiLU
from teraedge.formats import _graph
from teraedge.formats._graph import Activated, Scaled, Value

_CLOSE = 1e-5
"""Relative; files have the constants in float32, and some in few digits."""
_ROOT = math.sqrt(2 / math.pi)


@dataclass(eq=False)
class Gate(Value):
    """`scale` g(x) + `shift` of the input x, which has to be met by x."""

    activation: Activation = field(default_factory=GELU)
    scale: float = 1.0
    shift: float = 0.0


@dataclass(eq=False)
class Power(Value):
    """A polynomial of the input x: its coefficients of x, x^2 and x^3."""

    coefficients: tuple[float, float, float] = (1.0, 0.0, 0.0)


def one_number(constant: Any) -> float:
    """Return the only number of a constant, NaN where there are several."""
    numbers = np.unique(constant)
    return float(numbers[0]) if len(numbers) == 1 else math.nan


def rescaled(x: Value, scale: Any, shift: Any, where: str) -> Value:
    """Return x times a constant plus another."""
    if isinstance(x, Gate):
        by, more = one_number(scale), one_number(shift)
        return Gate(x.shape, x.inputs, x.where, x.activation, x.scale * by, x.shift * by + more)
    if isinstance(x, Power) and not np.any(shift):
        return _power(x, x.inputs[0], np.array(x.coefficients) * one_number(scale))
    return _graph.scaled(x, scale, shift, where)


def raised(x: Value, exponent: float, where: str) -> Value | None:
    """Return x to a whole power of 1, 2 or 3."""
    if exponent not in (1.0, 2.0, 3.0):
        return None
    return Power(
        x.shape, (x,), where, (float(exponent == 1), float(exponent == 2), float(exponent == 3))
    )


def added(one: Value, other: Value) -> Value | None:
    """Return the polynomial that is the sum of two values, None where it is none."""
    power = next((value for value in (one, other) if isinstance(value, Power)), None)
    if power is None:
        return None
    parts = [_coefficients(value, power.inputs[0]) for value in (one, other)]
    if parts[0] is None or parts[1] is None:
        return None
    return _power(power, power.inputs[0], parts[0] + parts[1])


def multiplied(one: Value, other: Value, where: str) -> Value | None:
    """Return the product of two values where it is one of those above, else None."""
    for x, gate in ((one, other), (other, one)):
        if isinstance(gate, Activated) and gate.activation == Sigmoid() and gate.inputs == (x,):
            return _graph.activated(x, SiLU(), where)
        if isinstance(gate, Gate):
            return _gated(x, gate, where)
    if one is other and not isinstance(one, Power):
        return raised(one, 2.0, where)
    for x, power in ((one, other), (other, one)):
        if isinstance(power, Power) and not power.coefficients[2]:
            factor = _coefficients(x, power.inputs[0])
            if factor is not None and not factor[1:].any():
                return _power(power, power.inputs[0], factor[0] * np.roll(power.coefficients, 1))
    return None


def gate_of_erf(x: Value, where: str) -> Gate | None:
    """Return erf(x), where x is something over sqrt 2."""
    if not isinstance(x, Scaled) or x.shift.any():
        return None
    near = math.isclose(one_number(x.scale), math.sqrt(0.5), rel_tol=_CLOSE)
    return Gate(x.shape, x.inputs, where) if near else None


def gate_of_tanh(x: Value, where: str) -> Gate | None:
    """Return tanh(x), where x is the polynomial of GELU's approximation."""
    if isinstance(x, Power):
        first, second, third = x.coefficients
        near = math.isclose(first, _ROOT, rel_tol=_CLOSE)
        if near and not second and math.isclose(third, 0.044715 * _ROOT, rel_tol=_CLOSE):
            return Gate(x.shape, x.inputs, where, GELU("tanh"))
    return None


def _gated(x: Value, gate: Gate, where: str) -> Value | None:
    factor = _coefficients(x, gate.inputs[0])
    if factor is None or factor[1:].any():
        return None
    if not math.isclose(gate.scale, gate.shift, rel_tol=_CLOSE):
        return None
    whole = 2 * gate.scale * float(factor[0])
    value = _graph.activated(gate.inputs[0], gate.activation, where)
    return value if whole == 1 else _graph.scaled(value, whole, 0.0, where)


def _coefficients(value: Value, x: Value) -> NDArray[np.float64] | None:
    """Return a value as a polynomial of x, None where it is none."""
    if value is x:
        return np.array([1.0, 0.0, 0.0])
    if isinstance(value, Power) and value.inputs == (x,):
        return np.array(value.coefficients)
    if isinstance(value, Scaled) and value.inputs == (x,) and not value.shift.any():
        return np.array([one_number(value.scale), 0.0, 0.0])
    return None


def _power(like: Power, x: Value, coefficients: NDArray[np.float64]) -> Power:
    first, second, third = map(float, coefficients)
    return Power(like.shape, (x,), like.where, (first, second, third))
