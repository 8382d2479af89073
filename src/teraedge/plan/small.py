"""Sizes of the small kernel, which takes samples through layers of few neurons.

A warp keeps four samples for a whole segment and waits for no other warp, so that a layer of some
64 neurons costs the latency of its loads, and not that of a barrier of a block.
"""

from collections.abc import Sequence

from teraedge.plan.device import LANES, ZERO_ROWS, DeviceLayer

SAMPLES = 4
"""Of a warp."""
WARPS = 8
THREADS = WARPS * LANES
"""Of a block."""
WIDTH = 128
"""Neurons between two layers of a segment, at most."""
LAYERS = 192
"""Layers of a segment, at most: their sizes lie in shared memory."""
_ROW = 4 * SAMPLES
_LAYER = 56 + 8 + 8
_LIST = 8


def fits(layers: Sequence[DeviceLayer]) -> bool:
    """Tell whether there is room for so many layers in a segment."""
    inside = max((layer.n_out for layer in layers[:-1]), default=0)
    return len(layers) <= LAYERS and inside <= WIDTH and shared(layers) <= layers[-1].shared


def rows(layers: Sequence[DeviceLayer]) -> int:
    """Return the rows that the widest border inside a segment takes."""
    return max((layer.n_out for layer in layers[:-1]), default=0) + ZERO_ROWS


def lists(layers: Sequence[DeviceLayer]) -> int:
    """Return the slices of a segment."""
    return sum(layer.single.count for layer in layers)


def shared(layers: Sequence[DeviceLayer]) -> int:
    """Return the shared memory of a block, in bytes."""
    fixed = len(layers) * _LAYER + lists(layers) * _LIST
    return -(-fixed // 16) * 16 + WARPS * 2 * rows(layers) * _ROW
