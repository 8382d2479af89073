"""Vector code for numba: the inner loops as LLVM IR, for the vector width of this machine.

numba's own vectoriser does not keep a block of accumulators in registers, so the loops that carry
the run are written here as intrinsics over whole vectors. LLVM splits a vector that is wider than
the machine's, so the same IR runs everywhere; `SHAPE` only sets how much of it there is at a time.

Addresses are passed as integers: a layer's arrays have differing types, and a plan keeps them all
in one table.
"""

import time
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F32 = ir.FloatType()


class VectorShape(NamedTuple):
    """How kernels use a machine's registers.

    Attributes
    ----------
    lanes : int
        float32 values of a register.
    tile : int
        Samples of a tile; not fewer on narrower machines, because only samples of one tile are
        found equal, and a tile's weights are read once for all of it.
    tall, single : int
        Registers of an input row that are multiplied at once into the neurons of a panel, and into
        a single one. Enough accumulators to hide the latency of multiply-add (8 to 12), and as
        much work as possible an index and a weight, both of which cost a load.
    """

    lanes: int
    tile: int
    tall: int
    single: int


def _vector_shape(features: str) -> VectorShape:
    """Return the shape for a machine with these LLVM features; `HEIGHT` x tall are accumulators."""
    if "+avx512f," in features:
        return VectorShape(lanes=16, tile=64, tall=4, single=4)  # 32 registers
    if "+avx," in features:
        return VectorShape(lanes=8, tile=48, tall=3, single=6)  # 16 registers
    if "+neon," in features:
        return VectorShape(
            lanes=4, tile=48, tall=4, single=6
        )  # 32 registers; LLVM spills with more
    return VectorShape(lanes=4, tile=48, tall=3, single=6)  # 16 registers


_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2] + ","
SHAPE = _vector_shape(_FEATURES)
LANES, TILE = SHAPE.lanes, SHAPE.tile
VECTORS = TILE // LANES
"""Registers of a tile's row, which is one neuron's values for all samples of the tile."""
FUSED = any(name in _FEATURES for name in ("+fma,", "+fma4,", "+avx512f,", "+neon,"))
HEIGHT = 4
"""Neurons with the same inputs that one panel computes together."""


REGISTER = ir.VectorType(_F32, LANES)
"""The samples that one instruction works on."""
BITS = ir.VectorType(_I32, LANES)
"""A register seen as bits."""


def vector_counts(height: int) -> tuple[int, ...]:
    """Return how many registers of an input row a panel of `height` neurons may take at once.

    Not every number up to the largest: each costs code that has to be compiled.
    """
    most = SHAPE.single if height == 1 else SHAPE.tall
    return tuple(count for count in (1, 2, 3, 4, 6) if count <= most and (count != 4 or most == 4))


def splat_constant(value: float, lanes: int = LANES) -> ir.Constant:
    """Return a register with the same constant in every lane."""
    return ir.Constant(ir.VectorType(_F32, lanes), [value] * lanes)


def splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
    """Return a register with the same value in every lane."""
    undefined = ir.Constant(ir.VectorType(_F32, lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, undefined, zeros)


def fused_multiply_add(
    builder: ir.IRBuilder, x: ir.Value, weight: ir.Value, total: ir.Value
) -> ir.Value:
    """Return x weight + total of registers, rounded once where the machine can.

    Explicit, because LLVM would share the product of equal weights, and then add.
    """
    if FUSED:
        kind = ir.FunctionType(x.type, [x.type] * 3)
        name = f"llvm.fma.v{x.type.count}f32"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, name), [x, weight, total]
        )
    return builder.fadd(total, builder.fmul(x, weight))


@intrinsic
def multiply_add(typing: Any, x: Any, weight: Any, total: Any) -> Any:
    """Return x weight + total of float32 numbers, as `fused_multiply_add` does of registers."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        x, weight, total = arguments
        if FUSED:
            kind = ir.FunctionType(_F32, [_F32] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32")
            return builder.call(fma, arguments)
        return builder.fadd(total, builder.fmul(x, weight))

    return types.float32(*[types.float32] * 3), codegen


@intrinsic
def count_bits(typing: Any, bits: Any) -> Any:
    """Return the number of set bits of a uint64, as int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@intrinsic
def nanoseconds(typing: Any) -> Any:
    """Read the monotonic clock, in ns (int64), without the interpreter."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_I32, [_I32, _I64.as_pointer()])
        clock = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        timespec = cgutils.alloca_once(builder, _I64, size=2)  # seconds, nanoseconds
        builder.call(clock, [_I32(time.CLOCK_MONOTONIC), timespec])
        seconds = builder.load(timespec)
        nanos = builder.load(builder.gep(timespec, [_I64(1)]))
        return builder.add(builder.mul(seconds, _I64(10**9)), nanos)

    return types.int64(), codegen


@intrinsic
def spread_bits(typing: Any, tile: Any, neuron: Any, bytes_of_lanes: Any) -> Any:
    """Write eight rows of a tile from packed 0/1 features.

    Parameters
    ----------
    tile : int64
        Address of the tile.
    neuron : int64
        The first of the eight rows.
    bytes_of_lanes : int64
        Address of `TILE` bytes: of each sample, the byte with these eight neurons, the first in
        the highest bit.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        tile, neuron, source = arguments
        bytes_ = ir.VectorType(_I8, LANES)
        base = builder.inttoptr(tile, REGISTER.as_pointer())
        packed = builder.inttoptr(source, bytes_.as_pointer())
        for vector in range(VECTORS):
            load = builder.load(builder.gep(packed, [_I64(vector)]))
            load.align = 1
            for bit in range(8):
                mask = ir.Constant(bytes_, [128 >> bit] * LANES)
                zero = ir.Constant(bytes_, [0] * LANES)
                on = builder.icmp_unsigned("!=", builder.and_(load, mask), zero)
                values = builder.select(on, splat_constant(1.0), splat_constant(0.0))
                row = builder.add(neuron, _I64(bit))
                register = builder.add(builder.mul(row, _I64(VECTORS)), _I64(vector))
                builder.store(values, builder.gep(base, [register]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def lane_masks(typing: Any, bytes_of_lanes: Any, masks: Any) -> Any:
    """Transpose eight packed 0/1 neurons of a tile's samples: a mask a neuron.

    Parameters
    ----------
    bytes_of_lanes : int64
        As `spread_bits` takes it.
    masks : int64
        Address of eight uint64 to write: bit i of each is of sample i.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, masks = arguments
        piece = ir.VectorType(_I8, 16)
        packed = builder.inttoptr(source, piece.as_pointer())
        target = builder.inttoptr(masks, _I64.as_pointer())
        totals: list[ir.Value] = [_I64(0)] * 8
        for part in range(TILE // 16):
            values = builder.load(builder.gep(packed, [_I64(part)]))
            values.align = 1
            for bit in range(8):
                on = builder.icmp_signed("<", values, ir.Constant(piece, [0] * 16))
                mask = builder.zext(builder.bitcast(on, ir.IntType(16)), _I64)
                totals[bit] = builder.or_(totals[bit], builder.shl(mask, _I64(16 * part)))
                values = builder.add(values, values)
        for bit, total in enumerate(totals):
            builder.store(total, builder.gep(target, [_I64(bit)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def spread_mask(typing: Any, mask: Any, row: Any) -> Any:
    """Write the row of a tile at an address (int64) from its mask (uint64): 1.0 where a bit is."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        mask, row = arguments
        target = builder.inttoptr(row, REGISTER.as_pointer())
        for vector in range(VECTORS):
            part = builder.trunc(builder.lshr(mask, _I64(vector * LANES)), ir.IntType(LANES))
            on = builder.bitcast(part, ir.VectorType(ir.IntType(1), LANES))
            values = builder.select(on, splat_constant(1.0), splat_constant(0.0))
            builder.store(values, builder.gep(target, [_I64(vector)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), codegen


@intrinsic
def transpose_lanes(typing: Any, source: Any, stride: Any, target: Any, target_stride: Any) -> Any:
    """Copy a square of `LANES` x `LANES` float32 values, transposed.

    Parameters
    ----------
    source, target : int64
        Addresses of the first values.
    stride, target_stride : int64
        From one row to the next, in values.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, stride, target, target_stride = arguments

        def pointer(address: ir.Value, stride: ir.Value, row: int) -> ir.Value:
            values = builder.inttoptr(address, _F32.as_pointer())
            values = builder.gep(values, [builder.mul(stride, _I64(row))])
            return builder.bitcast(values, REGISTER.as_pointer())

        rows = []
        for row in range(LANES):
            load = builder.load(pointer(source, stride, row))
            load.align = 4
            rows.append(load)
        for row, values in enumerate(_transposed(builder, rows)):
            store = builder.store(values, pointer(target, target_stride, row))
            store.align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square of registers: swap the off-diagonal quarters, of quarters, and so on."""
    step = LANES // 2
    while step:
        # lane i of a pair of rows k, k + step takes what belongs into its half of columns
        low = [i if not i & step else LANES + i - step for i in range(LANES)]
        high = [i + step if not i & step else LANES + i for i in range(LANES)]
        new = list(rows)
        for k in (k for k in range(LANES) if not k & step):
            for row, order in ((k, low), (k + step, high)):
                lanes = ir.Constant(BITS, order)
                new[row] = builder.shuffle_vector(rows[k], rows[k + step], lanes)
        rows, step = new, step // 2
    return rows


_PERMUTE = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}


def _permute(builder: ir.IRBuilder, row: ir.Value, lanes: ir.Value) -> ir.Value:
    """Return the register at pointer `row` with its lanes in another order."""
    if LANES in _PERMUTE:
        kind = ir.FunctionType(REGISTER, [REGISTER, BITS])
        permute = cgutils.get_or_insert_function(builder.module, kind, _PERMUTE[LANES])
        return builder.call(permute, [builder.load(row), lanes])
    values = builder.bitcast(row, _F32.as_pointer())
    result: ir.Value = ir.Constant(REGISTER, ir.Undefined)
    for lane in range(LANES):
        value = builder.load(builder.gep(values, [builder.extract_element(lanes, _I32(lane))]))
        result = builder.insert_element(result, value, _I32(lane))
    return result


@intrinsic
def pack_lanes(typing: Any, source: Any, target: Any, rows: Any, lanes: Any, begins: Any) -> Any:
    """Copy some lanes of each of `rows` rows of a tile, side by side, into another tile.

    Whole registers are stored, each over what the one before left too much; of the row that
    follows, `LANES` values are kept aside meanwhile. So `LANES` values past the last row of the
    target must be there, too; they do not change.

    Parameters
    ----------
    source, target : int64
        Addresses of the tiles.
    rows : int64
    lanes : int64
        Address of `TILE` int32: for each register, the lanes to take in their order, then any.
    begins : int64
        Address of `VECTORS` int64: for each register, where in a target row its lanes begin.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, target, rows, lanes, begins = arguments
        source = builder.inttoptr(source, REGISTER.as_pointer())
        target = builder.inttoptr(target, _F32.as_pointer())
        orders = builder.inttoptr(lanes, BITS.as_pointer())
        starts = builder.inttoptr(begins, _I64.as_pointer())
        parts = []
        for vector in range(VECTORS):
            order = builder.load(builder.gep(orders, [_I64(vector)]))
            order.align = 4
            parts.append((order, builder.load(builder.gep(starts, [_I64(vector)]))))

        def register_at(values: ir.Value) -> ir.Value:
            return builder.bitcast(values, REGISTER.as_pointer())

        with cgutils.for_range(builder, rows) as loop:
            read = builder.gep(source, [builder.mul(loop.index, _I64(VECTORS))])
            write = builder.gep(target, [builder.mul(loop.index, _I64(TILE))])
            after = register_at(builder.gep(write, [_I64(TILE)]))
            kept = builder.load(after)
            for vector, (order, start) in enumerate(parts):
                packed = _permute(builder, builder.gep(read, [_I64(vector)]), order)
                store = builder.store(packed, register_at(builder.gep(write, [start])))
                store.align = 4
            builder.store(kept, after)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen
