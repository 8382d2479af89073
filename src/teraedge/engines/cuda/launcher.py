"""Which kernels a segment launches, and with what grid."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.driver import Device, Kernel, Stream
from teraedge.engines.cuda.program import LAYER
from teraedge.engines.cuda.specialisations import (
    CENSUS_THREADS,
    CHAINED_STAGES,
    DENSE_THREADS,
    WIDE_STAGES,
    WIDE_THREADS,
    bits,
    block,
    chained,
    chained_shared,
    compact,
    dense,
    resident,
    small,
    staged,
    wide,
    wide_shared,
)
from teraedge.engines.cuda.state import RunState
from teraedge.options import ITEMSIZE, Precision
from teraedge.plan.block_parts import BlockKind
from teraedge.plan.gpu import BIT_THREADS
from teraedge.plan.kernel_sizes import STATIC_SHARED, THREADS
from teraedge.plan.segments import Segment
from teraedge.plan.small import THREADS as SMALL_THREADS

ROUNDING = {
    "resident": "edges of the resident kernel are summed in an order that suits shared memory",
    "small": "edges of the small kernel are summed in an order that suits shared memory",
    "block": "layers of the block kernel sum products of bf16 or fp16 terms on tensor cores, which "
    "cut sums off at their last bit; products of terms below 2**-24 of a whole one are left out",
    "dense": "dense layers sum products of such terms as well, in another order",
}
"""What makes the last bits of a kernel differ from those of the reference."""


class Launcher:
    """Launches segments on a device; kernels are compiled when a segment first needs them."""

    def __init__(self, device: Device, precision: Precision) -> None:
        self._device, self._precision = device, precision
        self._itemsize = ITEMSIZE[precision]
        self._resident: dict[tuple[int, bool, bool], Kernel] = {}
        self._small: dict[bool, Kernel] = {}
        self._block: dict[BlockKind, Kernel] = {}
        self._bits: dict[tuple[int, bool], Kernel] = {}
        self._dense: dict[tuple[int, bool], Kernel] = {}
        self._staged: dict[tuple[int, bool], Kernel] = {}
        self._wide: dict[tuple[int, bool], tuple[Kernel, int]] = {}
        self._chained: dict[tuple[int, bool, bool], tuple[Kernel, int]] = {}
        self._compact = device.kernels(*compact(precision))
        self._grids: dict[tuple[int, int, int], int] = {}
        self._shares: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def prepare(self, segment: Segment) -> None:
        """Compile what a segment needs."""
        if segment.kernel == "resident":
            self._resident_kernel(segment)
        elif segment.kernel == "small":
            self._small_kernel(segment)
        elif segment.block is not None:
            self._block_kernel(segment.block)
        elif segment.kernel == "dense":
            self._dense_kernel(segment)
        elif segment.kernel == "staged":
            self._staged_kernel(segment)
        elif segment.kernel == "chained":
            self._chained_kernel(segment)
        else:
            if segment.bit_samples:
                self._bits_kernel(segment)
            for height in segment.heights:
                self._wide_kernel(height, segment.curved)

    def launch(
        self, stream: Stream, segment: Segment, layers: int, state: RunState, number: int
    ) -> None:
        """Queue a segment.

        Parameters
        ----------
        stream : Stream
        segment : Segment
        layers : int
            Device address of the table entry of its first layer.
        state : RunState
        number : int
            Of the segment in the run.
        """
        if segment.kernel == "resident":
            kernel = self._resident_kernel(segment)
            stream.launch(
                kernel, self.blocks(kernel, THREADS, segment.shared), THREADS, segment.shared,
                layers, segment.first, segment.count, state.struct, number, segment.moves,
            )  # fmt: skip
            return
        if segment.kernel == "small":
            kernel = self._small_kernel(segment)
            stream.launch(
                kernel, self.blocks(kernel, SMALL_THREADS, segment.shared), SMALL_THREADS,
                segment.shared, layers, segment.first, segment.count, state.struct, number,
                segment.moves, *segment.sizes,
            )  # fmt: skip
            return
        if segment.block is not None:
            kernel = self._block_kernel(segment.block)
            stream.launch(
                kernel, self.blocks(kernel, THREADS, segment.shared), THREADS, segment.shared,
                layers, segment.first, segment.count, state.struct, number, segment.moves,
                number == 0, segment.takes_own, segment.gives_own,
                segment.plane, segment.record,
            )  # fmt: skip
            return
        # Values of two bytes are not copied from anywhere without waiting for each.
        leaves = segment.leaves and self._itemsize == 4
        if segment.kernel == "dense":
            kernel, shared = self._dense_kernel(segment), segment.shared
            grid = self.blocks(kernel, DENSE_THREADS, shared)
            stream.launch(kernel, grid, DENSE_THREADS, shared, layers, state.struct, number)
        elif segment.kernel == "staged":
            kernel, shared = self._staged_kernel(segment), segment.shared
            grid = self.blocks(kernel, THREADS, shared)
            stream.launch(
                kernel, grid, THREADS, shared, layers, state.struct, number,
                segment.takes_own, segment.gives_own,
            )  # fmt: skip
        elif segment.kernel == "chained":
            kernel, shared = self._chained_kernel(segment)
            stream.launch(
                kernel, self.blocks(kernel, WIDE_THREADS, shared), WIDE_THREADS, shared,
                layers, state.struct, number, number == 0, segment.first, leaves,
            )  # fmt: skip
        else:
            if segment.bit_samples:
                kernel, shared = self._bits_kernel(segment), segment.shared
                threads = BIT_THREADS[segment.bit_samples]
                stream.launch(
                    kernel, self.blocks(kernel, threads, shared), threads, shared,
                    layers, state.struct, number, max(segment.heights),
                )  # fmt: skip
            takes_bits = (number == 0) + (segment.bit_samples > 0)
            for height in segment.heights:
                kernel, shared = self._wide_kernel(height, segment.curved)
                grid = self.blocks(kernel, WIDE_THREADS, shared)
                stream.launch(
                    kernel, grid, WIDE_THREADS, shared, layers, state.struct, number, takes_bits
                )
        if segment.kernel != "chained":  # which does it itself
            stream.launch(
                self._compact["census"], 1, CENSUS_THREADS, 0,
                layers, segment.first, state.struct, number, leaves,
            )  # fmt: skip
        if segment.moves and not leaves:
            grid = self.blocks(self._compact["compact"], 256, 0)
            stream.launch(
                self._compact["compact"], grid, 256, 0, layers, state.struct, number,
                segment.gives_own,
            )  # fmt: skip

    def blocks_of(self, segments: list[Segment]) -> NDArray[np.int64]:
        """Return the blocks that share the time of each layer of segments, shape ``(layers,)``."""
        key = tuple(segment.first for segment in segments)
        if key not in self._shares:
            counts = [np.full(segment.count, self.sharing(segment)) for segment in segments]
            self._shares[key] = np.concatenate(counts)
        return self._shares[key]

    def sharing(self, segment: Segment) -> int:
        """Return the blocks that share the time of a layer of a segment."""
        if segment.block is not None:
            kernel = self._block_kernel(segment.block)
            return self.blocks(kernel, THREADS, segment.shared)
        if segment.kernel == "small":
            return self.blocks(self._small_kernel(segment), SMALL_THREADS, segment.shared)
        if segment.kernel != "resident":
            return 1  # its time is taken as a whole
        return self.blocks(self._resident_kernel(segment), THREADS, segment.shared)

    def _resident_kernel(self, segment: Segment) -> Kernel:
        key = segment.samples, max(segment.heights, default=1) > 1, segment.curved
        if key not in self._resident:
            file, defines, names = resident(*key, self._precision)
            self._resident[key] = self._device.kernels(file, defines, names)[names[0]]
        return self._resident[key]

    def _small_kernel(self, segment: Segment) -> Kernel:
        if segment.curved not in self._small:
            file, defines, names = small(segment.curved)
            self._small[segment.curved] = self._device.kernels(file, defines, names)[names[0]]
        return self._small[segment.curved]

    def _block_kernel(self, kind: BlockKind) -> Kernel:
        if kind not in self._block:
            file, defines, names = block(kind)
            self._block[kind] = self._device.kernels(file, defines, names)[names[0]]
        return self._block[kind]

    def _dense_kernel(self, segment: Segment) -> Kernel:
        key = segment.terms, segment.curved
        if key not in self._dense:
            file, defines, names = dense(*key, self._precision)
            self._dense[key] = self._device.kernels(file, defines, names)[names[0]]
        return self._dense[key]

    def _staged_kernel(self, segment: Segment) -> Kernel:
        key = segment.buffers, segment.curved
        if key not in self._staged:
            file, defines, names = staged(*key)
            self._staged[key] = self._device.kernels(file, defines, names)[names[0]]
        return self._staged[key]

    def _bits_kernel(self, segment: Segment) -> Kernel:
        key = segment.bit_samples, segment.curved
        if key not in self._bits:
            file, defines, names = bits(*key, self._precision)
            self._bits[key] = self._device.kernels(file, defines, names)[names[0]]
        return self._bits[key]

    def _wide_kernel(self, height: int, curved: bool) -> tuple[Kernel, int]:
        """Return the wide kernel for a height of panels, and its dynamic shared memory."""
        key = height, curved
        if key not in self._wide:
            nbytes = partial(wide_shared, height, itemsize=self._itemsize)
            stages = self._stages(WIDE_STAGES[self._itemsize], nbytes)
            file, defines, names = wide(height, stages, curved, self._precision)
            kernel = self._device.kernels(file, defines, names)[names[0]]
            self._wide[key] = kernel, nbytes(stages)
        return self._wide[key]

    def _chained_kernel(self, segment: Segment) -> tuple[Kernel, int]:
        """Return the chained kernel for a segment, and its dynamic shared memory."""
        equal = segment.equal and (self._itemsize, True) in CHAINED_STAGES
        key = height, curved, _ = segment.heights[0], segment.curved, equal
        if key not in self._chained:
            nbytes = partial(chained_shared, height, itemsize=self._itemsize, equal_only=equal)
            stages = self._stages(CHAINED_STAGES[self._itemsize, equal], nbytes)
            file, defines, names = chained(height, stages, curved, self._precision, equal)
            kernel = self._device.kernels(file, defines, names)[names[0]]
            self._chained[key] = kernel, nbytes(stages)
        return self._chained[key]

    def _stages(self, counts: tuple[int, ...], nbytes: Callable[[int], int]) -> int:
        """Return the most stages that there is room for, or the least that there are."""
        room = self._device.shared_bytes - STATIC_SHARED
        return next((n for n in counts if nbytes(n) <= room), counts[-1])

    def blocks(self, kernel: Kernel, threads: int, shared: int) -> int:
        """Return a grid that fills the device once."""
        key = id(kernel), threads, shared
        if key not in self._grids:
            resident = kernel.occupancy(threads, shared)
            self._grids[key] = self._device.multiprocessors * max(1, resident)
        return self._grids[key]


def layer_address(table: int, index: int) -> int:
    """Return the address of an entry of a table of layers."""
    return table + index * LAYER.itemsize
