"""What a layer costs in each of the CUDA kernels, to choose between them.

Seconds a sample on an H200. Other GPUs are faster or slower, but their shared memory and their L2
cache have about the same ratio, so that the order stays.
"""

from math import inf

from teraedge.plan.block import PANEL, STEP
from teraedge.plan.device import DeviceLayer
from teraedge.plan.kernel_sizes import LANES
from teraedge.plan.panels import PanelLayer
from teraedge.plan.staged import CHUNKS, READS_A_STEP, SAMPLES, WIDTH, Staging

SPEED = 132 * 1.98e9
"""Clocks a second of all multiprocessors: reads of 128 bytes that their shared memory serves."""
READS = 2.2e11
"""What the staged kernel reaches of them."""
L2_BYTES = 8e12
"""Bytes a second from the L2 cache, in pieces of 256 bytes; so fast the wide kernel gathers."""
RESIDENT_REACHED, TALL_REACHED = 0.9, 0.5
"""What the resident kernel reaches of `SPEED`, for single neurons and for tall panels."""
BLOCK_FRAGMENT = (1.17e-11, 1.17e-11, 1.37e-11, 1.48e-11)
"""What the block kernel takes for 16 neurons by 16 inputs, by the terms of their weights."""
HELD_FRAGMENT = 1.34
"""How much longer it takes where outputs overwrite inputs."""
PRODUCTS = (3, 3, 5, 6)
"""Products on tensor cores for each multiply-add, by the terms of weights."""
DENSE_RATE = 2e14
"""Products of single numbers a second in the dense kernel."""
FASTEST, SLOWEST = 2.1e13, 1e12
"""Edges a second beyond which no other kernel gets, and below which all are."""
BORDER = 3e-6
"""Seconds that a block of the resident kernel waits at the border of two layers."""
HBM_BYTES = 4.25e12
"""Bytes a second of a copy within device memory, read and written."""
SWITCH = 1e-9
"""What another kernel must save to be worth a change: a launch, and all rows read and written."""
STAGED_BYTES = 5e12
"""The same in the pieces of 32 bytes of which the staged kernel takes rows."""
PIECE_SECONDS = 5e-6 / 132
"""What the staged kernel takes for each part and output block besides, spread over 132 blocks that
run at once: the wait for its first rows and lists, and two barriers."""
CHAINED_PIECES = 0.65
"""Of the pieces that the wide kernel reads, what the chained one may read to be the faster: it has
more to do for each, as it takes 64 samples at a time and not 128."""
RESIDENT_FOUR = 3.1e12
"""Edges a second of the resident kernel with four samples, where weights and indices, which it
reads for every four samples, come from L2 as fast as they can."""
SMALL_EDGE, SMALL_NEURON = 3e-13, 1.4e-12
"""What the small kernel takes for an edge and for a neuron, a sample, where there are many."""
FEW = 1.5
"""How much longer than the resident kernel it may take for many samples: with few of them left, as
is soon the case, a layer takes 0.5 to 1 microsecond there, and 5 in the resident kernel."""


def small_seconds(edges: int, neurons: int) -> float:
    """Return what the small kernel takes, a sample."""
    return edges * SMALL_EDGE + neurons * SMALL_NEURON


def gathered_seconds(single: float, tall: float, samples: int, equal: bool) -> float:
    """Return what gathering from shared memory takes, a sample.

    Parameters
    ----------
    single, tall : float
        How often 32 lanes read an input each, for single neurons and for tall panels.
    samples : int
        Of a tile.
    equal : bool
        Whether all weights are, so that only indices are read besides.
    """
    chunks = samples // 4
    reads = single * (4 * chunks + (1 if equal else 3)) / RESIDENT_REACHED
    # Two chunks of samples at a time, and for each the indices and weights once more.
    splits = max(1, chunks // 2)
    reads += tall * (4 * chunks + splits * (1 if equal else 9)) / TALL_REACHED
    return reads / SPEED / samples


def resident_seconds(layer: PanelLayer, samples: int, tall_edge: float) -> float:
    """Return what the resident kernel takes with tiles of so many samples, 0 for none."""
    if samples == 0:
        return inf
    if samples < 8:
        return resident_four_seconds(layer, tall_edge)
    single, tall = len(layer.single.indices) / LANES, len(layer.tall.indices) / LANES
    seconds = gathered_seconds(single, tall, samples, layer.value is not None)
    return seconds + BORDER / 132 / samples


def block_seconds(layer: DeviceLayer) -> float:
    """Return what the block kernel takes."""
    if layer.block is None:
        return inf
    kind = layer.block.kind
    slower = HELD_FRAGMENT if kind.held else 1.0
    multiplied = layer.tall.slots / (PANEL * STEP) * BLOCK_FRAGMENT[kind.terms] * slower
    # Every tile reads all weights from L2, two bytes a term.
    return max(multiplied, layer.tall.slots * kind.terms * 2 / L2_BYTES / kind.samples)


def border_seconds(neurons: int, itemsize: int) -> float:
    """Return what a change of kernels takes, a sample: all rows are written and read again."""
    return max(SWITCH, 2 * neurons * itemsize / HBM_BYTES)


def dense_seconds(edges: int, terms: int) -> float:
    """Return what the dense kernel takes for so many edges, padding included."""
    return edges * PRODUCTS[terms] / DENSE_RATE


def block_at_best(layer: PanelLayer) -> float:
    """Return what the block kernel would take if no single neuron were padded."""
    inputs = len(layer.tall.indices) + len(layer.single.indices) / PANEL
    return inputs / STEP * BLOCK_FRAGMENT[0]


def wide_seconds(layer: PanelLayer, tall_edge: float, itemsize: int = 4) -> float:
    """Return what the wide kernel takes: it reads an activation an edge of a panel from L2."""
    reads = len(layer.single.indices) + tall_edge * len(layer.tall.indices)
    return reads * itemsize / L2_BYTES


def resident_four_seconds(layer: PanelLayer, tall_edge: float) -> float:
    """Return what the resident kernel takes with tiles of four samples."""
    return (len(layer.single.indices) + tall_edge * len(layer.tall.indices)) / RESIDENT_FOUR


def staged_seconds(layer: PanelLayer, plan: Staging) -> float:
    """Return what the staged kernel takes.

    Lists are read step by step, and reads that meet in a bank take turns. Before that, or at the
    same time where there is room for two parts, each output block gets all rows, and the lists
    stream in besides.
    """
    weights = layer.value is None
    steps = plan.slots / LANES
    reads = (steps * (READS_A_STEP - (not weights)) + plan.meetings * CHUNKS) / READS
    row_bytes = plan.blocks * layer.n_in * SAMPLES * 4
    rows = row_bytes / STAGED_BYTES
    lists = plan.slots * (6 if weights else 2) / L2_BYTES
    waits = plan.parts * plan.blocks * PIECE_SECONDS
    if plan.buffers > 1:
        writes = row_bytes / 128 / READS  # to shared memory, which is busy with reads
        return (max(reads + writes, rows + lists) + waits) / SAMPLES
    return (max(reads, lists) + rows + waits) / SAMPLES


def staged_at_best(layer: PanelLayer) -> float:
    """Return what the staged kernel would take without any padding, all reads hidden."""
    return max(layer.edges, WIDTH) / LANES * 4 * CHUNKS / READS / SAMPLES
