"""The layout of the *staged* kernel: lists of edges for each part of the inputs.

The staged kernel brings `part_rows` inputs at a time into shared memory. Every slice of neurons has
a list of edges for each part, with indices from the part's first input on. See `plan.parts` for
which neurons make a slice.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from teraedge.plan import parts
from teraedge.plan.device import (
    DeviceLayer,
    DevicePanels,
    in_group_order,
    lanes_of,
    list_table,
    sliced,
)
from teraedge.plan.kernel_sizes import LANES, WARPS, ZERO_ROWS
from teraedge.plan.panels import PanelLayer

SAMPLES = 8
"""Samples that a block takes at a time."""
LISTS, SLICES = 4, 2
"""Neurons of a lane in a slice, and slices of a warp. The product is all that registers have room
for, twice that of the resident kernel, because every row that is brought then serves twice as many
neurons. Fewer neurons a slice are padded less, but their lists end sooner, and each begins with a
wait."""
WIDTH = LISTS * LANES
"""Neurons of a slice."""
CHUNKS = SAMPLES // 4
GROUP = 8 // CHUNKS
"""Lanes that must read from different banks."""
READS_A_STEP = 4 * CHUNKS + 1.5
"""Reads of 128 bytes that a step of 32 lanes takes: rows, and an index and a weight for two."""
MOST_PARTS = 32
"""With more, lists are a few edges long, and most of them padding."""


@dataclass(frozen=True)
class Staging:
    """How a layer's inputs are cut into parts, and its neurons into slices.

    Attributes
    ----------
    buffers : int
        Parts that there is room for at a time.
    parts, part_rows : int
    order : ndarray of int64, shape (n_out,)
        The neurons, slice after slice; in a plan that is settled, in each group after group.
    counts : ndarray of int64, shape (n_out, parts * GROUP)
        Inputs of each neuron by part and residue.
    lengths : ndarray of int64, shape (parts, slices)
        Steps of each list, an even number.
    meetings : int
        Reads that cannot but meet another in a bank; known of plans that are settled.
    """

    buffers: int
    parts: int
    part_rows: int
    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    meetings: int = 0

    @property
    def slices(self) -> int:
        """Slices of neurons."""
        return int(self.lengths.shape[1])

    @property
    def blocks(self) -> int:
        """Output blocks: neurons that a block of threads works on at a time."""
        return -(-self.slices // (WARPS * SLICES))

    @property
    def slots(self) -> int:
        """Edges that run, padding included."""
        return int(self.lengths.sum()) * WIDTH

    @property
    def shared(self) -> int:
        """Shared memory of a block, in bytes."""
        return self.buffers * (self.part_rows + ZERO_ROWS) * SAMPLES * 4


def staging(layer: PanelLayer, room: int, buffers: int) -> Staging | None:
    """Cut a layer for `buffers` parts at a time in `room` bytes; None where that makes too many.

    Parameters
    ----------
    layer : PanelLayer
        Without tall panels.
    room, buffers : int
    """
    most = (room // (buffers * SAMPLES * 4) - ZERO_ROWS) // 8 * 8
    if most <= 0 or -(-layer.n_in // most) > MOST_PARTS:
        return None
    count = -(-layer.n_in // most)
    rows = -(-layer.n_in // (count * 8)) * 8  # whole rounds of the banks
    count = -(-layer.n_in // rows)
    starts, indices = layer.single.starts, layer.single.indices.astype(np.int64)
    counts = parts.part_counts(starts, indices, rows, count, GROUP)
    edges = counts.reshape(len(counts), count, GROUP).sum(axis=2)
    pairs = (edges + 1) // 2
    order = parts.similar_slices(pairs, WIDTH)
    firsts = np.arange(0, len(order), WIDTH)
    lengths = 2 * np.maximum.reduceat(pairs[order], firsts, axis=0).T
    return Staging(buffers, count, rows, order, counts, np.ascontiguousarray(lengths))


def settled(plan: Staging) -> Staging:
    """Put neurons into groups in which few reads meet in a bank, and tell how many do.

    A list gets two steps more where that costs less than the reads that then meet no more.
    """
    order = parts.mixed_groups(plan.order, plan.counts, WIDTH, GROUP)
    parts.swap_panels(order, plan.counts, plan.lengths, WIDTH, GROUP)
    firsts = np.arange(0, len(order), GROUP)
    load = np.add.reduceat(plan.counts[order], firsts, axis=0)
    load = load.reshape(len(firsts), plan.parts, GROUP)
    slices = np.arange(0, len(firsts), WIDTH // GROUP)
    of_slice = np.arange(len(firsts)) // (WIDTH // GROUP)

    def meetings(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        excess = np.maximum(load - lengths.T[of_slice, :, None], 0).sum(axis=2)
        result: NDArray[np.int64] = np.add.reduceat(excess, slices, axis=0).T
        return result

    lengths, now = plan.lengths, meetings(plan.lengths)
    while True:
        longer = meetings(lengths + 2)
        pays = (now - longer) * CHUNKS > 2 * LISTS * READS_A_STEP
        if not pays.any():
            return replace(plan, order=order, lengths=lengths, meetings=int(now.sum()))
        lengths = lengths + 2 * pays
        now = np.where(pays, longer, now)


def lay_out_staged(layer: PanelLayer, plan: Staging) -> DeviceLayer:
    """Lay a layer out for the staged kernel."""
    panels, rows = layer.single, plan.part_rows
    starts, indices = panels.starts, panels.indices.astype(np.int64)
    lanes = in_group_order(plan.order, GROUP, WIDTH)
    steps = np.empty(len(indices), np.int64)
    parts.order_parts(lanes, starts, indices, plan.counts, GROUP, rows, plan.lengths, steps)
    lengths = plan.lengths.ravel()
    first = np.cumsum(lengths) - lengths
    slot = np.repeat(lanes_of(lanes, len(plan.order)), np.diff(starts))
    of_list = indices // rows * plan.slices + slot // WIDTH
    place = first[of_list] + steps, slot % WIDTH
    table = np.full((int(lengths.sum()), WIDTH), -1, np.int64)
    table[place] = indices % rows
    packed = sliced(panels, layer, SAMPLES, lanes, place, table, rows)
    empty = np.empty(0, np.int64)
    single = DevicePanels(1, list_table(first // 2, lengths // 2), *packed, slots=table.size)
    return DeviceLayer(
        kernel="staged",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=SAMPLES,
        shared=plan.shared,
        tall=replace(
            single,
            lists=list_table(empty, empty),
            indices=single.indices[:0],
            weights=single.weights[:0],
            targets=single.targets[:0],
            slots=0,
        ),
        single=single,
        value=layer.value,
        choice=layer.choice.without_times("staged"),
        bias=layer.bias,
        clamp=layer.clamp,
        curve=layer.curve,
        parts=plan.parts,
        part_rows=rows,
        buffers=plan.buffers,
    )
