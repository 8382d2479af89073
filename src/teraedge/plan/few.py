"""The layout of the kernel for a handful of samples: what each warp does, as one stream.

A *packet* has up to four edges for each lane's neuron. A warp reads its packets one after the
other, whatever layer they are of, so that nothing has to be looked up before it is read. The
packets of all warps of a block lie side by side, and each warp has as many in a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.plan.kernel_sizes import LANES, ZERO_ROWS
from teraedge.plan.panels import PanelLayer

GROUP = 4
"""Samples that a block takes at a time, at most."""
WARPS = 16
"""Of a block, at most."""
MERGED = 8192
"""Slots up to which equal samples are looked for, as kernels/common.cuh has it."""
FROM = 12
"""Equal samples are looked for before segments that begin at this layer or later."""
WIDTH = 8192
"""Neurons of a layer, inputs or outputs, at most."""
_EDGES = 4
AHEAD = (8, 4)
"""Packets in the ring of a warp, as many as there is room for; it reads as many beyond the last."""
_PACKET_BYTES = LANES * 2 * 16
_LAYER_BYTES = 16 + 4 + 4
"""What the kernel keeps of each layer in shared memory."""
_ENDS_SLICE, _ENDS_LAYER, _NOBODY = 1, 2, 4
"""Flags of a packet."""


class Few(NamedTuple):
    """A segment as the kernel reads it.

    Attributes
    ----------
    stream : ndarray of uint8
    warps : int
        Of a block.
    ahead : int
        Packets in the ring of a warp.
    rows : int
        Of a side of the tile in shared memory.
    shared : int
        Shared memory of a block, in bytes.
    """

    stream: NDArray[np.uint8]
    warps: int
    ahead: int
    rows: int
    shared: int


def may_be_few(n_in: int, n_out: int) -> bool:
    """Tell whether the kernel takes layers of such sizes."""
    return max(n_in, n_out) <= WIDTH


def lay_out_few(layers: Sequence[PanelLayer], room: int) -> Few | None:
    """Lay a segment out, or return None where shared memory has no room for it.

    Parameters
    ----------
    layers : sequence of PanelLayer
        Without tall panels.
    room : int
        Shared memory a block may have, in bytes.
    """
    widest = max(max(layer.n_in, layer.n_out) for layer in layers)
    rows = ZERO_ROWS + widest + 1  # one that is nobody's
    most = max(layer.n_out for layer in layers)
    warps = min(-(-most // LANES), WARPS)
    fixed = (len(layers) + 1) * _LAYER_BYTES + _rows_bytes(rows)
    sizes = {ahead: fixed + warps * ahead * _PACKET_BYTES for ahead in AHEAD}
    ahead = next((ahead for ahead in AHEAD if sizes[ahead] <= room), 0)
    if not ahead:
        return None
    packets = [_packets(layer, warps) for layer in layers]
    behind = np.zeros((ahead, *packets[0].shape[1:]), np.uint32)
    stream = np.concatenate([*packets, behind]).view(np.uint8).ravel()
    return Few(stream, warps, ahead, rows, sizes[ahead])


def lanes_used(n_out: int, warps: int) -> int:
    """Return how many lanes of a block get neurons: the first slices go to a warp each."""
    return min(n_out, warps * LANES)


def most_layers(width: int, room: int) -> int:
    """Return how many layers of up to `width` neurons a segment may have for `lay_out_few`."""
    rest = room - _rows_bytes(ZERO_ROWS + width + 1) - WARPS * min(AHEAD) * _PACKET_BYTES
    return max(rest // _LAYER_BYTES - 1, 0)


def _rows_bytes(rows: int) -> int:
    """Return the bytes of both sides of a tile."""
    return 2 * rows * GROUP * 4


def stream_bytes(layers: Sequence[PanelLayer]) -> int:
    """Return about how many bytes the stream of a segment takes."""
    packets = [layer.n_out + layer.edges / _EDGES for layer in layers]
    return int(sum(packets) / LANES + WARPS) * _PACKET_BYTES


def _packets(layer: PanelLayer, warps: int) -> NDArray[np.uint32]:
    """Return a layer's packets, shape (packets, warps, head and weights, lanes, 4)."""
    panels = layer.single
    counts = np.diff(panels.starts)
    order = np.argsort(-counts, kind="stable")
    # Slice s has neurons order[32 s] and following, and the length of the first.
    taken = np.maximum(-(-counts[order[::LANES]] // _EDGES), 1)
    warp, first = _dealt(taken, warps)
    depth = int(max((first + taken).max(initial=0), 1))
    found = np.zeros((depth, warps, 2, LANES, 4), np.uint32)
    head = found[:, :, 0]
    head[..., 2:] = _pairs(np.broadcast_to(np.arange(LANES)[:, None] % ZERO_ROWS, (LANES, 4)))
    # Edges: the neuron's rank says its slice and lane, the place in its list the packet.
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    of = np.repeat(rank, counts)
    step = np.arange(int(counts.sum())) - np.repeat(panels.starts[:-1], counts)
    packet, lane = first[of // LANES] + step // _EDGES, of % LANES
    inputs = panels.indices[: len(of)].astype(np.uint32) + ZERO_ROWS
    halves = head[..., 2:].reshape(depth, warps, LANES, 2).view(np.uint16)
    halves[packet, warp[of // LANES], lane, step % _EDGES] = inputs
    head[..., 2:] = halves.view(np.uint32)
    weights = found[:, :, 1].view(np.float32)
    values = panels.weights if layer.value is None else np.float32(layer.value)
    weights[packet, warp[of // LANES], lane, step % _EDGES] = values
    _set_heads(head, layer, order, (warp, first, taken))
    head[-1, :, :, 0] |= np.uint32(_ENDS_LAYER << 16)
    return found


def _set_heads(
    head: NDArray[np.uint32],
    layer: PanelLayer,
    order: NDArray[np.int64],
    slices: tuple[NDArray[np.int64], ...],
) -> None:
    """Say in each packet of a slice what it is of, and what it ends."""
    warp, first, taken = slices
    number = np.repeat(np.arange(len(taken)), taken)  # of the slice, for each of its packets
    within = np.arange(len(number)) - np.repeat(np.cumsum(taken) - taken, taken)
    flags = np.where(within == taken[number] - 1, _ENDS_SLICE, 0)
    outputs = np.full(len(taken) * LANES, layer.n_out, np.int64)
    # Lanes without a neuron write a row for nobody, and say so.
    biases = np.zeros(len(outputs), np.float32)
    neurons = layer.single.outputs[order]
    outputs[: len(order)], biases[: len(order)] = neurons, layer.bias[neurons]
    at = first[number] + within, warp[number]
    own = np.where(np.arange(len(outputs)) < len(order), 0, _NOBODY).reshape(-1, LANES)[number]
    words = (outputs + ZERO_ROWS).reshape(-1, LANES)[number] | (flags[:, None] | own) << 16
    head[(*at, slice(None), 0)] = words
    head[(*at, slice(None), 1)] = biases.view(np.uint32).reshape(-1, LANES)[number]


def _pairs(halves: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(halves, np.uint16).view(np.uint32)


def _dealt(lengths: NDArray[np.int64], warps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give slices, longest first, to warps; return the warp of each, and its first packet there."""
    warp, first = np.empty_like(lengths), np.empty_like(lengths)
    filled = np.zeros(warps, np.int64)
    for k, length in enumerate(lengths.tolist()):
        least = int(filled.argmin())
        warp[k], first[k] = least, filled[least]
        filled[least] += length
    return warp, first
