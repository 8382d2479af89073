"""The layout of the small kernel, which takes a few samples through many small layers.

All that there is to know of a layer lies in *pieces*, which a block copies into a ring in shared
memory, several pieces ahead of the layer that runs: a piece has a head and up to eight slices of 32
neurons, one a warp. So a layer costs the latency of shared memory and one barrier.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.plan.device import LANES, ZERO_ROWS, DeviceLayer, DevicePanels, list_table
from teraedge.plan.panels import PanelLayer

GROUP = 4
"""Samples of a row."""
WARPS = 8
THREADS = WARPS * LANES
"""Of a block."""
STAGES = 5
"""Pieces of the ring."""
PIECE_BYTES = 28672
"""Of a piece, at most."""
WIDTH = 512
"""Neurons of a layer, inputs or outputs, up to which it is small."""
LAYERS = 512
"""Layers of a segment, at most."""
NARROW = 128
"""Neurons between two layers up to which a block takes `GROUPS` groups of samples, else one."""
GROUPS = 4
_UNIT = 16
_HEAD = np.dtype(
    [
        *[(name, np.int32) for name in ("slices", "inverse", "neurons", "ends", "equal", "curve")],
        *[(name, np.float32) for name in ("value", "lower", "upper")],
        ("", "V12"),
        ("lists", np.int32, (WARPS, 2)),
    ]
)
"""`struct Piece` of kernels/small.cu."""
_COUNTS = 12
_PLACE = 16


def pieces_of(slices: DevicePanels, layer: PanelLayer) -> DevicePanels | None:
    """Return slices of single neurons as pieces, or None where one would be too long.

    Parameters
    ----------
    slices : DevicePanels
        As the resident kernel reads them, with tiles of `GROUP` samples.
    layer : PanelLayer
        Of which they are all.
    """
    begins, lengths = slices.lists["begin"], slices.lists["length"]
    indices = slices.indices.view(np.uint32)
    sizes = LANES * 8 + lengths.astype(np.int64) * LANES * (4 if layer.value is not None else 12)
    if not len(sizes) or _HEAD.itemsize + sizes.max() > PIECE_BYTES:
        return None
    found: list[NDArray[np.uint8]] = []
    groups = list(_grouped(sizes))
    units = []
    for first, last in groups:
        head = np.zeros((), _HEAD)
        head["slices"], head["inverse"] = last - first, -(-65536 // (last - first))
        head["neurons"], head["ends"] = len(layer.bias), last == len(sizes)
        head["equal"], head["curve"] = layer.value is not None, CURVES.index(layer.curve)
        head["value"] = layer.value or 0.0
        head["lower"], head["upper"] = layer.clamp
        offset = _HEAD.itemsize
        parts: list[NDArray[np.uint8]] = []
        for place, k in enumerate(range(first, last)):
            begin, length = int(begins[k]), int(lengths[k])
            head["lists"][place] = offset // _UNIT, length
            arrays = [
                slices.targets[k * LANES : (k + 1) * LANES],
                indices[begin * LANES : (begin + length) * LANES],
                slices.weights[begin * 2 * LANES : (begin + length) * 2 * LANES],
            ]
            parts += [array.reshape(-1).view(np.uint8) for array in arrays]
            offset += int(sizes[k])
        units.append(offset // _UNIT)
        found += [head.reshape(1).view(np.uint8), *parts]
    lists = np.array(units, np.int64)
    return DevicePanels(
        height=1,
        lists=list_table(np.cumsum(lists) - lists, lists),
        indices=np.concatenate(found).view(np.uint16),
        weights=np.empty(0, np.float32),
        targets=DevicePanels.none().targets,
        slots=slices.slots,
    )


def _grouped(sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut slices of such sizes into pieces; returns the first slice of each, and the end."""
    cuts, held = [0], 0
    for k, size in enumerate(sizes.tolist()):
        if k - cuts[-1] == WARPS or _HEAD.itemsize + held + size > PIECE_BYTES:
            cuts.append(k)
            held = 0
        held += size
    return list(zip(cuts, [*cuts[1:], len(sizes)], strict=True))


class Extent(NamedTuple):
    """What the layers of a segment take together.

    Attributes
    ----------
    layers, pieces : int
    stage : int
        Of the largest piece, in 16 bytes.
    inside : int
        Neurons between two of the layers, at most.
    n_out : int
        Of the last layer.
    bits : int
        Features that there is room for if they are packed.
    """

    layers: int = 0
    pieces: int = 0
    stage: int = 0
    inside: int = 0
    n_out: int = 0
    bits: int = 0

    def more(self, layer: DeviceLayer, opens: bool) -> "Extent":
        """Return that with one more layer; `opens`: the first of a network."""
        lengths = layer.single.lists["length"]
        return Extent(
            self.layers + 1,
            self.pieces + len(lengths),
            max(self.stage, int(lengths.max())),
            max(self.inside, self.n_out),
            layer.n_out,
            layer.n_in + ZERO_ROWS if opens else self.bits,
        )

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """What the kernel is told: bits, pieces, stage, groups of samples, rows of a group."""
        groups = GROUPS if self.inside <= NARROW else 1
        return self.bits, self.pieces, self.stage, groups, self.inside + ZERO_ROWS

    @property
    def shared(self) -> int:
        """Shared memory of a block, in bytes."""
        bits, pieces, stage, groups, rows = self.sizes
        ring = STAGES * stage * _UNIT
        between = 2 * groups * rows * 4 * GROUP
        return ring + between + pieces * _PLACE + -(-bits // 8) * 16 + self.layers * _COUNTS

    def fits(self, room: int) -> bool:
        """Tell whether a block with so many bytes can run it."""
        return self.layers <= LAYERS and self.shared <= room
