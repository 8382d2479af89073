"""What the cores can do at most: multiply-adds, and loads from each level of cache.

Figures are shares of these, measured on the machine and in the sitting of the figure itself.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from teraedge.engines.cpu.simd import LANES, fused_multiply_add, splat
from teraedge.jit import jit

CHAINS = 12
"""Independent accumulators: latency times width of a machine's multiply-add units, or more."""

_REGISTER = ir.VectorType(ir.FloatType(), LANES)
_I64 = ir.IntType(64)


def _accumulate(builder: ir.IRBuilder, count: ir.Value, step: Callable[..., ir.Value]) -> ir.Value:
    """Emit a loop of `count` rounds over `CHAINS` accumulators; returns one value of their sum."""
    totals = [cgutils.alloca_once(builder, _REGISTER) for _ in range(CHAINS)]
    for k, total in enumerate(totals):
        builder.store(ir.Constant(_REGISTER, [float(k)] * LANES), total)
    with cgutils.for_range(builder, count) as loop:
        for k, total in enumerate(totals):
            builder.store(step(loop.index, k, builder.load(total)), total)
    result = builder.load(totals[0])
    for total in totals[1:]:
        result = builder.fadd(result, builder.load(total))
    return builder.extract_element(result, ir.IntType(32)(0))


@intrinsic
def _multiply_adds(typing: Any, count: Any, factor: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        count, factor = arguments
        x = splat(builder, factor)

        def step(index: ir.Value, k: int, total: ir.Value) -> ir.Value:
            return fused_multiply_add(builder, total, x, x)

        return _accumulate(builder, count, step)

    return types.float32(types.int64, types.float32), codegen


@intrinsic
def _loads(typing: Any, count: Any, address: Any, mask: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        count, address, mask = arguments
        base = builder.inttoptr(address, _REGISTER.as_pointer())

        def step(index: ir.Value, k: int, total: ir.Value) -> ir.Value:
            # every round reads CHAINS registers from a place of its own, and begins again
            first = builder.and_(builder.mul(index, _I64(CHAINS)), mask)
            start = builder.gep(base, [first])
            return builder.fadd(total, builder.load(builder.gep(start, [_I64(k)])))

        return _accumulate(builder, count, step)

    return types.float32(types.int64, types.int64, types.int64), codegen


@jit(types.float32(types.int64, types.float32))
def _run_multiply_adds(count: int, factor: float) -> float:
    return _multiply_adds(count, factor)  # type: ignore[no-any-return]


@jit(types.float32(types.int64, types.int64, types.int64))
def _run_loads(count: int, address: int, mask: int) -> float:
    return _loads(count, address, mask)  # type: ignore[no-any-return]


def multiply_add_peak(
    threads: int,
    trials: int = 7,
    rounds: int = 4_000_000,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the most fp32 multiply-adds a second that so many threads can do together.

    Parameters
    ----------
    threads : int
    trials, rounds : int
        The best of so many trials counts, each of so many rounds of `CHAINS` registers a thread.
        Many short ones find the moments in which nobody else runs on a machine.
    clock : callable
        Gives seconds; for one thread also `time.process_time`.
    """
    return _fastest(
        threads, lambda count: _run_multiply_adds(count, np.float32(0.5)), trials, rounds, clock
    )


def load_peak(
    threads: int,
    size: int,
    trials: int = 7,
    rounds: int = 4_000_000,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the most float32 values a second that threads can load, each from its own buffer.

    Parameters
    ----------
    threads : int
    size : int
        Bytes of a buffer, a power of two: it decides which cache the loads come from.
    trials, rounds, clock
        As in `multiply_add_peak`.
    """
    registers = size // (4 * LANES)
    buffers = [np.ones((registers + CHAINS + 1) * LANES, np.float32) for _ in range(threads)]
    starts = [buffer.ctypes.data + -buffer.ctypes.data % (4 * LANES) for buffer in buffers]
    free = SimpleQueue[int]()
    for start in starts:
        free.put(start)

    def run(count: int) -> None:
        start = free.get()
        _run_loads(count, start, registers - 1)
        free.put(start)

    return _fastest(threads, run, trials, rounds, clock)


def _fastest(
    threads: int,
    run: Callable[[int], Any],
    trials: int,
    rounds: int,
    clock: Callable[[], float],
) -> float:
    """Return values a second of the best of some trials on all threads at once."""
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(trials):
            begin = clock()
            list(pool.map(run, [rounds] * threads))
            best = max(best, threads * rounds * CHAINS * LANES / (clock() - begin))
    return best
