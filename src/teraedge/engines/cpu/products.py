"""The compiled functions over dense weights, for a few samples: a register is neighbouring neurons.

Kernels over panels have a sample in each lane, which four samples leave three quarters empty. Here
a block of neurons is in registers, for up to `MOST_ROWS` samples, and weights come in one stream.
Every sum is that of the panels: one multiply-add after the other, inputs ascending.
"""

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from teraedge.engines.cpu.curves import curves
from teraedge.engines.cpu.lanes import lanes_of
from teraedge.engines.cpu.simd import (
    LANES,
    REGISTER,
    SHAPE,
    fused_multiply_add,
    splat,
)
from teraedge.jit import inlined

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()

MOST_ROWS = 6
"""Samples at once: as many as there are registers for."""
BLOCK = LANES * (4 if SHAPE.tall == 4 else 2)
"""Sums of a wide block, in four registers for each sample where there are 32, else in two; a narrow
block is one register."""


class _Product:
    """Builds the loop over inputs for some registers of sums of some samples."""

    def __init__(self, builder: ir.IRBuilder, registers: int, rows: int, listed: bool) -> None:
        self.builder, self.registers, self.rows, self.listed = builder, registers, rows, listed

    def emit(self, arguments: list[ir.Value]) -> None:
        """Emit the loop; sums are read before it and written after it."""
        builder = self.builder
        x, stride, active, count, weights, sums = arguments
        self.x, self.stride = self.pointer(x, _F32), stride
        self.active = self.pointer(active, _I32)
        self.weights, places = self.pointer(weights, REGISTER), self.pointer(sums, REGISTER)
        slots = [builder.gep(places, [_I64(k)]) for k in range(self.rows * self.registers)]
        before = [builder.load(slot) for slot in slots]
        start, head = builder.block, builder.append_basic_block("inputs")
        body, done = builder.append_basic_block("input"), builder.append_basic_block("inputs.done")
        builder.branch(head)
        builder.position_at_end(head)
        number = builder.phi(_I64)
        number.add_incoming(_I64(0), start)
        totals = [builder.phi(REGISTER) for _ in slots]
        for total, value in zip(totals, before, strict=True):
            total.add_incoming(value, start)
        builder.cbranch(builder.icmp_signed("<", number, count), body, done)
        builder.position_at_end(body)
        after = self.one_input(number, list(totals))
        number.add_incoming(builder.add(number, _I64(1)), body)
        for total, value in zip(totals, after, strict=True):
            total.add_incoming(value, body)
        builder.branch(head)
        builder.position_at_end(done)
        for slot, total in zip(slots, totals, strict=True):
            builder.store(total, slot)

    def pointer(self, address: ir.Value, element: ir.Type) -> ir.Value:
        return self.builder.inttoptr(address, element.as_pointer())

    def one_input(self, number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        """Multiply an input of each sample into its sums."""
        builder = self.builder
        place = number
        if self.listed:
            place = builder.sext(builder.load(builder.gep(self.active, [number])), _I64)
        first = builder.mul(place, _I64(self.registers))
        row = [
            builder.load(builder.gep(self.weights, [builder.add(first, _I64(k))]))
            for k in range(self.registers)
        ]
        for sample in range(self.rows):
            at = builder.add(builder.mul(self.stride, _I64(sample)), place)
            value = splat(builder, builder.load(builder.gep(self.x, [at])))
            for k, weight in enumerate(row):
                slot = sample * self.registers + k
                totals[slot] = fused_multiply_add(builder, value, weight, totals[slot])
        return totals


@intrinsic
def add_products(
    typing: Any,
    registers: Any,
    rows: Any,
    x: Any,
    stride: Any,
    active: Any,
    count: Any,
    weights: Any,
    sums: Any,
) -> Any:
    """Add the products of inputs and weights of a block to its sums.

    Parameters
    ----------
    registers : int64
        Of the block: `BLOCK` / `LANES`, or 1.
    rows : int64
        Samples, at most `MOST_ROWS`.
    x, stride : int64
        Address of the float32 inputs of the first sample; from one sample to the next, in values.
    active : int64
        Address of the int32 numbers of the inputs that are taken, of one sample; 0 for all.
    count : int64
        Inputs that are taken.
    weights, sums : int64
        Addresses of float32 values, whole registers: [input][registers], [sample][registers].
    """
    signature = types.void(*[types.int64] * 8)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        registers, rows, *others = arguments
        done = builder.append_basic_block("done")
        listed = builder.icmp_signed("!=", others[2], _I64(0))
        rows = builder.select(listed, _I64(0), rows)
        switch = builder.switch(
            builder.add(builder.mul(rows, _I64(BLOCK)), registers), done
        )  # no two cases share a number: registers are fewer than that
        widths = sorted({1, BLOCK // LANES})
        for width, count in itertools.product(widths, range(MOST_ROWS + 1)):
            block = builder.append_basic_block("case")
            switch.add_case(_I64(count * BLOCK + width), block)
            builder.position_at_end(block)
            _Product(builder, width, max(count, 1), count == 0).emit(others)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


@inlined
def block_of(part, block):
    """Return where the weights of a block begin, its registers, and its first neuron and how many.

    Wide blocks come first.
    """
    wide = block < part.wide
    registers = BLOCK // LANES if wide else 1
    before = block * BLOCK if wide else part.wide * BLOCK + (block - part.wide) * LANES
    first = part.first + before
    return (
        part.dense + before * part.n_in,
        registers,
        first,
        min(registers * LANES, part.last - first),
    )


@inlined
def stream(shared, part, index, sample, turn, sums):
    """Multiply the nonzero inputs of one sample into the sums that dense weights go to.

    `sums` begin with room for a block; then come those of all neurons.
    """
    x = shared.values[turn, sample].ctypes.data
    for block in range(part.wide + part.narrow):
        weights, registers, first, count = block_of(part, block)
        sums[: registers * LANES] = 0
        # What the layer before left, part after part; the features are one.
        for before in range(shared.layers[index - 1].parts if index else 1):
            begin = shared.parts[shared.layers[index - 1].first_part + before].first if index else 0
            active = shared.active[turn, sample, begin:]
            add_products(
                registers, 1, x, 0, active.ctypes.data, shared.counts[turn, sample, before],
                shared.dense.ctypes.data + weights * 4, sums.ctypes.data,
            )  # fmt: skip
        totals = sums[BLOCK + first - part.first :]
        for j in range(count):
            totals[j] = sums[j]


@inlined
def run_products(shared, index, number, samples, rows_after, sums):
    """Run part `number` of a layer of dense weights for some samples, which lie row by row.

    They are written so where the next layer reads them so (`rows_after`), else a register a neuron.
    """
    layer = shared.layers[index]
    part, turn = shared.parts[layer.first_part + number], index % 2
    width = shared.values.shape[2]
    groups = (samples + MOST_ROWS - 1) // MOST_ROWS
    each = (samples + groups - 1) // groups
    shared.seen[index, number] = 0
    for block in range(part.wide + part.narrow):
        weights, registers, first, count = block_of(part, block)
        size = registers * LANES
        for begin in range(0, samples, each):
            rows = min(each, samples - begin)
            sums[: rows * size] = 0
            add_products(
                registers, rows, shared.values[turn, begin].ctypes.data, width, 0, part.n_in,
                shared.dense.ctypes.data + weights * 4, sums.ctypes.data,
            )  # fmt: skip
            for row in range(rows):
                mine, sample = sums[row * size :][:size], begin + row
                seen = finish_block(layer, shared.bias[layer.bias + first :], mine, count)
                bit = np.uint64(sample % LANES)
                shared.seen[index, number, sample // LANES] |= np.uint64(seen) << bit
                if rows_after:
                    shared.values[1 - turn, sample, first : first + count] = mine[:count]
                else:
                    lanes = shared.lanes[1 - turn, sample // LANES, sample % LANES :]
                    lane_count = lanes_of(samples - sample // LANES * LANES)
                    for j in range(count):
                        lanes[(first + j) * lane_count] = mine[j]


@inlined
def finish_block(layer, bias, sums, count):
    """Make the outputs of a block of its sums, in place; returns whether one is not zero."""
    for j in range(count):
        value = sums[j] + bias[j]
        value = layer.lower if value < layer.lower else value
        sums[j] = layer.upper if value > layer.upper else value
    if layer.curve:
        for register in range(0, count, LANES):
            curves(layer.curve, sums[register:].ctypes.data, 1, 1)
    seen = False
    for j in range(count):
        seen |= sums[j] != 0
    return seen
