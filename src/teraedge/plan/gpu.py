"""Layers as the CUDA kernels read them: which kernel each gets, and its arrays.

A layer that fits runs in the *resident* kernel, which keeps a tile of 4 to 32 samples of all its
neurons in shared memory. One that does not runs in the *wide* kernel, which gathers rows from L2,
in the *chained* kernel (`plan.chained`), where panels share many inputs with their neighbours,
or in the *staged* kernel (`plan.staged`), which brings rows into shared memory part after part:
better where neurons share no inputs and lists are not too short. Where most edges exist, all run,
as a product of matrices on tensor cores (`plan.dense`). A device's `Rates` tell which.

All but that work on panels (`plan.panels`): neurons that read the same inputs. The resident kernel
reads them in slices (`plan.resident`), the wide kernel one a warp.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from teraedge.network import Layer
from teraedge.options import Precision
from teraedge.plan import small
from teraedge.plan.block import PANEL, lay_out_block
from teraedge.plan.chained import ALIGN, chained, lay_out_chained, pieces
from teraedge.plan.cost import Constants
from teraedge.plan.dense import dense_edges, dense_shared, dense_terms, lay_out_dense
from teraedge.plan.device import DeviceLayer, DevicePanels, Kernel, list_table, targets_of
from teraedge.plan.kernel_sizes import COLUMNS, LANES, STATIC_SHARED
from teraedge.plan.panels import PanelLayer, Panels, panel_layer
from teraedge.plan.rates import CHAINED, FEW, WIDE_HEIGHTS, Rates
from teraedge.plan.resident import lay_out_resident, may_be_resident, most_samples, slices
from teraedge.plan.staged import Staging, lay_out_staged, settled, staging
from teraedge.plan.terms import Terms
from teraedge.rounding import LARGEST

RESIDENT_HEIGHT = 4
"""Neurons of a tall panel of the resident kernel."""
RESIDENT_TALL_EDGE = 1.5
"""What an edge of a tall panel costs, in edges of a single neuron: as many reads of inputs, and
more of weights."""
BLOCK_TALL_EDGE = 1.0
"""As `RESIDENT_TALL_EDGE`, for the panels of the block kernel: single neurons it has none."""
BIT_SAMPLES = (32, 16, 8)
"""Samples that a tile of packed features may have."""
BIT_TILES = {32: 2, 16: 1, 8: 1}
"""Of these, tiles that a multiprocessor runs at a time, as registers allow, and must have room for:
one turns its bits while another one sums."""
BIT_THREADS = {32: 256, 16: 512, 8: 512}
"""Of a block that takes such a tile."""
H200 = Rates()
NEVER = 1e9
"""What makes an edge of a tall panel too dear to be chosen."""


def lay_out(
    layer: Layer,
    shared_bytes: int,
    *,
    tensor_cores: bool = True,
    precision: Precision = "fp32",
    few: bool = False,
    rates: Rates = H200,
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
    rates : Rates
        Of the device.

    Raises
    ------
    ModelError
        If a weight or bias is too large for float32.
    """
    room = shared_bytes - STATIC_SHARED
    laid_out = _lay_out(layer, room, tensor_cores, precision, few, rates)
    largest = LARGEST[precision]
    lower, upper = (min(max(bound, -largest), largest) for bound in laid_out.clamp)
    clamp = laid_out.clamp if precision == "fp32" else (lower, upper)
    return replace(laid_out, clamp=clamp, precision=precision)


def _lay_out(
    layer: Layer, room: int, tensor_cores: bool, precision: Precision, few: bool, rates: Rates
) -> DeviceLayer:
    """Lay a layer out as a product of matrices, or for the edges there are."""
    terms = _dense_terms(layer, room, precision, rates) if tensor_cores else None
    if terms is None:
        return _lay_out_sparse(layer, room, tensor_cores, precision, few, rates)
    seconds = rates.dense_seconds(dense_edges(layer, precision), len(terms.bits), precision)
    if seconds + rates.switch >= layer.edges / rates.fastest:
        sparse = _lay_out_sparse(layer, room, tensor_cores, precision, few, rates)
        sparse = replace(sparse, precision=precision)
        # A dense layer is a launch of its own, and its rows go through device memory.
        if rates.seconds(sparse) <= seconds + rates.switch * sparse.resident:
            return sparse
    return lay_out_dense(layer, terms, precision)


def _dense_terms(layer: Layer, room: int, precision: Precision, rates: Rates) -> Terms | None:
    """Return the weights for the dense kernel, None where it is not worth a look."""
    least = rates.dense_seconds(dense_edges(layer, precision), 1, precision)
    if least >= layer.edges / rates.slowest:
        return None
    terms = dense_terms(layer, precision)
    return terms if dense_shared(len(terms.bits), precision) <= room else None


def _lay_out_sparse(
    layer: Layer, room: int, tensor_cores: bool, precision: Precision, few: bool, rates: Rates
) -> DeviceLayer:
    """Lay a layer out for the fastest of the kernels that run the edges there are.

    The small and the staged kernel know activations of fp32 only.
    """
    exact = precision == "fp32"
    resident, seconds = None, np.inf
    if may_be_resident(layer, room):
        panels = panel_layer(layer, _relative(RESIDENT_HEIGHT, RESIDENT_TALL_EDGE))
        samples = most_samples(panels, room, exact=exact)
        seconds_there = rates.resident_seconds(panels, samples)
        if tensor_cores and not panels.curve:
            block = _block(layer, room, panels, seconds_there, precision, rates)
            if block is not None:
                return block
        most = seconds_there * (FEW if few else 1.0)
        tiny = _small(layer, panels, room, most, rates) if exact else None
        if tiny is not None:
            return tiny
        if samples > 4:
            return lay_out_resident(panels, samples)
        if samples:
            resident, seconds = panels, seconds_there
    wide, wide_seconds = _best_wide(layer, rates)
    if exact and rates.staged_at_best(wide) < min(seconds, wide_seconds):
        single = wide if not len(wide.tall.outputs) else all_single(layer)
        plan = _best_staging(single, room, min(seconds, wide_seconds), rates)
        if plan is not None:
            return lay_out_staged(single, plan)
    if resident is not None and seconds < wide_seconds:
        return lay_out_resident(resident, 4)
    return lay_out_wide(wide, precision)


def _small(
    layer: Layer, resident: PanelLayer, room: int, seconds: float, rates: Rates
) -> DeviceLayer | None:
    """Lay a layer out for the small kernel, if it is one and takes less than some seconds."""
    taken = rates.small_seconds(layer.edges, layer.n_out)
    if min(layer.n_in, layer.n_out) > small.WIDTH or taken > seconds:
        return None
    return lay_out_small(all_single(layer), resident, room)


def lay_out_small(panels: PanelLayer, resident: PanelLayer, room: int) -> DeviceLayer | None:
    """Lay a layer without tall panels out for the small kernel, if it is one.

    Parameters
    ----------
    panels, resident : PanelLayer
        The layer as the small and as the resident kernel would take it.
    room : int
        Shared memory a block may have, in bytes.
    """
    pieces = small.pieces_of(slices(panels.single, panels, small.GROUP, LANES), panels)
    if pieces is None:
        return None
    found = DeviceLayer(
        kernel="small",
        n_in=panels.n_in,
        n_out=panels.n_out,
        edges=panels.edges,
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


def _block(
    layer: Layer,
    room: int,
    resident: PanelLayer,
    seconds: float,
    precision: Precision,
    rates: Rates,
) -> DeviceLayer | None:
    """Lay a layer out for the block kernel, if that takes less than some seconds."""
    panels = panel_layer(layer, _relative(PANEL, BLOCK_TALL_EDGE))
    most = seconds - rates.switch  # among layers of another kernel it would have to be worth it
    if rates.block_at_best(panels) < most:
        found = lay_out_block(panels, room, precision)
        if found is not None and (taken := rates.block_seconds(found)) < most:
            # Alone among others it would have to save two changes of kernels, too.
            borders = rates.border_seconds(layer.n_in + layer.n_out, 4)
            return found if seconds - taken > borders else replace(found, instead=resident)
    return None


def all_single(layer: Layer) -> PanelLayer:
    """Return a layer without tall panels."""
    return panel_layer(layer, _relative(min(WIDE_HEIGHTS), NEVER))


def _best_wide(layer: Layer, rates: Rates) -> tuple[PanelLayer, float]:
    """Return the panels that are the fastest in the wide kernel, and what they take."""
    found = []
    for height in WIDE_HEIGHTS:
        panels = panel_layer(layer, _relative(height, rates.wide_tall_edge(height)))
        found.append((panels, rates.wide_seconds(panels)))
        if not len(panels.single.outputs):
            break  # lower panels would only read more
    return min(found, key=lambda pair: pair[1])


def _best_staging(layer: PanelLayer, room: int, seconds: float, rates: Rates) -> Staging | None:
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


def with_bits(first: DeviceLayer, room: int, rates: Rates) -> DeviceLayer:
    """Return a first layer that packed features take another kernel for, if that is faster.

    Parameters
    ----------
    first : DeviceLayer
    room : int
        Shared memory a block may have, in bytes.
    rates : Rates
        Of the device.
    """
    sizes = {n: -(-first.n_in * n // 8 // 16) * 16 + BIT_THREADS[n] * n * 4 for n in BIT_SAMPLES}
    samples = next((n for n in BIT_SAMPLES if sizes[n] * BIT_TILES[n] <= room), 0)
    if first.kernel != "wide" or not samples or rates.bits_seconds(first) >= rates.seconds(first):
        return first
    return replace(first, bit_samples=samples, shared=sizes[samples])


def lay_out_wide(layer: PanelLayer, precision: Precision = "fp32") -> DeviceLayer:
    """Lay a layer out for the wide kernel, or for the chained one if its panels share inputs."""
    index = np.uint16 if layer.n_in <= 2**16 else np.uint32
    kernel: Kernel = "wide"
    places = None
    single = _lists(layer.single, layer, index)
    if len(layer.tall.outputs) and not single.count and _fits_terms(layer, precision):
        found = chained(layer.tall, layer.n_in)
        if found.pieces <= CHAINED * pieces(np.diff(layer.tall.starts)):
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
    if layer.tall.height < max(WIDE_HEIGHTS):
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
