"""What a laid-out layer takes on a GPU, and which limit it runs against.

All figures are of one H200, and others are taken to be as much faster or slower as their
multiprocessors times their clock; they were read off layers that ran alone, with all samples live.
"""

from dataclasses import replace

from teraedge.plan.block import PANEL, STEP
from teraedge.plan.cost import Limit
from teraedge.plan.device import LANES, WARPS, BlockParts, DeviceLayer, DevicePanels
from teraedge.plan.explain import Part
from teraedge.plan.rates import L2_BYTES, PIECE_SECONDS, block_seconds
from teraedge.plan.staged import SLICES

SPEED = 132 * 1.98e9
"""Clocks a second of all multiprocessors of the GPU that the figures are of."""
READS = SPEED
"""Reads of 128 bytes a second from shared memory."""
REACHED, TALL_REACHED = 0.9, 0.5
"""What the resident kernel reaches of them, for single neurons and for tall panels."""
MULTIPLY_ADDS = SPEED * 128
PRODUCTS = (3, 3, 5, 6)
"""Products on tensor cores for 16 neurons by 16 inputs, by the terms of weights."""
PRODUCT_CLOCKS = 6.2
"""Clocks that one of eight samples takes, measured: 2048 multiply-adds."""
HBM_BYTES = 4.25e12
"""Bytes a second of a copy within device memory, read and written."""
BORDER = 3e-6
"""Seconds that a block waits at the border of two layers."""
HOST_BYTES = 5.5e10
"""Bytes a second from page-locked memory of the host."""


def predicted(layer: DeviceLayer, speed: float) -> DeviceLayer:
    """Return the layer with seconds a sample, and its limit, in its choice.

    Parameters
    ----------
    layer : DeviceLayer
    speed : float
        Multiprocessors times clock, in Hz.
    """
    if layer.block is not None:
        seconds, limit = _multiplied(layer, layer.block)
    else:
        seconds, limit = _wide(layer) if layer.kernel == "wide" else _gathered(layer)
    scale = SPEED / speed
    limit = Limit(limit.name, limit.seconds * scale)
    return replace(layer, choice=replace(layer.choice, seconds=seconds * scale, limit=limit))


def streamed(part: Part, samples: int) -> Part:
    """Return what is told of a layer that comes from the host in every run.

    Parameters
    ----------
    part : Part
        With a prediction.
    samples : int
        Of a run, which share the copy.
    """
    choice = part.choice
    copy = part.nbytes / HOST_BYTES / max(samples, 1)
    if choice.seconds is not None and copy > choice.seconds:
        choice = replace(choice, seconds=copy, limit=Limit("copy", copy))
    why = f"{choice.why}; the layer comes from the host in every run"
    return part._replace(choice=replace(choice, why=why))


def _gathered(layer: DeviceLayer) -> tuple[float, Limit]:
    """Return the time of the kernels that gather from shared memory, a sample, and its limit."""
    chunks = layer.samples // 4
    equal = layer.value is not None
    reads = _steps(layer.single) * (4 * chunks + (1 if equal else 3)) / REACHED
    # Two chunks of samples at a time, and for each the indices and weights once more.
    splits = max(1, chunks // 2)
    reads += _steps(layer.tall) * (4 * chunks + splits * (1 if equal else 9)) / TALL_REACHED
    time = reads / READS / layer.samples
    if layer.kernel == "staged":
        blocks = -(-layer.single.count // layer.parts // (WARPS * SLICES))
        time += layer.parts * blocks * PIECE_SECONDS / layer.samples
    else:
        time += BORDER / 132 / layer.samples
    loads = 4 * (_steps(layer.single) + _steps(layer.tall)) * chunks / READS / layer.samples
    sums = layer.edges / MULTIPLY_ADDS
    limit = Limit("load", loads) if loads > sums else Limit("fma", sums)
    return max(time, limit.seconds), limit


def _multiplied(layer: DeviceLayer, block: BlockParts) -> tuple[float, Limit]:
    """Return the time of the block kernel a sample, and its limit."""
    fragments = layer.tall.slots / (PANEL * STEP)
    clocks = fragments * PRODUCTS[block.kind.terms] * PRODUCT_CLOCKS / 8  # samples of a product
    limit = Limit("tensor", clocks / 4 / SPEED)  # of four tensor cores
    return max(block_seconds(layer), limit.seconds), limit


def _wide(layer: DeviceLayer) -> tuple[float, Limit]:
    """Return the time of the wide kernel a sample, and its limit."""
    reads = layer.tall.slots / layer.tall.height + layer.single.slots
    rows = reads * 4 / L2_BYTES
    activations = 4 * (layer.n_in + layer.n_out) / HBM_BYTES
    limit = Limit("L2", rows) if rows > activations else Limit("HBM", activations)
    return rows + activations, limit


def _steps(panels: DevicePanels) -> float:
    """Return how often 32 lanes read an input each."""
    return panels.slots / panels.height / LANES
