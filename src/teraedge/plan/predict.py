"""What a laid-out layer takes on a GPU, and which limit it runs against.

All figures are of one H200, and others are taken to be as much faster or slower as their
multiprocessors times their clock; they were read off layers that ran alone, with all samples live.
"""

from dataclasses import replace

from teraedge.plan.bf16 import MOST_TERMS
from teraedge.plan.block import PANEL, STEP
from teraedge.plan.block_parts import BlockKind, BlockParts
from teraedge.plan.cost import Limit
from teraedge.plan.device import DeviceLayer, DevicePanels
from teraedge.plan.explain import Part
from teraedge.plan.kernel_sizes import LANES, WARPS
from teraedge.plan.rates import (
    BORDER,
    HBM_BYTES,
    L2_BYTES,
    PIECE_SECONDS,
    PRODUCTS,
    SPEED,
    block_seconds,
    dense_seconds,
    gathered_seconds,
    small_seconds,
)
from teraedge.plan.staged import SLICES

MULTIPLY_ADDS = SPEED * 128
PRODUCT_CLOCKS = 6.2
"""Clocks that one of eight samples takes, measured: 2048 multiply-adds."""
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
    elif layer.kernel == "dense":
        seconds, limit = _dense(layer)
    elif layer.kernel == "small":
        seconds = small_seconds(layer.edges, layer.n_out)
        limit = Limit("load", seconds)
    else:
        wide = layer.kernel in ("wide", "chained")
        seconds, limit = _wide(layer) if wide else _gathered(layer)
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
    time = gathered_seconds(_steps(layer.single), _steps(layer.tall), layer.samples, equal)
    if layer.kernel == "staged":
        blocks = -(-layer.single.count // layer.parts // (WARPS * SLICES))
        time += layer.parts * blocks * PIECE_SECONDS / layer.samples
    else:
        time += BORDER / 132 / layer.samples
    loads = 4 * (_steps(layer.single) + _steps(layer.tall)) * chunks / SPEED / layer.samples
    sums = layer.edges / MULTIPLY_ADDS
    limit = Limit("load", loads) if loads > sums else Limit("fma", sums)
    return max(time, limit.seconds), limit


def _products(kind: BlockKind) -> int:
    """Return the products on tensor cores for each multiply-add."""
    of, terms = range(max(kind.terms, 1)), range(kind.planes)
    return sum(a + b < MOST_TERMS for a in of for b in terms)


def _multiplied(layer: DeviceLayer, block: BlockParts) -> tuple[float, Limit]:
    """Return the time of the block kernel a sample, and its limit."""
    fragments = layer.tall.slots / (PANEL * STEP)
    clocks = fragments * _products(block.kind) * PRODUCT_CLOCKS / 8  # samples of a product
    limit = Limit("tensor", clocks / 4 / SPEED)  # of four tensor cores
    return max(block_seconds(layer), limit.seconds), limit


def _dense(layer: DeviceLayer) -> tuple[float, Limit]:
    """Return the time of the dense kernel a sample, and its limit."""
    clocks = layer.tall.slots * PRODUCTS[layer.terms] / 2048 * PRODUCT_CLOCKS
    limit = Limit("tensor", clocks / 4 / SPEED)
    return max(dense_seconds(layer.tall.slots, layer.terms), limit.seconds), limit


def _wide(layer: DeviceLayer) -> tuple[float, Limit]:
    """Return the time of the wide or chained kernel a sample, and its limit."""
    reads = layer.tall.slots / layer.tall.height + layer.single.slots
    if layer.kernel == "chained":
        reads = float(layer.tall.lists["length"].sum() + layer.tall.lists["shared"].sum())
    rows = reads * layer.itemsize / L2_BYTES
    activations = layer.itemsize * (layer.n_in + layer.n_out) / HBM_BYTES
    limit = Limit("L2", rows) if rows > activations else Limit("HBM", activations)
    return rows + activations, limit


def _steps(panels: DevicePanels) -> float:
    """Return how often 32 lanes read an input each."""
    return panels.slots / panels.height / LANES
