"""Vector code for numba: the inner loops as LLVM IR, for the vector width of this machine.

numba's own vectoriser does not keep a block of accumulators in registers, so the loops that carry
the run are written here as intrinsics over whole vectors. LLVM splits a vector that is wider than
the machine's, so the same IR runs everywhere; `LANES` and `VECTORS` only set how much of it there
is at a time.

Addresses are passed as integers: a layer's arrays have differing types, and a plan keeps them all
in one table.
"""

import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()


def _vector_shape(features: str) -> tuple[int, int]:
    """Return (float32 lanes of a register, registers of one tile row) for a machine."""
    if "+avx512f" in features:
        return 16, 4
    if "+avx" in features:
        return 8, 2  # 16 registers: 4 neurons x 2 accumulators leave room for inputs and weights
    return 4, 4 if "+neon" in features else 2


_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2] + ","
LANES, VECTORS = _vector_shape(_FEATURES)
FUSED = any(name in _FEATURES for name in ("+fma,", "+fma4,", "+avx512f,", "+neon,"))
TILE = LANES * VECTORS
"""Samples side by side in a tile: a row of a tile is one neuron's values for so many samples."""
HEIGHT = 4
"""Neurons with the same inputs that one panel computes together."""


_REGISTER = ir.VectorType(_F32, LANES)
_BITS = ir.VectorType(_I32, LANES)


def _splat_constant(value: float) -> ir.Constant:
    return ir.Constant(_REGISTER, [value] * LANES)


def splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """Return a register with the same value in every lane."""
    undefined = ir.Constant(_REGISTER, ir.Undefined)
    one = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(_BITS, [0] * LANES))


def fused_multiply_add(
    builder: ir.IRBuilder, x: ir.Value, weight: ir.Value, total: ir.Value
) -> ir.Value:
    """Return x weight + total of registers, rounded once where the machine can.

    Explicit, because LLVM would share the product of equal weights, and then add.
    """
    if FUSED:
        kind = ir.FunctionType(_REGISTER, [_REGISTER] * 3)
        name = f"llvm.fma.v{LANES}f32"
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, name), [x, weight, total]
        )
    return builder.fadd(total, builder.fmul(x, weight))


class _Panels:
    """Builds the loop over the panels of a layer; one instance a specialisation.

    A panel is `height` neurons that read the same inputs: for each of its edges one row of the
    tile is loaded and multiplied into `height` accumulator rows, which never leave registers.
    A row is a list of `vectors` registers: LLVM handles odd numbers of those badly as one vector.
    """

    def __init__(
        self, builder: ir.IRBuilder, height: int, vectors: int, equal: bool, index: ir.Type
    ) -> None:
        self.builder, self.height, self.vectors = builder, height, vectors
        self.equal, self.index = equal, index
        # A single neuron has too few accumulators to hide the latency of multiply-add: two sets.
        self.sets = 2 if height == 1 else 1

    def emit(self, arguments: list[ir.Value]) -> ir.Value:
        """Emit the loop; returns the bits of lanes that hold a nonzero in any neuron."""
        (x, y, panels, starts, indices, weights, outputs, bias, value, lower, upper) = arguments
        builder = self.builder
        self.x, self.y = self.pointer(x, _F32), self.pointer(y, _F32)
        self.starts, self.indices = self.pointer(starts, _I64), self.pointer(indices, self.index)
        self.weights, self.outputs = self.pointer(weights, _F32), self.pointer(outputs, _I32)
        self.bias = self.pointer(bias, _F32)
        self.value = splat(builder, value)
        self.bounds = splat(builder, lower), splat(builder, upper)

        before = builder.block
        head = builder.append_basic_block("panels")
        body = builder.append_basic_block("panel")
        done = builder.append_basic_block("panels.done")
        builder.branch(head)
        builder.position_at_end(head)
        panel = builder.phi(_I64)
        panel.add_incoming(_I64(0), before)
        seen = [builder.phi(_BITS) for _ in range(self.vectors)]
        for phi in seen:
            phi.add_incoming(ir.Constant(_BITS, [0] * LANES), before)
        builder.cbranch(builder.icmp_signed("<", panel, panels), body, done)
        builder.position_at_end(body)
        now = list(seen)
        for neuron, totals in enumerate(self.sum_edges(panel)):
            now = self.finish(panel, neuron, totals, now)
        panel.add_incoming(builder.add(panel, _I64(1)), builder.block)
        for phi, bits in zip(seen, now, strict=True):
            phi.add_incoming(bits, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return self.live_lanes(list(seen))

    def pointer(self, address: ir.Value, element: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, element.as_pointer())

    def load(self, pointer: ir.Value, position: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.gep(pointer, [position]))

    def row(self, tile: ir.Value, neuron: ir.Value) -> list[ir.Value]:
        """Pointers to the registers of a neuron's row: rows are TILE floats apart."""
        builder = self.builder
        begin = builder.mul(neuron, _I64(TILE))
        starts = [builder.add(begin, _I64(k * LANES)) for k in range(self.vectors)]
        return [
            builder.bitcast(builder.gep(tile, [start]), _REGISTER.as_pointer()) for start in starts
        ]

    def sum_edges(self, panel: ir.Value) -> list[list[ir.Value]]:
        """Emit the loop over a panel's edges, two at a time; returns a row of totals a neuron."""
        builder = self.builder
        first = self.load(self.starts, panel)
        last = self.load(self.starts, builder.add(panel, _I64(1)))
        pairs = builder.sub(last, builder.and_(builder.sub(last, first), _I64(1)))
        totals = [_splat_constant(0.0)] * (self.height * self.sets * self.vectors)
        totals = self.edge_loop("pairs", first, pairs, totals, unroll=2)
        totals = self.edge_loop("rest", pairs, last, totals, unroll=1)
        rows = [totals[k : k + self.vectors] for k in range(0, len(totals), self.vectors)]
        if self.sets == 2:
            return [[builder.fadd(a, b) for a, b in zip(*rows, strict=True)]]
        return rows

    def edge_loop(
        self, name: str, first: ir.Value, last: ir.Value, totals: list[ir.Value], unroll: int
    ) -> list[ir.Value]:
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block(name)
        body = builder.append_basic_block(name + ".body")
        done = builder.append_basic_block(name + ".done")
        builder.branch(head)
        builder.position_at_end(head)
        edge = builder.phi(_I64)
        edge.add_incoming(first, before)
        phis = [builder.phi(_REGISTER) for _ in totals]
        for phi, total in zip(phis, totals, strict=True):
            phi.add_incoming(total, before)
        builder.cbranch(builder.icmp_signed("<", edge, last), body, done)
        builder.position_at_end(body)
        sums = list(phis)
        for step in range(unroll):
            self.one_edge(builder.add(edge, _I64(step)), sums, step % self.sets)
        edge.add_incoming(builder.add(edge, _I64(unroll)), builder.block)
        for phi, total in zip(phis, sums, strict=True):
            phi.add_incoming(total, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return list(phis)

    def one_edge(self, edge: ir.Value, sums: list[ir.Value], offset: int) -> None:
        """Multiply one input row into the totals of each neuron of the panel."""
        builder = self.builder
        neuron = builder.zext(self.load(self.indices, edge), _I64)
        row = [builder.load(pointer) for pointer in self.row(self.x, neuron)]
        for k in range(self.height):
            weight = self.value
            if not self.equal:
                position = builder.add(builder.mul(edge, _I64(self.height)), _I64(k))
                weight = splat(builder, self.load(self.weights, position))
            for vector, x in enumerate(row):
                slot = (k + offset) * self.vectors + vector
                sums[slot] = fused_multiply_add(builder, x, weight, sums[slot])

    def finish(
        self, panel: ir.Value, neuron: int, totals: list[ir.Value], seen: list[ir.Value]
    ) -> list[ir.Value]:
        """Emit bias, activation and store of one neuron; returns `seen` with its bits or-ed in."""
        builder = self.builder
        slot = builder.add(builder.mul(panel, _I64(self.height)), _I64(neuron))
        target = builder.sext(self.load(self.outputs, slot), _I64)
        bias = splat(builder, self.load(self.bias, target))
        lower, upper = self.bounds
        now = []
        for total, pointer, bits in zip(totals, self.row(self.y, target), seen, strict=True):
            y = builder.fadd(total, bias)
            y = builder.select(builder.fcmp_ordered("<", y, lower), lower, y)
            y = builder.select(builder.fcmp_ordered(">", y, upper), upper, y)
            builder.store(y, pointer)
            now.append(builder.or_(bits, builder.bitcast(y, _BITS)))
        return now

    def live_lanes(self, seen: list[ir.Value]) -> ir.Value:
        """Return a bit a lane: whether any of its values was nonzero, -0.0 counting as zero."""
        builder = self.builder
        live: ir.Value = _I64(0)
        for vector, bits in enumerate(seen):
            magnitude = builder.and_(bits, ir.Constant(_BITS, [0x7FFFFFFF] * LANES))
            nonzero = builder.icmp_unsigned("!=", magnitude, ir.Constant(_BITS, [0] * LANES))
            mask = builder.zext(builder.bitcast(nonzero, ir.IntType(LANES)), _I64)
            live = builder.or_(live, builder.shl(mask, _I64(vector * LANES)))
        return live


@intrinsic
def panels(
    typing: Any,
    height: Any,
    vectors: Any,
    equal: Any,
    wide: Any,
    x: Any,
    y: Any,
    count: Any,
    starts: Any,
    indices: Any,
    weights: Any,
    outputs: Any,
    bias: Any,
    value: Any,
    lower: Any,
    upper: Any,
) -> Any:
    """Compute y = f(x W + b) for panels of a layer over a tile; returns the live lanes as bits.

    Parameters
    ----------
    height : literal int
        Neurons a panel.
    vectors, equal, wide : int64
        Registers of samples, 1 to `VECTORS`; 1 where all weights are `value`; 1 where indices are
        4 bytes wide, not 2. There is a loop for each combination.
    x, y : int64
        Addresses of the tiles, float32, a row of `TILE` samples a neuron.
    count : int64
        Panels.
    starts, indices, weights, outputs, bias : int64
        Addresses: int64 (count + 1) edge offsets of the panels; uint16 or uint32 input neurons;
        float32 weights, `height` an edge; int32 output neurons, `height` a panel; float32 bias of
        all output neurons.
    value, lower, upper : float32
        The equal weight; the bounds of the activation.

    Returns
    -------
    uint64
        Bit i is set where sample i has a nonzero in one of these neurons.
    """
    if not isinstance(height, types.IntegerLiteral):
        return None  # numba asks again with the literal type
    signature = types.uint64(height, *[types.int64] * 11, *[types.float32] * 3)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vectors, equal, wide = arguments[1:4]
        case = builder.add(builder.mul(vectors, _I64(4)), builder.mul(equal, _I64(2)))
        case = builder.add(case, wide)
        done = builder.append_basic_block("done")
        switch = builder.switch(case, done)
        results = [(_I64(0), builder.block)]
        for number in range(4, 4 * (VECTORS + 1)):
            block = builder.append_basic_block("case")
            switch.add_case(_I64(number), block)
            builder.position_at_end(block)
            index = _I32 if number & 1 else _I16
            kernel = _Panels(builder, height.literal_value, number // 4, bool(number & 2), index)
            live = kernel.emit(list(arguments[4:]))
            results.append((live, builder.block))
            builder.branch(done)
        builder.position_at_end(done)
        result = builder.phi(_I64)
        for value, block in results:
            result.add_incoming(value, block)
        return result

    return signature, codegen


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
        base = builder.inttoptr(tile, _REGISTER.as_pointer())
        packed = builder.inttoptr(source, bytes_.as_pointer())
        for vector in range(VECTORS):
            load = builder.load(builder.gep(packed, [_I64(vector)]))
            load.align = 1
            for bit in range(8):
                mask = ir.Constant(bytes_, [128 >> bit] * LANES)
                zero = ir.Constant(bytes_, [0] * LANES)
                on = builder.icmp_unsigned("!=", builder.and_(load, mask), zero)
                values = builder.select(on, _splat_constant(1.0), _splat_constant(0.0))
                row = builder.add(neuron, _I64(bit))
                register = builder.add(builder.mul(row, _I64(VECTORS)), _I64(vector))
                builder.store(values, builder.gep(base, [register]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def pack_lanes(typing: Any, source: Any, bits: Any, target: Any, rows: Any) -> Any:
    """Copy the lanes set in `bits` of each of `rows` rows, side by side, to `target`.

    Parameters
    ----------
    source, target : int64
        Addresses: of the tile, and of the first lane to fill in the other tile.
    bits : uint64
    rows : int64
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, bits, target, rows = arguments
        lane_bits = ir.IntType(LANES)
        kind = ir.FunctionType(
            ir.VoidType(), [_REGISTER, _F32.as_pointer(), ir.VectorType(_I1, LANES)]
        )
        name = f"llvm.masked.compressstore.v{LANES}f32"
        compress = cgutils.get_or_insert_function(builder.module, kind, name)
        # The masks and where each register's lanes go are the same for every row.
        parts, begin = [], _I64(0)
        for vector in range(VECTORS):
            part = builder.trunc(builder.lshr(bits, _I64(vector * LANES)), lane_bits)
            parts.append((begin, builder.bitcast(part, ir.VectorType(_I1, LANES))))
            begin = builder.add(begin, builder.zext(builder.ctpop(part), _I64))
        with cgutils.for_range(builder, rows) as loop:
            offset = builder.mul(loop.index, _I64(TILE))
            read = builder.gep(builder.inttoptr(source, _F32.as_pointer()), [offset])
            write = builder.gep(builder.inttoptr(target, _F32.as_pointer()), [offset])
            for vector, (begin, mask) in enumerate(parts):
                address = builder.gep(read, [_I64(vector * LANES)])
                values = builder.load(builder.bitcast(address, _REGISTER.as_pointer()))
                builder.call(compress, [values, builder.gep(write, [begin]), mask])
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64, types.int64, types.int64), codegen
