"""The inner loops over panels of neurons, as LLVM IR: what nearly all of a run's time goes into."""

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from teraedge.engines.cpu.simd import (
    BITS,
    LANES,
    VECTORS,
    fused_multiply_add,
    splat,
    splat_constant,
    vector_counts,
)

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_F32 = ir.FloatType()
_NO_BITS = ir.Constant(BITS, [0] * LANES)
NARROW = tuple(lanes for lanes in (4, 8, 16) if lanes <= LANES)
"""Samples of a row that is one register, or part of one."""


_flat = itertools.chain.from_iterable


class _Panels:
    """Builds the loop over the panels of a layer; one instance a specialisation.

    A panel is `height` neurons that read the same inputs: for each of its edges `vectors` registers
    of an input row are loaded and multiplied into those of `height` accumulator rows, which never
    leave registers. Wider tiles are done in blocks of `vectors`, all of a panel before the next
    panel: so its input rows, indices and weights are in L1 for all blocks but the first. A row is
    a list of registers: LLVM handles odd numbers of those badly as one vector.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        height: int,
        vectors: int,
        equal: bool,
        stride: int = VECTORS,
        lanes: int = LANES,
    ) -> None:
        self.builder, self.height, self.vectors, self.equal = builder, height, vectors, equal
        self.stride, self.lanes = stride, lanes
        self.register, self.bits = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)

    def emit(self, arguments: list[ir.Value], seen: ir.Value) -> None:
        """Emit the loop; values are or-ed into the registers at `seen`, one a register of a row."""
        index_bytes, x, y, blocks, count, starts, indices, weights, outputs, bias, *floats = (
            arguments
        )
        builder = self.builder
        value, lower, upper = floats
        x, y = self.pointer(x, self.register), self.pointer(y, self.register)
        self.starts, self.indices = self.pointer(starts, _I64), self.pointer(indices, _I8)
        self.index_bytes = index_bytes
        is_short = builder.icmp_signed("==", index_bytes, _I64(2))
        self.index_mask = builder.select(is_short, _I32(0xFFFF), _I32(0xFFFFFFFF))
        self.weights, self.outputs = self.pointer(weights, _F32), self.pointer(outputs, _I32)
        self.bias = self.pointer(bias, _F32)
        self.value = splat(builder, value, self.lanes)
        self.bounds = splat(builder, lower, self.lanes), splat(builder, upper, self.lanes)
        self.x, self.y, self.seen = x, y, seen
        self.over_panels(count, blocks)

    def over_panels(self, count: ir.Value, blocks: ir.Value) -> None:
        """Emit the loop over panels."""
        with cgutils.for_range(self.builder, count) as panel:
            self.over_blocks(blocks, [panel.index])

    def over_blocks(self, blocks: ir.Value, panels: list[ir.Value]) -> None:
        """Emit the loop over blocks of samples of one panel, or of two."""
        builder, x, y, seen = self.builder, self.x, self.y, self.seen
        with cgutils.for_range(builder, blocks) as block:
            first = builder.mul(block.index, _I64(self.vectors))
            self.x, self.y, self.seen = (builder.gep(start, [first]) for start in (x, y, seen))
            self.some_panels(panels)
        self.x, self.y, self.seen = x, y, seen

    def pointer(self, address: ir.Value, element: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, element.as_pointer())

    def load(self, pointer: ir.Value, position: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.gep(pointer, [position]))

    def row(self, tile: ir.Value, neuron: ir.Value) -> list[ir.Value]:
        """Pointers to the registers of a neuron's row: rows are `stride` registers apart."""
        begin = self.builder.mul(neuron, _I64(self.stride))
        start = self.builder.gep(tile, [begin])
        return [self.builder.gep(start, [_I64(k)]) for k in range(self.vectors)]

    def some_panels(self, panels: list[ir.Value]) -> None:
        """Emit sums, bias, activation and store of one panel or two over a block of samples."""
        builder = self.builder
        bits = [ir.Constant(self.bits, [0] * self.lanes)] * self.vectors
        for panel, rows in zip(panels, self.sum_edges(panels), strict=True):
            for neuron, totals in enumerate(rows):
                bits = self.finish(panel, neuron, totals, bits)
        for vector, new in enumerate(bits):
            pointer = builder.gep(self.seen, [_I64(vector)])
            builder.store(builder.or_(builder.load(pointer), new), pointer)

    def sum_edges(self, panels: list[ir.Value]) -> list[list[list[ir.Value]]]:
        """Emit the loops over the edges of panels; returns a row of totals a neuron of each."""
        builder, edges = self.builder, [self.edges_of(panel) for panel in panels]
        firsts, totals = [first for first, _, _ in edges], [self.no_totals() for _ in panels]
        if len(panels) > 1:  # as many edges of both as there are of each
            counts = [builder.sub(last, first) for first, last, _ in edges]
            less = builder.icmp_signed("<", *counts)
            common = builder.select(less, *counts)
            lasts = [builder.add(first, common) for first in firsts]
            totals, firsts = self.pairs_loop(firsts, lasts[0], totals), lasts
        rows = []
        for first, (_, last, odd), total in zip(firsts, edges, totals, strict=True):
            rest = self.pairs_loop([first], last, [total])[0]
            rows.append(self.last_edge(last, odd, rest))
        return rows

    def edges_of(self, panel: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the first edge of a panel, where its pairs end, and if there is one more."""
        builder = self.builder
        first = self.load(self.starts, panel)
        last = self.load(self.starts, builder.add(panel, _I64(1)))
        odd = builder.and_(builder.sub(last, first), _I64(1))
        return first, builder.sub(last, odd), odd

    def no_totals(self) -> list[ir.Value]:
        return [splat_constant(0.0, self.lanes)] * (self.height * self.vectors)

    def last_edge(
        self, pairs: ir.Value, odd: ir.Value, totals: list[ir.Value]
    ) -> list[list[ir.Value]]:
        """Emit the edge that is in no pair, if there is one; returns a row of totals a neuron."""
        builder = self.builder
        before, sums = builder.block, list(totals)
        with builder.if_then(builder.trunc(odd, ir.IntType(1))):
            self.one_edge(pairs, sums)
            inside = builder.block
        totals = [self.either(a, before, b, inside) for a, b in zip(totals, sums, strict=True)]
        return [totals[k : k + self.vectors] for k in range(0, len(totals), self.vectors)]

    def either(self, a: ir.Value, from_a: ir.Block, b: ir.Value, from_b: ir.Block) -> ir.Value:
        """Return a or b, depending on where the code came from."""
        if a is b:
            return a
        phi = self.builder.phi(self.register)
        phi.add_incoming(a, from_a)
        phi.add_incoming(b, from_b)
        return phi

    def pairs_loop(
        self, firsts: list[ir.Value], last: ir.Value, totals: list[list[ir.Value]]
    ) -> list[list[ir.Value]]:
        """Emit the loop that adds the edges from the first of `firsts` to `last`, two at a time.

        As many edges from each of the others on are added to totals of their own.
        """
        builder = self.builder
        before = builder.block
        head = builder.append_basic_block("pairs")
        body = builder.append_basic_block("pairs.body")
        done = builder.append_basic_block("pairs.done")
        builder.branch(head)
        builder.position_at_end(head)
        edges = [builder.phi(_I64) for _ in firsts]
        for edge, first in zip(edges, firsts, strict=True):
            edge.add_incoming(first, before)
        phis = [[builder.phi(self.register) for _ in row] for row in totals]
        for phi, total in zip(_flat(phis), _flat(totals), strict=True):
            phi.add_incoming(total, before)
        builder.cbranch(builder.icmp_signed("<", edges[0], last), body, done)
        builder.position_at_end(body)
        sums = [list(row) for row in phis]
        for step in range(2):
            for edge, row in zip(edges, sums, strict=True):
                self.one_edge(builder.add(edge, _I64(step)), row)
        for edge in edges:
            edge.add_incoming(builder.add(edge, _I64(2)), builder.block)
        for phi, total in zip(_flat(phis), _flat(sums), strict=True):
            phi.add_incoming(total, builder.block)
        builder.branch(head)
        builder.position_at_end(done)
        return [list(row) for row in phis]

    def one_edge(self, edge: ir.Value, sums: list[ir.Value]) -> None:
        """Multiply one input row into the totals of each neuron of the panel."""
        builder = self.builder
        row = [builder.load(pointer) for pointer in self.row(self.x, self.input_of(edge))]
        for k in range(self.height):
            weight = self.value
            if not self.equal:
                position = builder.add(builder.mul(edge, _I64(self.height)), _I64(k))
                weight = splat(builder, self.load(self.weights, position), self.lanes)
            for vector, x in enumerate(row):
                slot = k * self.vectors + vector
                sums[slot] = fused_multiply_add(builder, x, weight, sums[slot])

    def input_of(self, edge: ir.Value) -> ir.Value:
        """Load an index of two or four bytes: always four, and keep what belongs to it."""
        builder = self.builder
        address = builder.gep(self.indices, [builder.mul(edge, self.index_bytes)])
        index = builder.load(builder.bitcast(address, _I32.as_pointer()))
        index.align = 2
        return builder.zext(builder.and_(index, self.index_mask), _I64)

    def finish(
        self, panel: ir.Value, neuron: int, totals: list[ir.Value], seen: list[ir.Value]
    ) -> list[ir.Value]:
        """Emit bias, activation and store of one neuron; returns `seen` with its bits or-ed in."""
        builder = self.builder
        slot = builder.add(builder.mul(panel, _I64(self.height)), _I64(neuron))
        target = builder.sext(self.load(self.outputs, slot), _I64)
        bias = splat(builder, self.load(self.bias, target), self.lanes)
        lower, upper = self.bounds
        now = []
        for total, pointer, bits in zip(totals, self.row(self.y, target), seen, strict=True):
            y = builder.fadd(total, bias)
            y = builder.select(builder.fcmp_ordered("<", y, lower), lower, y)
            y = builder.select(builder.fcmp_ordered(">", y, upper), upper, y)
            builder.store(y, pointer)
            now.append(builder.or_(bits, builder.bitcast(y, self.bits)))
        return now


class _Pairs(_Panels):
    """The loop over panels of one neuron each, two at a time.

    One has too few accumulators to hide the latency of multiply-add.
    """

    def over_panels(self, count: ir.Value, blocks: ir.Value) -> None:
        """Emit the loop over panels: pairs, and perhaps one more."""
        builder = self.builder
        with cgutils.for_range(builder, builder.lshr(count, _I64(1))) as pair:
            first = builder.shl(pair.index, _I64(1))
            self.over_blocks(blocks, [first, builder.add(first, _I64(1))])
        odd = builder.trunc(builder.and_(count, _I64(1)), ir.IntType(1))
        with builder.if_then(odd):
            self.over_blocks(blocks, [builder.sub(count, _I64(1))])


def _loop_of(height: int, vectors: int) -> type[_Panels]:
    # More registers hide the latency by themselves, and two lists of rows wait longer for L3.
    return _Pairs if height == 1 and vectors <= 2 else _Panels


def live_lanes(
    builder: ir.IRBuilder, seen: ir.Value, vectors: int = VECTORS, lanes: int = LANES
) -> ir.Value:
    """Return a bit a lane: whether any of its values was nonzero, -0.0 counting as zero."""
    live: ir.Value = _I64(0)
    bits = ir.VectorType(_I32, lanes)
    for vector in range(vectors):
        values = builder.load(builder.gep(seen, [_I64(vector)]))
        magnitude = builder.and_(values, ir.Constant(bits, [0x7FFFFFFF] * lanes))
        nonzero = builder.icmp_unsigned("!=", magnitude, ir.Constant(bits, [0] * lanes))
        mask = builder.zext(builder.bitcast(nonzero, ir.IntType(lanes)), _I64)
        live = builder.or_(live, builder.shl(mask, _I64(vector * lanes)))
    return live


@intrinsic
def panels(
    typing: Any,
    height: Any,
    vectors: Any,
    equal: Any,
    index_bytes: Any,
    x: Any,
    y: Any,
    blocks: Any,
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
    vectors, equal : int64
        Registers of samples at once, one of `vector_counts(height)`; 1 where all weights are
        `value`. There is a loop for each combination.
    index_bytes : int64
        2 or 4.
    x, y : int64
        Addresses of the first samples in the tiles, float32, rows of `TILE` samples a neuron.
    blocks : int64
        How many times `vectors` registers of samples.
    count : int64
        Panels.
    starts, indices, weights, outputs, bias : int64
        Addresses: int64 (count + 1) edge offsets of the panels; uint16 or uint32 input neurons,
        with two bytes to spare at the end;
        float32 weights, `height` an edge; int32 output neurons, `height` a panel; float32 bias of
        all output neurons.
    value, lower, upper : float32
        The equal weight; the bounds of the activation.

    Returns
    -------
    uint64
        Bit i is set where sample i has a nonzero in one of these neurons.
    """
    return _over_panels(height)


@intrinsic
def narrow_panels(
    typing: Any,
    height: Any,
    lanes: Any,
    equal: Any,
    index_bytes: Any,
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
    """As `panels`, over rows of a few samples: one register of `lanes`, one of `NARROW`."""
    if not isinstance(height, types.IntegerLiteral):
        return None
    signature = types.uint64(height, *[types.int64] * 11, *[types.float32] * 3)
    tall = height.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        lanes, equal, index_bytes, x, y = arguments[1:6]
        live = cgutils.alloca_once_value(builder, _I64(0))
        done = builder.append_basic_block("done")
        switch = builder.switch(builder.add(builder.mul(lanes, _I64(2)), equal), done)
        for count, is_equal in itertools.product(NARROW, (False, True)):
            block = builder.append_basic_block("case")
            switch.add_case(_I64(2 * count + is_equal), block)
            builder.position_at_end(block)
            bits = ir.VectorType(_I32, count)
            seen = cgutils.alloca_once(builder, bits)
            builder.store(ir.Constant(bits, [0] * count), seen)
            kernel = _loop_of(tall, 1)(builder, tall, 1, is_equal, 1, count)
            kernel.emit([index_bytes, x, y, _I64(1), *arguments[6:]], seen)
            builder.store(live_lanes(builder, seen, 1, count), live)
            builder.branch(done)
        builder.position_at_end(done)
        return builder.load(live)

    return signature, codegen


def _over_panels(height: Any) -> Any:
    """Return the signature and the code of the loop over panels."""
    if not isinstance(height, types.IntegerLiteral):
        return None  # numba asks again with the literal type
    signature = types.uint64(height, *[types.int64] * 12, *[types.float32] * 3)
    tall = height.literal_value
    counts = vector_counts(tall)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        vectors, equal = arguments[1:3]
        seen = cgutils.alloca_once(builder, BITS, size=VECTORS)
        for vector in range(VECTORS):
            builder.store(_NO_BITS, builder.gep(seen, [_I64(vector)]))
        done = builder.append_basic_block("done")
        switch = builder.switch(builder.add(builder.mul(vectors, _I64(2)), equal), done)
        for count, is_equal in itertools.product(counts, (False, True)):
            block = builder.append_basic_block("case")
            switch.add_case(_I64(2 * count + is_equal), block)
            builder.position_at_end(block)
            kernel = _loop_of(tall, count)(builder, tall, count, is_equal)
            kernel.emit(list(arguments[3:]), seen)
            builder.branch(done)
        builder.position_at_end(done)
        return live_lanes(builder, seen)

    return signature, codegen
