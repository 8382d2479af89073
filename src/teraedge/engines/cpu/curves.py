"""Smooth activations over a tile, as LLVM IR: after the panels of a layer, in place.

Each is made of one exponential, so that no value needs a branch. Polynomials interpolate at
Chebyshev points in float64 (a few parts in 1e8 off, below the rounding of fp32), when this is
imported.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.engines.cpu.panels import live_lanes
from teraedge.engines.cpu.simd import (
    BITS,
    LANES,
    REGISTER,
    TILE,
    fused_multiply_add,
    splat_constant,
)

_I64 = ir.IntType(64)


def _interpolated(
    function: Callable[[NDArray[Any]], NDArray[Any]], degree: int, low: float, high: float
) -> list[float]:
    """Return coefficients, the constant first, of a polynomial close to a function."""
    fitted = chebyshev.Chebyshev.interpolate(function, degree, [low, high])
    power = fitted.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    return [float(value) for value in power.coef]


_HALF_LN2 = math.log(2) / 2
# exp(r) = 1 + r + r^2 q(r)
_EXP = _interpolated(lambda r: (np.expm1(r) - r) / r**2, 5, -_HALF_LN2, _HALF_LN2)
_SMALL = 0.6
# tanh(x) = x + x s p(s), s = x^2
_TANH = _interpolated(lambda s: (np.tanh(s**0.5) / s**0.5 - 1) / s, 6, 0.0, _SMALL**2)
_CENTRE = 2.0


def _scaled_erfcx(u: NDArray[Any]) -> NDArray[Any]:
    """Return (1 + t / 2) exp(t^2) erfc(t) with u = (t - 2) / (t + 2), t >= 0.

    The variable of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x
    in 0 <= x < inf" (Mathematics of Computation 36, 1981).
    """
    from scipy.special import erfcx

    t = _CENTRE * (1 + u) / (1 - u)  # the points of interpolation do not reach u = 1
    return np.asarray((1 + t / _CENTRE) * erfcx(t))


_ERFCX = _interpolated(_scaled_erfcx, 10, -1.0, 1.0)


def _polynomial(builder: ir.IRBuilder, x: ir.Value, coefficients: list[float]) -> ir.Value:
    """Evaluate by Horner's rule."""
    total = splat_constant(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fused_multiply_add(builder, total, x, splat_constant(coefficient))
    return total


def _call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """Call an LLVM function over registers."""
    kind = ir.FunctionType(REGISTER, [REGISTER] * len(arguments))
    full = f"llvm.{name}.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full), arguments)


def _held(builder: ir.IRBuilder, x: ir.Value, lower: float, upper: float) -> ir.Value:
    for order, bound in (("<", splat_constant(lower)), (">", splat_constant(upper))):
        x = builder.select(builder.fcmp_ordered(order, x, bound), bound, x)
    return x


def _exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return exp(x): 2^n exp(r) with x = n ln 2 + r and n whole."""
    x = _held(builder, x, -104.0, 89.0)  # beyond, it is 0 and infinity
    magic = splat_constant(1.5 * 2**23)  # a sum with it has no room for a fraction
    shifted = fused_multiply_add(builder, x, splat_constant(1 / math.log(2)), magic)
    whole = builder.fsub(shifted, magic)
    high = math.floor(math.log(2) * 2**12) / 2**12  # times n it is exact
    r = fused_multiply_add(builder, whole, splat_constant(-high), x)
    r = fused_multiply_add(builder, whole, splat_constant(high - math.log(2)), r)
    square = builder.fmul(r, r)
    power = fused_multiply_add(builder, square, _polynomial(builder, r, _EXP), r)
    power = builder.fadd(power, splat_constant(1.0))
    n = builder.fptosi(whole, BITS)
    first = builder.ashr(n, ir.Constant(BITS, [1] * LANES))
    for part in (first, builder.sub(n, first)):  # 2^128 is no number of fp32, nor is 2^-150
        biased = builder.add(part, ir.Constant(BITS, [127] * LANES))
        scale = builder.bitcast(builder.shl(biased, ir.Constant(BITS, [23] * LANES)), REGISTER)
        power = builder.fmul(power, scale)
    return power


def _over_one_plus_exp(builder: ir.IRBuilder, numerator: ir.Value, x: ir.Value) -> ir.Value:
    """Return numerator / (1 + exp(-x))."""
    power = _exp(builder, builder.fneg(x))
    return builder.fdiv(numerator, builder.fadd(splat_constant(1.0), power))


def _sigmoid(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _over_one_plus_exp(builder, splat_constant(1.0), x)


def _silu(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _over_one_plus_exp(builder, x, x)


def _tanh(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return a polynomial near 0, and 1 - 2 / (1 + exp(2 |x|)) with the sign of x elsewhere."""
    size = _call(builder, "fabs", x)
    power = _exp(builder, builder.fadd(size, size))
    one = splat_constant(1.0)
    rest = builder.fdiv(splat_constant(2.0), builder.fadd(one, power))
    far = _call(builder, "copysign", builder.fsub(one, rest), x)
    square = builder.fmul(x, x)
    slope = builder.fmul(square, _polynomial(builder, square, _TANH))
    near = fused_multiply_add(builder, x, slope, x)
    return builder.select(builder.fcmp_ordered("<", size, splat_constant(_SMALL)), near, far)


def _gelu(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return x Phi(x) with Phi(-|x|) = exp(-t^2) erfcx(t) / 2, t = |x| / sqrt(2)."""
    size = _call(builder, "fabs", x)
    t = builder.fmul(size, splat_constant(math.sqrt(0.5)))
    centre = splat_constant(_CENTRE)
    ratio = builder.fdiv(splat_constant(1.0), builder.fadd(t, centre))
    u = builder.fmul(builder.fsub(t, centre), ratio)
    scaled = builder.fmul(_polynomial(builder, u, _ERFCX), builder.fmul(centre, ratio))
    power = _exp(builder, builder.fmul(splat_constant(-0.5), builder.fmul(x, x)))
    tail = builder.fmul(splat_constant(0.5), builder.fmul(power, scaled))
    above = builder.fsub(splat_constant(1.0), tail)
    below = builder.fcmp_ordered("<", x, splat_constant(0.0))
    return builder.fmul(x, builder.select(below, tail, above))


def _gelu_tanh(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return x / (1 + exp(-2 u)); see `activations.GELU`."""
    slope = math.sqrt(8 / math.pi)
    square = builder.fmul(x, x)
    factor = fused_multiply_add(
        builder, square, splat_constant(0.044715 * slope), splat_constant(slope)
    )
    return _over_one_plus_exp(builder, x, builder.fmul(x, factor))


_BUILDERS = {
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}


@intrinsic
def curves(typing: Any, curve: Any, y: Any, neurons: Any, registers: Any) -> Any:
    """Apply a curve to the rows of a tile, in place; returns the live lanes as bits.

    Parameters
    ----------
    curve : int64
        Its number in `activations.CURVES`, not 0.
    y : int64
        Address of the tile.
    neurons, registers : int64
        Rows, and registers of each.

    Returns
    -------
    uint64
        Bit i is set where sample i has a nonzero.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        curve, y, neurons, registers = arguments
        y = builder.inttoptr(y, REGISTER.as_pointer())
        nothing = ir.Constant(BITS, [0] * LANES)
        seen = cgutils.alloca_once(builder, BITS, size=TILE // LANES)
        for vector in range(TILE // LANES):
            builder.store(nothing, builder.gep(seen, [_I64(vector)]))
        done = builder.append_basic_block("done")
        switch = builder.switch(curve, done)
        for number, name in enumerate(CURVES):
            if not name:
                continue
            block = builder.append_basic_block(name)
            switch.add_case(_I64(number), block)
            builder.position_at_end(block)
            with (
                cgutils.for_range(builder, neurons) as neuron,
                cgutils.for_range(builder, registers) as register,
            ):
                row = builder.mul(neuron.index, _I64(TILE // LANES))
                place = builder.gep(y, [builder.add(row, register.index)])
                value = _BUILDERS[name](builder, builder.load(place))
                builder.store(value, place)
                bits = builder.gep(seen, [register.index])
                builder.store(builder.or_(builder.load(bits), builder.bitcast(value, BITS)), bits)
            builder.branch(done)
        builder.position_at_end(done)
        return live_lanes(builder, seen)

    return types.uint64(*[types.int64] * 4), codegen
