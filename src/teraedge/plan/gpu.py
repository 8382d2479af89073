"""Layers as the CUDA kernels read them: which kernel each gets, and its arrays.

A layer that fits runs in the *resident* kernel, which keeps a tile of 4 to 32 samples of all its
neurons in shared memory. One that does not runs in the *wide* kernel, which gathers rows from L2,
in the *chained* kernel (`plan.chained`), where panels share many inputs with their neighbours,
or in the *staged* kernel (`plan.staged`), which brings rows into shared memory part after part:
better where neurons share no inputs and lists are not too short. Where most edges exist, all run,
as a product of matrices on tensor cores (`plan.dense`). `plan.rates` tells which.

All but that work on panels (`plan.panels`): neurons that read the same inputs. The resident kernel
reads
slices of 32 tall panels, one a lane, or of 32 single neurons for each 32 sums that a lane can keep,
in sliced ELL (Monakov et al., 2010): the k-th edges of all lie side by side. Panels are sorted by
length, so that little is padded, and their edges are ordered for the banks of shared memory
(`plan.banks`). The wide kernel reads one panel a warp.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.network import Layer
from teraedge.options import ITEMSIZE, Precision
from teraedge.plan import banks, predict, rates, small
from teraedge.plan.block import PANEL, lay_out_block
from teraedge.plan.chained import ALIGN, chained, lay_out_chained, pieces
from teraedge.plan.cost import Constants
from teraedge.plan.dense import dense_edges, dense_shared, dense_terms, lay_out_dense
from teraedge.plan.device import (
    COLUMNS,
    LANES,
    PLANES,
    STATIC_SHARED,
    WARPS,
    ZERO_ROWS,
    DeviceLayer,
    DevicePanels,
    Kernel,
    in_group_order,
    lanes_of,
    list_table,
    sliced,
    targets_of,
)
from teraedge.plan.panels import PanelLayer, Panels, panel_layer
from teraedge.plan.staged import Staging, lay_out_staged, settled, staging
from teraedge.rounding import LARGEST

RESIDENT_HEIGHT = 4
"""Neurons of a tall panel of the resident kernel."""
RESIDENT_TALL_EDGE = 1.5
"""What an edge of a tall panel costs, in edges of a single neuron: as many reads of inputs, and
more of weights."""
WIDE_TALL_EDGES = {16: 1.5, 8: 1.25}
"""The same for the wide kernel, by the neurons that tall panels may have there."""
BLOCK_TALL_EDGE = 1.0
"""As `RESIDENT_TALL_EDGE`, for the panels of the block kernel: single neurons it has none."""
SAMPLES = (32, 16, 8, 4)
"""Samples a resident tile may have."""
NOT_CURVED = 16
"""Samples for which there are too few registers for smooth activations that are rounded."""
NEVER = 1e9
"""What makes an edge of a tall panel too dear to be chosen."""


def lay_out(
    layer: Layer,
    shared_bytes: int,
    *,
    tensor_cores: bool = True,
    precision: Precision = "fp32",
    few: bool = False,
) -> DeviceLayer:
    """Lay a layer out for the kernel that it fits.

    Parameters
    ----------
    layer : Layer
    shared_bytes : int
        Shared memory a block may have.
    tensor_cores : bool
        Whether the device has some that multiply bf16.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored. Their bounds are drawn in to what can be.
    few : bool
        Whether few samples may be left in time, as they die or become equal.

    Raises
    ------
    ModelError
        If a weight or bias is too large for float32.
    """
    laid_out = _lay_out(layer, shared_bytes - STATIC_SHARED, tensor_cores, precision, few)
    largest = LARGEST[precision]
    lower, upper = (min(max(bound, -largest), largest) for bound in laid_out.clamp)
    clamp = laid_out.clamp if precision == "fp32" else (lower, upper)
    return replace(laid_out, clamp=clamp, itemsize=ITEMSIZE[precision])


def _lay_out(
    layer: Layer, room: int, tensor_cores: bool, precision: Precision, few: bool
) -> DeviceLayer:
    """Lay a layer out as a product of matrices, or for the edges there are."""
    terms = _dense_terms(layer, room) if tensor_cores else 0
    if not terms:
        return _lay_out_sparse(layer, room, tensor_cores, precision, few)
    seconds = rates.dense_seconds(dense_edges(layer), terms)
    if seconds + rates.SWITCH >= layer.edges / rates.FASTEST:
        sparse = _lay_out_sparse(layer, room, tensor_cores, precision, few)
        found = predict.predicted(sparse, rates.SPEED).choice.seconds
        # A dense layer is a launch of its own, and its rows go through device memory.
        if found is not None and found <= seconds + rates.SWITCH * sparse.resident:
            return sparse
    return lay_out_dense(layer, terms)


def _dense_terms(layer: Layer, room: int) -> int:
    """Return the terms of weights for the dense kernel, 0 where it is not worth a look."""
    least = rates.dense_seconds(dense_edges(layer), 1)
    if least >= layer.edges / rates.SLOWEST:
        return 0
    terms = dense_terms(layer)
    return terms if dense_shared(terms) <= room else 0


def _lay_out_sparse(
    layer: Layer, room: int, tensor_cores: bool, precision: Precision, few: bool
) -> DeviceLayer:
    """Lay a layer out for the fastest of the kernels that run the edges there are.

    The small and the staged kernel know activations of fp32 only.
    """
    exact = precision == "fp32"
    rows = max(layer.n_in, layer.n_out) + ZERO_ROWS
    resident, seconds = None, np.inf
    if rows * min(SAMPLES, default=room) * 4 <= room:
        panels = panel_layer(layer, _relative(RESIDENT_HEIGHT, RESIDENT_TALL_EDGE))
        sizes = [n for n in SAMPLES if n != NOT_CURVED or exact or not panels.curve]
        samples = next((n for n in sizes if _shared(panels, n) <= room), 0)
        seconds_there = rates.resident_seconds(panels, samples, RESIDENT_TALL_EDGE)
        if tensor_cores and not panels.curve:
            block = _block(layer, room, seconds_there, PLANES[precision])
            if block is not None:
                return block
        most = seconds_there * (rates.FEW if few else 1.0)
        tiny = _small(layer, panels, room, most) if exact else None
        if tiny is not None:
            return tiny
        if samples > 4:
            return _resident(panels, samples, _shared(panels, samples))
        if samples:
            resident, seconds = panels, rates.resident_four_seconds(panels, RESIDENT_TALL_EDGE)
    wide, wide_seconds = _best_wide(layer, ITEMSIZE[precision])
    if exact and rates.staged_at_best(wide) < min(seconds, wide_seconds):
        single = wide if not len(wide.tall.outputs) else all_single(layer)
        plan = _best_staging(single, room, min(seconds, wide_seconds))
        if plan is not None:
            return lay_out_staged(single, plan)
    if resident is not None and seconds < wide_seconds:
        return _resident(resident, 4, _shared(resident, 4))
    return _wide(wide, precision)


def _small(layer: Layer, resident: PanelLayer, room: int, seconds: float) -> DeviceLayer | None:
    """Lay a layer out for the small kernel, if it is one and takes less than some seconds."""
    taken = rates.small_seconds(layer.edges, layer.n_out)
    if min(layer.n_in, layer.n_out) > small.WIDTH or taken > seconds:
        return None
    panels = all_single(layer)
    pieces = small.pieces_of(_slices(panels.single, panels, small.GROUP, LANES), panels)
    if pieces is None:
        return None
    found = DeviceLayer(
        kernel="small",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=small.GROUP,
        shared=room,
        tall=DevicePanels.none(),
        single=pieces,
        value=panels.value,
        bias=panels.bias,
        clamp=panels.clamp,
        curve=panels.curve,
        choice=panels.choice.without_times("small"),
        instead=resident,
    )
    return found if small.Extent().more(found, 0).fits(room) else None


def resident_instead(layer: DeviceLayer) -> DeviceLayer:
    """Return a layer of the small kernel laid out for the resident one; others as they are."""
    panels = layer.instead
    if panels is None:
        return layer
    samples = next((n for n in SAMPLES if _shared(panels, n) <= layer.shared), 0)
    return _resident(panels, samples, _shared(panels, samples)) if samples else layer


def _block(layer: Layer, room: int, seconds: float, planes: int) -> DeviceLayer | None:
    """Lay a layer out for the block kernel, if that takes less than some seconds."""
    panels = panel_layer(layer, _relative(PANEL, BLOCK_TALL_EDGE))
    most = seconds - rates.SWITCH  # among layers of another kernel it would have to be worth it
    if rates.block_at_best(panels) < most:
        found = lay_out_block(panels, room, planes)
        if found is not None and rates.block_seconds(found) < most:
            return found
    return None


def all_single(layer: Layer) -> PanelLayer:
    """Return a layer without tall panels."""
    return panel_layer(layer, _relative(min(WIDE_TALL_EDGES), NEVER))


def _best_wide(layer: Layer, itemsize: int) -> tuple[PanelLayer, float]:
    """Return the panels that are the fastest in the wide kernel, and what they take."""
    found = []
    for height, edge in WIDE_TALL_EDGES.items():
        panels = panel_layer(layer, _relative(height, edge))
        found.append((panels, rates.wide_seconds(panels, edge, itemsize)))
        if not len(panels.single.outputs):
            break  # lower panels would only read more
    return min(found, key=lambda pair: pair[1])


def _best_staging(layer: PanelLayer, room: int, seconds: float) -> Staging | None:
    """Return the fastest way to stage a layer, if one takes less than some seconds."""
    best, least = None, seconds
    for buffers in (1, 2):
        plan = staging(layer, room, buffers)
        if plan is not None and (taken := rates.staged_seconds(layer, plan)) < least:
            best, least = plan, taken
    if best is not None and rates.staged_seconds(layer, best := settled(best)) < seconds:
        return best
    return None


def _relative(height: int, tall_edge: float) -> Constants:
    """Return what panels cost in edges of a single neuron, wherever inputs come from."""
    edge = 1.0, 1.0, 1.0
    return Constants(
        tile=COLUMNS,
        height=height,
        caches=(2**60, 2**61),
        tall_edge=(tall_edge, tall_edge, tall_edge),
        single_edge=edge,
        tall_run=tall_edge,
        single_run=1.0,
        tall_neuron=1.0,
        single_neuron=1.0,
        load=1.0,
        store=1.0,
        byte=1e-9,
        multiply_add=0.25,
        read=edge,
    )


def _totals(samples: int) -> int:
    """Return how many sums a lane of the resident kernel keeps for a task."""
    return 16 if samples < 8 else 32


def _shared(layer: PanelLayer, samples: int) -> int:
    """Return the shared memory of a resident tile: its rows, and the results put aside."""
    rows = max(layer.n_in, layer.n_out) + ZERO_ROWS
    totals = _totals(samples)
    lists = totals // samples
    tall, single = len(layer.tall.starts) - 1, len(layer.single.starts) - 1
    tasks = -(-tall // LANES) * max(samples // 8, 1) + -(-single // (LANES * lists))
    # Of a task, the values of each lane, and the neurons they are of.
    return rows * samples * 4 + max(0, tasks - WARPS) * (totals + max(4, lists)) * LANES * 4


def _resident(layer: PanelLayer, samples: int, shared: int) -> DeviceLayer:
    return DeviceLayer(
        kernel="resident",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=samples,
        shared=shared,
        tall=_slices(layer.tall, layer, samples, LANES),
        single=_slices(layer.single, layer, samples, LANES * (_totals(samples) // samples)),
        value=layer.value,
        bias=layer.bias,
        clamp=layer.clamp,
        curve=layer.curve,
        choice=layer.choice.without_times("resident"),
    )


def _slices(panels: Panels, layer: PanelLayer, samples: int, width: int) -> DevicePanels:
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


def _wide(layer: PanelLayer, precision: Precision = "fp32") -> DeviceLayer:
    """Lay a layer out for the wide kernel, or for the chained one if its panels share inputs."""
    index = np.uint16 if layer.n_in <= 2**16 else np.uint32
    kernel: Kernel = "wide"
    places = None
    single = _lists(layer.single, layer, index)
    if len(layer.tall.outputs) and not single.count and _fits_terms(layer, precision):
        found = chained(layer.tall, layer.n_in)
        if found.pieces <= rates.CHAINED_PIECES * pieces(np.diff(layer.tall.starts)):
            kernel = "chained"
            tall, places = lay_out_chained(found, layer.tall, layer, index)
    if kernel == "wide":
        tall = _lists(layer.tall, layer, index)
    return DeviceLayer(
        kernel=kernel,
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=0,
        shared=0,
        tall=tall,
        single=single,
        value=layer.value,
        bias=layer.bias,
        clamp=layer.clamp,
        curve=layer.curve,
        choice=layer.choice.without_times(kernel),
        places=places,
    )


def _fits_terms(layer: PanelLayer, precision: Precision) -> bool:
    """Tell whether the chained kernel takes such weights.

    On tensor cores, two terms of fp16 must hold each to 21 bits; and for panels of 8 neurons there
    are registers only if all weights are equal.
    """
    if precision == "fp32" or layer.value is not None:
        return True
    if layer.tall.height < max(WIDE_TALL_EDGES):
        return False
    if precision == "bf16":
        return True
    weights = layer.tall.weights.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rest = weights - weights.astype(np.float16)
        rest -= rest.astype(np.float16)
    return bool((np.abs(rest) <= np.abs(weights) * 2.0**-21).all())


def _lists(panels: Panels, layer: PanelLayer, index: Any) -> DevicePanels:
    """Lay panels out one after the other, each from a multiple of `ALIGN` on."""
    counts = np.diff(panels.starts)
    room = -(-counts // ALIGN) * ALIGN
    starts = np.cumsum(room) - room
    place = np.arange(len(panels.indices)) + np.repeat(starts - panels.starts[:-1], counts)
    indices = np.zeros(int(room.sum()), index)
    indices[place] = panels.indices
    weights = np.empty(0, np.float32)
    if layer.value is None:
        values = np.zeros((len(indices), panels.height), np.float32)
        values[place] = panels.weights.reshape(-1, panels.height)
        weights = values.ravel()
    return DevicePanels(
        height=panels.height,
        lists=list_table(starts, counts),
        indices=indices,
        weights=weights,
        targets=targets_of(panels, layer),
        slots=int(counts.sum()) * panels.height,
    )
