"""The layout of the *resident* kernel: slices of panels, and the tile it keeps on chip.

A slice has 32 tall panels, one a lane, or 32 single neurons for each 32 sums that a lane can keep,
in sliced ELL (Monakov et al., 2010): the k-th edges of all lie side by side. Panels are sorted by
length, so that little is padded, and their edges are ordered for the banks of shared memory
(`plan.banks`).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teraedge.network import Layer
from teraedge.plan import banks
from teraedge.plan.device import (
    DeviceLayer,
    DevicePanels,
    in_group_order,
    lanes_of,
    list_table,
    sliced,
)
from teraedge.plan.kernel_sizes import LANES, WARPS, ZERO_ROWS
from teraedge.plan.panels import PanelLayer, Panels

SAMPLES = (32, 16, 8, 4)
"""Samples a resident tile may have."""
NOT_CURVED = 16
"""Samples for which there are too few registers for smooth activations that are rounded."""


def may_be_resident(layer: Layer, room: int) -> bool:
    """Tell whether the rows of the smallest tile have room, in bytes, whatever the panels."""
    rows = max(layer.n_in, layer.n_out) + ZERO_ROWS
    return rows * min(SAMPLES, default=room) * 4 <= room


def most_samples(layer: PanelLayer, room: int, *, exact: bool = True) -> int:
    """Return the samples of the largest tile that there is room for, or 0.

    Parameters
    ----------
    layer : PanelLayer
    room : int
        Shared memory, in bytes.
    exact : bool
        Whether activations are stored as fp32.
    """
    sizes = [n for n in SAMPLES if n != NOT_CURVED or exact or not layer.curve]
    return next((n for n in sizes if _shared_bytes(layer, n) <= room), 0)


def lay_out_resident(layer: PanelLayer, samples: int) -> DeviceLayer:
    """Lay a layer out for tiles of so many samples."""
    return DeviceLayer(
        kernel="resident",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=samples,
        shared=_shared_bytes(layer, samples),
        tall=slices(layer.tall, layer, samples, LANES),
        single=slices(layer.single, layer, samples, LANES * (_totals(samples) // samples)),
        value=layer.value,
        bias=layer.bias,
        clamp=layer.clamp,
        curve=layer.curve,
        choice=layer.choice.without_times("resident"),
    )


def resident_instead(layer: DeviceLayer) -> DeviceLayer:
    """Return a layer laid out for the resident kernel, if it could be there; others as they are."""
    if layer.instead is None:
        return layer
    room = layer.shared if layer.block is None else layer.block.room
    samples = most_samples(layer.instead, room, exact=layer.precision == "fp32")
    if not samples:
        return layer
    found = lay_out_resident(layer.instead, samples)
    return replace(found, clamp=layer.clamp, precision=layer.precision, lone=layer.lone)


def _totals(samples: int) -> int:
    """Return how many sums a lane keeps for a task."""
    return 16 if samples < 8 else 32


def _shared_bytes(layer: PanelLayer, samples: int) -> int:
    """Return the shared memory of a tile: its rows, and the results put aside."""
    rows = max(layer.n_in, layer.n_out) + ZERO_ROWS
    totals = _totals(samples)
    lists = totals // samples
    tall, single = len(layer.tall.starts) - 1, len(layer.single.starts) - 1
    tasks = -(-tall // LANES) * max(samples // 8, 1) + -(-single // (LANES * lists))
    # Of a task, the values of each lane, and the neurons they are of.
    return rows * samples * 4 + max(0, tasks - WARPS) * (totals + max(4, lists)) * LANES * 4


def slices(panels: Panels, layer: PanelLayer, samples: int, width: int) -> DevicePanels:
    """Lay panels out in slices; a slice has `width` panels, some for each lane."""
    chunks = samples // 4
    size = 8 // chunks
    starts, indices = panels.starts, panels.indices.astype(np.int64)
    lanes = _lanes(starts, indices, size, width)
    counts = np.diff(starts)
    if size == 1:
        steps = np.arange(len(indices)) - np.repeat(starts[:-1], counts)
        lengths = np.append(counts, 0)[lanes]
    else:
        steps = np.empty(len(indices), np.int64)
        lengths = banks.order_edges(lanes, starts, indices, size, steps)
    lengths = lengths.reshape(len(lanes) // width, width if size == 1 else width // 8).max(axis=1)
    lengths += lengths & 1
    first = np.cumsum(lengths) - lengths
    table = np.full((int(lengths.sum()), width), -1, np.int64)
    # Where each edge goes: the lane of its panel, and the step that it was given.
    slot = np.repeat(lanes_of(lanes, len(counts)), counts)
    place = first[slot // width] + steps, slot % width
    table[place] = indices
    packed = sliced(panels, layer, samples, lanes, place, table, layer.n_in)
    lists = list_table(first // 2, lengths // 2)
    return DevicePanels(panels.height, lists, *packed, slots=table.size * panels.height)


def _lanes(
    starts: NDArray[np.int64], indices: NDArray[np.int64], size: int, width: int
) -> NDArray[np.int64]:
    """Return the panel of each lane of all slices, -1 for none."""
    order = np.argsort(-np.diff(starts), kind="stable")
    if size > 1:
        order = banks.balanced_groups(order, starts, indices, size)
    return in_group_order(order, size, width)
