"""The compiled function over lookups: a register is neighbouring neurons, inputs are picked."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from teraedge.engines.cpu.simd import BITS, LANES, REGISTER, fused_multiply_add, splat_constant
from teraedge.plan.lookups import STEPS

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()

_PICK = {16: "llvm.x86.avx512.vpermi2var.ps.512"}
"""The instruction that picks values out of two registers, by lanes."""
LOOKS_UP = LANES in _PICK
"""Whether the machine has it; else there are no lookups."""


class _Lookup:
    """Builds the loop over the windows of a register of neurons."""

    def __init__(self, builder: ir.IRBuilder, x: ir.Value, bases: ir.Value, edges: Any) -> None:
        self.builder = builder
        self.x = builder.inttoptr(x, _F32.as_pointer())
        self.bases = builder.inttoptr(bases, _I32.as_pointer())
        picks, weights = edges
        self.picks = builder.inttoptr(picks, ir.VectorType(_I8, LANES).as_pointer())
        self.weights = builder.inttoptr(weights, REGISTER.as_pointer())

    def emit(self, begin: ir.Value, end: ir.Value) -> ir.Value:
        """Emit the loop; returns the sums."""
        builder = self.builder
        start, head = builder.block, builder.append_basic_block("windows")
        body, done = builder.append_basic_block("window"), builder.append_basic_block("no.window")
        builder.branch(head)
        builder.position_at_end(head)
        window, total = builder.phi(_I64), builder.phi(REGISTER)
        window.add_incoming(begin, start)
        total.add_incoming(splat_constant(0.0), start)
        builder.cbranch(builder.icmp_signed("<", window, end), body, done)
        builder.position_at_end(body)
        total.add_incoming(self.one_window(window, total), body)
        window.add_incoming(builder.add(window, _I64(1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        return total

    def one_window(self, window: ir.Value, total: ir.Value) -> ir.Value:
        """Multiply the inputs of a window into the sums."""
        builder = self.builder
        base = builder.sext(builder.load(builder.gep(self.bases, [window])), _I64)
        values = []
        for half in range(2):
            place = builder.gep(self.x, [builder.add(base, _I64(half * LANES))])
            values.append(builder.load(builder.bitcast(place, REGISTER.as_pointer())))
            values[-1].align = 4
        kind = ir.FunctionType(REGISTER, [REGISTER, BITS, REGISTER])
        pick = cgutils.get_or_insert_function(builder.module, kind, _PICK[LANES])
        for step in range(STEPS):
            row = builder.add(builder.mul(window, _I64(STEPS)), _I64(step))
            lanes = builder.zext(builder.load(builder.gep(self.picks, [row])), BITS)
            weights = builder.load(builder.gep(self.weights, [row]))
            picked = builder.call(pick, [values[0], lanes, values[1]])
            total = fused_multiply_add(builder, picked, weights, total)
        return total


@intrinsic
def look_up(
    typing: Any, x: Any, bases: Any, picks: Any, weights: Any, begin: Any, end: Any, sums: Any
) -> Any:
    """Write the sums of a register of neurons, of the windows `begin` to `end`.

    Parameters
    ----------
    x : int64
        Address of the float32 inputs of a sample.
    bases, picks, weights : int64
        Addresses of what `plan.lookups.Lookups` names so; the last two at whole registers.
    begin, end : int64
    sums : int64
        Address of a register of float32.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, bases, picks, weights, begin, end, sums = arguments
        if LOOKS_UP:
            total = _Lookup(builder, x, bases, (picks, weights)).emit(begin, end)
            builder.store(total, builder.inttoptr(sums, REGISTER.as_pointer()))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen
