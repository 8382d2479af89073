"""Layers as one block of device memory: a table of sizes and addresses, then their arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.plan.device import DeviceLayer
from teraedge.plan.segments import Segment

ALIGN = 256
"""Where arrays begin, in bytes: a vector load never crosses a line."""

_PANELS = np.dtype(
    [("count", np.int64)]
    + [(name, np.uint64) for name in ("lists", "indices", "weights", "targets")]
)
LAYER = np.dtype(
    [
        ("n_in", np.int64),
        ("n_out", np.int64),
        ("tall", _PANELS),
        ("single", _PANELS),
        ("value", np.float32),
        ("lower", np.float32),
        ("upper", np.float32),
        ("equal", np.int32),
        ("droppable", np.int32),
        ("wide", np.int16),
        ("curve", np.int16),
        ("parts", np.int32),
        ("part_rows", np.int32),
        ("rounds", np.int32),
        ("steps", np.int32),
        ("fragments", np.int32),
        ("", "V4"),
        ("places", np.uint64),
        ("ends", np.uint64),
        ("records", np.uint64),
        ("", "V8"),
    ]
)
"""`struct Layer` of kernels/common.cuh."""


def packed_size(layers: Sequence[DeviceLayer]) -> int:
    """Return the bytes of some layers and their table."""
    size = _aligned(len(layers) * LAYER.itemsize)
    # Kernels read on past the end of a list, by less than a line.
    return size + ALIGN + sum(_aligned(array.nbytes) for layer in layers for array in layer.arrays)


def pack(
    layers: Sequence[DeviceLayer],
    droppable: Sequence[bool],
    parts: Sequence[Segment],
    address: int,
    target: NDArray[np.uint8],
) -> None:
    """Write layers and their table as they will lie at a device address.

    Parameters
    ----------
    layers : sequence of DeviceLayer
    droppable : sequence of bool
        Whether a row that is zero after each layer stays zero for good.
    parts : sequence of Segment
        Those that the layers make.
    address : int
        Device address that `target` will be copied to.
    target : ndarray of uint8, shape (at least packed_size(layers),)
    """
    table = np.zeros(len(layers), LAYER)
    offset = _aligned(table.nbytes)
    pairs = _neighbours(layers, parts)
    for row, layer, drop, (before, after) in zip(table, layers, droppable, pairs, strict=True):
        addresses = []
        for array in layer.arrays_between(before, after):
            addresses.append(address + offset)
            target[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            offset += _aligned(array.nbytes)
        row["n_in"], row["n_out"] = layer.n_in, layer.n_out
        row["tall"] = (layer.tall.count, *addresses[:4])
        row["single"] = (layer.single.count, *addresses[4:8])
        row["value"] = layer.scale if layer.value is None else layer.value
        row["lower"], row["upper"] = layer.clamp
        row["equal"] = layer.value is not None
        row["droppable"] = drop
        row["curve"] = CURVES.index(layer.curve)
        row["wide"] = layer.single.indices.dtype == np.uint32
        row["parts"], row["part_rows"] = layer.parts, layer.part_rows
        if layer.block is not None:
            row["rounds"], row["steps"] = layer.block.rounds, layer.block.steps
            row["fragments"] = layer.block.fragments
            row["places"], row["ends"], row["records"] = addresses[8:]
    target[: table.nbytes] = table.view(np.uint8)


def _neighbours(
    layers: Sequence[DeviceLayer], parts: Sequence[Segment]
) -> list[tuple[DeviceLayer | None, DeviceLayer | None]]:
    """Return the layers before and after each, if nobody else sees what passes between."""
    after: list[DeviceLayer | None] = [*layers[1:], None]
    for part in parts:
        if not (part.kernel == "chained" and part.leaves):
            after[part.first + part.count - 1 - parts[0].first] = None
    before: list[DeviceLayer | None] = [None]
    for layer, one in zip(layers, after, strict=True):
        before.append(None if one is None else layer)
    for part in parts:
        if part.takes_own:
            before[part.first - parts[0].first] = layers[part.first - parts[0].first - 1]
    return list(zip(before[:-1], after, strict=True))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN
