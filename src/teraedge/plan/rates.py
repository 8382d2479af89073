"""What a layer costs in each of the CUDA kernels, to choose between them.

Seconds a sample on an H200. Other GPUs are faster or slower, but their shared memory and their L2
cache have about the same ratio, so that the order stays.
"""

from math import inf

from teraedge.plan.block import PANEL, STEP
from teraedge.plan.device import LANES, DeviceLayer
from teraedge.plan.panels import PanelLayer
from teraedge.plan.staged import CHUNKS, READS_A_STEP, SAMPLES, WIDTH, Staging

READS = 2.2e11
"""Reads of 128 bytes that the shared memory of all multiprocessors serves in a second: 132 of them
at 1.98 GHz, of which the resident kernel reaches 85 %."""
L2_BYTES = 8e12
"""Bytes a second from the L2 cache, in pieces of 256 bytes; so fast the wide kernel gathers."""
RESIDENT_REACHED, TALL_REACHED = 0.9, 0.5
"""What the resident kernel reaches of `READS`, for single neurons and for tall panels."""
BLOCK_FRAGMENT = (1.24e-11, 1.5e-11, 1.64e-11, 1.78e-11)
"""What the block kernel takes for 16 neurons by 16 inputs, by the terms of their weights."""
HELD_FRAGMENT = 1.34
"""How much longer it takes where outputs overwrite inputs."""
SWITCH = 4e-10
"""What changing between kernels costs: a launch, and reading and writing all rows of a tile."""
STAGED_BYTES = 5e12
"""The same in the pieces of 32 bytes of which the staged kernel takes rows."""
PIECE_SECONDS = 5e-6 / 132
"""What the staged kernel takes for each part and output block besides, spread over 132 blocks that
run at once: the wait for its first rows and lists, and two barriers."""
RESIDENT_FOUR = 3.1e12
"""Edges a second of the resident kernel with four samples, where weights and indices, which it
reads for every four samples, come from L2 as fast as they can."""


def resident_seconds(layer: PanelLayer, samples: int) -> float:
    """Return what the resident kernel takes with tiles of so many samples, 0 for none."""
    if samples == 0:
        return inf
    if samples < 8:
        return resident_four_seconds(layer, 1.5)
    chunks = samples // 4
    equal = layer.value is not None
    reads = len(layer.single.indices) * (4 * chunks + (1 if equal else 3)) / RESIDENT_REACHED
    weights = chunks // 2 * (1 if equal else 9)
    reads += len(layer.tall.indices) * (4 * chunks + weights) / TALL_REACHED
    return reads / LANES / READS / samples


def block_seconds(layer: DeviceLayer) -> float:
    """Return what the block kernel takes."""
    if layer.block is None:
        return inf
    kind = layer.block.kind
    slower = HELD_FRAGMENT if kind.held else 1.0
    return layer.tall.slots / (PANEL * STEP) * BLOCK_FRAGMENT[kind.terms] * slower


def block_at_best(layer: PanelLayer) -> float:
    """Return what the block kernel would take if no single neuron were padded."""
    inputs = len(layer.tall.indices) + len(layer.single.indices) / PANEL
    return inputs / STEP * BLOCK_FRAGMENT[0]


def wide_seconds(layer: PanelLayer, tall_edge: float) -> float:
    """Return what the wide kernel takes: it reads 4 bytes an edge of a panel from L2."""
    reads = len(layer.single.indices) + tall_edge * len(layer.tall.indices)
    return reads * 4 / L2_BYTES


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
