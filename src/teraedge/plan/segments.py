"""Segments: which layers a kernel takes a tile of samples through in one go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from teraedge.plan import few, small
from teraedge.plan.block_parts import GROUP, BlockKind
from teraedge.plan.device import DeviceLayer, Kernel
from teraedge.plan.rates import MERGE_SECONDS, Rates

MOVING = 1.35
"""What layers must have taken before their samples are moved, in times of writing and reading rows:
pieces are small, and few have died after so few layers. With 1.0 it hung on the noise of measured
rates whether two layers were enough, which cost 45 and 400 us (networks of 16384 and 65536 neurons,
mode C, fp32, 60,000 samples, one H200)."""


@dataclass(frozen=True)
class Segment:
    """Neighbouring layers that run in one launch, or one layer of another kernel.

    Attributes
    ----------
    first, count : int
        Its layers.
    kernel : {"small", "resident", "block", "dense", "staged", "wide", "chained"}
    samples : int
        Samples that a block takes at a time; 0 for the wide kernel.
    buffers : int
        Parts of the inputs that there is room for at a time, in the staged kernel.
    shared : int
        Shared memory of a block, in bytes; 0 for the wide kernel.
    moves : bool
        Whether samples may die in it, so that those left are moved together at its end.
    bit_samples : int
        Samples of a tile, if another kernel takes packed features instead of the wide one.
    few : int
        Distinct samples up to which equal ones run once, in the kernel for a few; 0 for never.
    block : BlockKind or None
        What the block kernel is specialised by.
    terms : int
        Of a weight, in the dense kernel.
    sizes : tuple of int
        Of the small kernel: see `small.Extent`.
    plane, record : int
        Bytes of shared memory for a plane of a tile and for a record, in the block kernel.
    takes_own, gives_own : bool
        Whether the rows before and after it lie as only its kernel has them: sample by sample for
        the block kernel, in tiles of as many samples as it takes for the staged kernel.
    heights : tuple of int
        Heights of the panels there are, which the wide kernel runs one after the other.
    curved : bool
        Whether a layer has a smooth activation, which takes kernels that know them.
    equal : bool
        Whether each layer's weights are all equal.
    leaves : bool
        Whether samples that are put together after it may be left where they lie: the next segment
        is of the chained kernel, which finds them there.
    """

    first: int
    count: int
    kernel: Kernel
    samples: int
    buffers: int
    shared: int
    moves: bool
    block: BlockKind | None
    terms: int
    bit_samples: int
    few: int
    sizes: tuple[int, ...]
    plane: int
    record: int
    takes_own: bool
    gives_own: bool
    heights: tuple[int, ...]
    curved: bool
    equal: bool
    leaves: bool


def segments(
    layers: Sequence[DeviceLayer],
    droppable: Sequence[bool],
    first: int,
    *,
    rates: Rates | None = None,
    merge: bool = False,
    room: int = 0,
) -> Iterator[Segment]:
    """Cut layers `first` and following into segments.

    A tile of samples goes through the layers of a segment as it is, dead samples and all, so
    where samples can die, segments end often at the start, where most do: after 1, 2, 3, 4, 6, 8,
    12, 16, ... layers of the resident kernel, for which moving samples costs as much as one to two
    layers. The block kernel is faster, so there it is after 4, 6, 9, 13, 19, 28, 56, ... layers.
    The small kernel is faster still for a handful of samples: after 4, 9, 24 and 48. Where equal
    samples may run once, few are left by then: after 48, 384, 3072, ... layers of the resident one.
    A last layer that only copies is alone: it may be put off.

    Parameters
    ----------
    layers : sequence of DeviceLayer
    droppable : sequence of bool
        Whether a row that is zero after each of them stays zero for good.
    first : int
        Number of the first of them in the network.
    rates : Rates or None
        Of the device. Segments of the resident kernel then take `MOVING` times what moving samples
        does, or more.
    merge : bool
        Whether samples that have become equal may run once: segments are no longer than the kernel
        for that has room for.
    room : int
        Shared memory a block may have, in bytes.
    """

    def longest(width: int, following: DeviceLayer) -> int:
        return few.most_layers(max(width, following.n_in, following.n_out), room)

    begin, most, takes_own, extent, seconds = 0, (0, 0), False, small.Extent(), 0.0
    widest = 0
    for index, layer in enumerate(layers):
        end = index + 1
        most, widest = _more(most, layer), max(widest, layer.n_in, layer.n_out)
        seconds += np.inf if layer.choice.seconds is None else layer.choice.seconds
        if layer.kernel == "small":
            extent = extent.more(layer, first + index)
        last = end == len(layers)
        dies = any(droppable[begin:end])
        if (
            last
            or not layer.resident
            or not layers[end].resident
            or layers[end].kernel != layer.kernel
            or layers[end].samples != layer.samples
            or _kind(layers[end]) != _kind(layer)
            or (layers[end].copies and droppable[end] and end + 1 == len(layers))
            or (
                merge and layer.lone is not None and 0 < longest(widest, layers[end]) <= end - begin
            )
            or not _fits(layers[end], _more(most, layers[end]))
            or (
                layer.kernel == "small"
                and not extent.more(layers[end], first + end).fits(layer.shared)
            )
            or (
                dies
                and _is_border(first + end, layer.kernel, merge)
                and _pays(layer, seconds, rates)
            )
        ):
            kind = _kind(layer)
            shared = max(part.shared for part in layers[begin:end])
            if kind is not None:
                shared = kind.shared(*most)
            following = None if last else layers[end].block
            gives_own = bool(kind and following and layer.n_out % GROUP == 0) or (
                layer.kernel == "staged" and not last and layers[end].kernel == "staged"
            )
            panels = (part for found in layers[begin:end] for part in (found.tall, found.single))
            heights = tuple(dict.fromkeys(part.height for part in panels if part.count))
            if layer.kernel == "small":
                shared = extent.shared
            yield Segment(
                first=first + begin,
                count=end - begin,
                kernel=layer.kernel,
                samples=layer.samples,
                buffers=layer.buffers,
                shared=shared,
                moves=dies,
                block=kind,
                terms=layer.terms,
                bit_samples=layers[begin].bit_samples,
                few=_few(layers[begin:end], first + begin, rates) if merge and rates else 0,
                sizes=extent.sizes,
                plane=most[0],
                record=most[1],
                takes_own=takes_own,
                gives_own=gives_own,
                heights=heights,
                curved=any(part.curve for part in layers[begin:end]),
                equal=all(part.value is not None for part in layers[begin:end]),
                leaves=not last and layers[end].kernel == "chained",
            )
            begin, most, takes_own, extent = end, (0, 0), gives_own, small.Extent()
            seconds, widest = 0.0, 0


def _kind(layer: DeviceLayer) -> BlockKind | None:
    return None if layer.block is None else layer.block.kind


def _more(most: tuple[int, int], layer: DeviceLayer) -> tuple[int, int]:
    """Return the bytes of a plane and of a record that are enough for one more layer, too."""
    if layer.block is None:
        return most
    plane = layer.block.kind.plane_bytes(max(layer.n_in, layer.n_out))
    return max(most[0], plane), max(most[1], layer.block.record_bytes)


def _fits(layer: DeviceLayer, most: tuple[int, int]) -> bool:
    """Tell whether there is room for planes and records of such sizes."""
    return layer.block is None or layer.block.kind.shared(*most) <= layer.block.room


def _few(layers: Sequence[DeviceLayer], first: int, rates: Rates) -> int:
    """Return the distinct samples up to which a segment had better run equal ones once."""
    known = all(layer.lone is not None and layer.block is None for layer in layers)
    if first < few.FROM or not known:
        return 0
    groups = small.GROUPS * 2 if layers[0].kernel == "small" else 1  # two blocks
    wave = sum(rates.wave_seconds(layer, layer.samples * groups) for layer in layers)
    if wave < 2 * MERGE_SECONDS:
        return 0
    taken = sum(rates.few_seconds(layer.edges, layer.n_out) for layer in layers)
    return int(rates.multiprocessors * few.GROUP * wave / taken)


def _pays(layer: DeviceLayer, seconds: float, rates: Rates | None) -> bool:
    """Tell whether moving samples after a layer takes so much less than its segment did."""
    if rates is None or layer.kernel != "resident":
        return True
    return seconds >= MOVING * rates.border_seconds(layer.n_out, layer.itemsize)


def _is_border(layer: int, kernel: Kernel, merges: bool) -> bool:
    """Tell whether samples are moved before a layer of this number."""
    if kernel == "resident" and merges and layer > 48:
        while layer > 48 and layer % 8 == 0:
            layer //= 8
        return layer == 48
    if kernel == "small":
        return layer in (4, 9, 24, 48)
    if kernel == "block":
        border = 4
        while border < layer:
            border += border // 2 if border < 28 else border
        return border == layer
    while layer > 3 and layer % 2 == 0:
        layer //= 2
    return layer <= 3  # powers of two, and what is halfway between two of them
