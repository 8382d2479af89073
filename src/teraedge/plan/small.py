"""The layout of the small kernel, which takes a few samples through many small layers.

All that there is to know of a layer lies in *pieces*, which a block copies into a ring in shared
memory, several pieces ahead of the layer that runs: a piece has a head and up to eight slices of 32
neurons, one a warp. So a layer costs the latency of shared memory and one barrier.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.plan.device import DeviceLayer, DevicePanels, list_table
from teraedge.plan.kernel_sizes import LANES, ZERO_ROWS
from teraedge.plan.panels import PanelLayer

GROUP = 4
"""Samples of a row."""
WARPS = 8
"""That compute."""
THREADS = (WARPS + 1) * LANES
"""Of a block: a warp only copies."""
STAGES = 4
"""Pieces of the ring."""
PIECE_BYTES = 28672
"""Of a piece, at most."""
WIDTH = 512
"""Neurons of a layer, inputs or outputs, up to which it is small."""
LAYERS = 1024
"""Layers of a segment, at most."""
NARROW = 512
"""Neurons between two layers up to which a block takes `GROUPS` groups of samples, else one."""
GROUPS = 4
_UNIT = 16
_SLICE = np.dtype(
    [("begin", np.int32), ("lengths", np.int32), ("lower", np.float32), ("upper", np.float32)]
)
"""`struct Slice` of kernels/small.cu."""
_ENDS, _CURVE = 8, 16
"""Bits of the flags of a piece."""
_NOBODY = np.int32(-(2**31))
"""In the number of a row that is nobody's: whatever is in it tells nothing."""
_QUAD = 4
"""Pairs of edges that are read together."""
_COUNTS = 20
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
    parts = [_slice(slices, layer, k) for k in range(slices.count)]
    sizes = [part.nbytes for part in parts]
    # A wide layer is the first as a rule, with many samples: there is room for two blocks, then.
    most = PIECE_BYTES if layer.n_in <= WIDTH else PIECE_BYTES // 2
    if not parts or _head_bytes(1) + max(sizes) > most:
        return None
    found: list[NDArray[np.uint8]] = []
    units, flags = [], []
    for first, last in _grouped(sizes, most):
        shift = (last - first - 1).bit_length()
        head = np.zeros(1 << shift, _SLICE)
        begins = head.nbytes + np.append(0, np.cumsum(sizes[first:last]))
        lengths = slices.lists["length"][first:last]
        head["lengths"] = -1
        head["begin"][: last - first] = begins[:-1] // _UNIT
        head["lengths"][: last - first] = lengths // _QUAD | lengths % _QUAD << 16
        head["lower"], head["upper"] = layer.clamp
        found += [head.view(np.uint8), *parts[first:last]]
        units.append(begins[-1] // _UNIT)
        flags.append(shift | (last == len(parts)) << _ENDS | CURVES.index(layer.curve) << _CURVE)
    lists = np.array(units, np.int64)
    return DevicePanels(
        height=1,
        lists=list_table(np.cumsum(lists) - lists, lists, np.array(flags)),
        indices=np.concatenate(found).view(np.uint16),
        weights=np.empty(0, np.float32),
        targets=DevicePanels.none().targets,
        slots=slices.slots,
    )


def _slice(slices: DevicePanels, layer: PanelLayer, number: int) -> NDArray[np.uint8]:
    """Return the targets, indices and weights of a slice: quads of pairs, then single pairs."""
    begin, pairs = (int(slices.lists[name][number]) for name in ("begin", "length"))
    given = slices.indices[begin * 2 * LANES : (begin + pairs) * 2 * LANES]
    # Rows of zeros come first here, in the same banks as those behind the last neuron.
    zero = given >= layer.n_in
    indices = np.where(zero, given % ZERO_ROWS, given + ZERO_ROWS).astype(np.uint16).view(np.uint32)
    if layer.value is None:
        weights = slices.weights[begin * 2 * LANES : (begin + pairs) * 2 * LANES]
    else:
        weights = np.full(pairs * 2 * LANES, layer.value, np.float32)
    whole = pairs // _QUAD * _QUAD
    quads = indices[: whole * LANES].reshape(-1, _QUAD, LANES).transpose(0, 2, 1)
    # Of each quad, the weights of its first two pairs, then those of the others.
    of_quads = weights[: whole * 2 * LANES].reshape(-1, 2, LANES, 2).transpose(0, 2, 1, 3)
    targets = slices.targets[number * LANES : (number + 1) * LANES].copy()
    nobody = targets["output"] < 0
    rows = np.where(nobody, layer.n_out, targets["output"]) + ZERO_ROWS
    targets["output"] = np.where(nobody, rows | _NOBODY, rows)
    arrays = (
        targets,
        *(quads, of_quads),
        *(indices[whole * LANES :], weights[whole * 2 * LANES :]),
    )
    return np.concatenate([np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays])


def _grouped(sizes: list[int], most: int) -> list[tuple[int, int]]:
    """Cut slices of such sizes into pieces; return the first slice of each, and the end."""
    cuts, held = [0], 0
    for k, size in enumerate(sizes):
        if k - cuts[-1] == WARPS or _head_bytes(k - cuts[-1] + 1) + held + size > most:
            cuts.append(k)
            held = 0
        held += size
    return list(zip(cuts, [*cuts[1:], len(sizes)], strict=True))


def _head_bytes(slices: int) -> int:
    """Return the bytes before so many slices, which a power of two has room in."""
    return _SLICE.itemsize << (slices - 1).bit_length()


class Extent(NamedTuple):
    """What the layers of a segment take together.

    Attributes
    ----------
    layers, pieces : int
    stage : int
        Of the largest piece, in 16 bytes.
    widest : int
        Neurons that come out of a layer, at most.
    last : int
        Those of the last layer.
    inside : int
        Neurons between two of the layers, at most.
    bits : int
        Features that there is room for if they are packed.
    """

    layers: int = 0
    pieces: int = 0
    stage: int = 0
    widest: int = 0
    last: int = 0
    inside: int = 0
    bits: int = 0

    def more(self, layer: DeviceLayer, number: int) -> "Extent":
        """Return that with one more layer, number so and so of the network."""
        lengths = layer.single.lists["length"]
        return Extent(
            self.layers + 1,
            self.pieces + len(lengths),
            max(self.stage, int(lengths.max())),
            max(self.widest, layer.n_out),
            layer.n_out,
            max(self.inside, self.last) if self.layers else 0,
            layer.n_in + ZERO_ROWS if number == 0 else self.bits,
        )

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """What the kernel is told: bits, pieces, stage, groups of samples, rows of a group."""
        groups = GROUPS if self.inside <= NARROW else 1
        # Before the neurons lie rows of zeros, behind them one that is nobody's.
        return self.bits, self.pieces, self.stage, groups, ZERO_ROWS + self.widest + 1

    @property
    def shared(self) -> int:
        """Shared memory of a block, in bytes."""
        bits, pieces, stage, groups, rows = self.sizes
        ring = STAGES * stage * _UNIT
        between = 2 * groups * rows * 4 * GROUP
        return (
            ring
            + between
            + (pieces + 1) * _PLACE
            + -(-bits // 8) * 16
            + (self.layers + 1) * _COUNTS
        )

    def fits(self, room: int) -> bool:
        """Tell whether a block with so many bytes can run it."""
        return self.layers <= LAYERS and self.shared <= room
