"""Segments: which layers the resident kernel takes a tile of samples through in one go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from teraedge.plan.device import DeviceLayer, Kernel


@dataclass(frozen=True)
class Segment:
    """Neighbouring layers that run in one launch, or one layer of another kernel.

    Attributes
    ----------
    first, count : int
        Its layers.
    kernel : {"resident", "staged", "wide"}
    samples : int
        Samples that a block takes at a time; 0 for the wide kernel.
    buffers : int
        Parts of the inputs that there is room for at a time, in the staged kernel.
    shared : int
        Shared memory of a block, in bytes; 0 for the wide kernel.
    moves : bool
        Whether samples may die in it, so that those left are moved together at its end.
    heights : tuple of int
        Heights of the panels there are, which the wide kernel runs one after the other.
    curved : bool
        Whether a layer has a smooth activation, which takes kernels that know them.
    """

    first: int
    count: int
    kernel: Kernel
    samples: int
    buffers: int
    shared: int
    moves: bool
    heights: tuple[int, ...]
    curved: bool


def segments(
    layers: Sequence[DeviceLayer], droppable: Sequence[bool], first: int
) -> Iterator[Segment]:
    """Cut layers `first` and following into segments.

    A tile of samples goes through the layers of a segment as it is, dead samples and all, so
    where samples can die, segments end often at the start, where most do: after 1, 2, 3, 4, 6, 8,
    12, 16, ... layers. Moving samples costs as much as one to two layers.

    Parameters
    ----------
    layers : sequence of DeviceLayer
    droppable : sequence of bool
        Whether a row that is zero after each of them stays zero for good.
    first : int
        Number of the first of them in the network.
    """
    begin = 0
    for index, layer in enumerate(layers):
        end = index + 1
        last = end == len(layers)
        dies = any(droppable[begin:end])
        if (
            last
            or not layer.resident
            or not layers[end].resident
            or layers[end].samples != layer.samples
            or (dies and _is_border(first + end))
        ):
            shared = max(part.shared for part in layers[begin:end])
            heights = tuple(part.height for part in (layer.tall, layer.single) if part.count)
            yield Segment(
                first=first + begin,
                count=end - begin,
                kernel=layer.kernel,
                samples=layer.samples,
                buffers=layer.buffers,
                shared=shared,
                moves=dies,
                heights=heights,
                curved=any(part.curve for part in layers[begin:end]),
            )
            begin = end


def _is_border(layer: int) -> bool:
    """Tell whether a number is a power of two or halfway between two of them."""
    while layer > 3 and layer % 2 == 0:
        layer //= 2
    return layer <= 3
