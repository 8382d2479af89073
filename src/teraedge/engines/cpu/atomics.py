"""Atomic reads and writes of int64 at addresses, and pauses, for threads that wait by looking."""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_WORD = 8
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def load_atomic(typing: Any, address: Any) -> Any:
    """Return the int64 at an address, and see what was written before it was."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "acquire", _WORD)

    return types.int64(types.int64), codegen


@intrinsic
def store_atomic(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64, after all that was written before."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        address, value = arguments
        builder.store_atomic(value, _pointer(builder, address), "release", _WORD)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def swap_if_equal(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write an int64 where another one is; returns whether it was."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        address, expected, value = arguments
        pointer = _pointer(builder, address)
        pair = builder.cmpxchg(pointer, expected, value, "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this thread only waits."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        if _HAS_PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(
                cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def let_others_run(typing: Any) -> Any:
    """Offer this core to other threads, of which one may be what this thread waits for."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen
