"""Layers as the block kernel reads them: panels of 16 neurons that read the same inputs.

The block kernel (engines/cuda/kernels/block.cu) multiplies 16 inputs into the 16 neurons of a panel
at a time, a *step*, on tensor cores. Neurons that share their inputs with fewer than 15 others are
put together and read all inputs of all of them, with weights of zero; whether that pays is a
question of cost.

**Places.** A row of the tile is at a *place*, and the four rows that a warp reads at the same time
lie in four different quarters of the banks of shared memory if their places differ modulo 4. Which
neuron is at which place is free, so inputs that are read by the same panels are put side by side,
in fours; a panel then takes its inputs four by four, one of each residue. Only what is left over of
such a class may meet.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.grouping import equal_columns
from teraedge.plan.device import (
    LANES,
    WARPS,
    BlockAreas,
    BlockParts,
    DeviceLayer,
    DevicePanels,
)
from teraedge.plan.panels import PanelLayer, Panels

PANEL, STEP = 16, 16
"""Neurons of a panel, and inputs of a step."""
QUARTERS = 4
"""Rows that are read at the same time."""
ZERO_ROWS = 4
MOST_PLACES = 2**13 - ZERO_ROWS
"""Rows of a tile: addresses, of eight units a row, take two bytes."""
MOST_TERMS = 3
SPARE_STEPS = 2
"""Steps that the kernel reads past the last."""


MOST_HELD = 16
"""Panels of a warp at most where there is one tile, which outputs overwrite."""
SHAPES = ((32, 0), (16, 0), (8, 0), (8, MOST_HELD))
"""Samples of a tile at most, and panels that a warp holds, 0 where there are two tiles."""


class BlockPanels(NamedTuple):
    """Panels of 16 neurons.

    Attributes
    ----------
    starts : ndarray of int64, shape (panels + 1,)
    inputs : ndarray of int64, shape (edges,)
        Of each panel.
    weights : ndarray of float32, shape (edges, 16), or empty
        Empty where all are equal.
    outputs : ndarray of int32, shape (panels, 16)
        Neurons, -1 where there is none.
    """

    starts: NDArray[np.int64]
    inputs: NDArray[np.int64]
    weights: NDArray[np.float32]
    outputs: NDArray[np.int32]

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of each panel."""
        return -(-np.diff(self.starts) // STEP)


def block_panels(layer: PanelLayer) -> BlockPanels:
    """Put all neurons of a layer into panels of 16.

    Parameters
    ----------
    layer : PanelLayer
        With tall panels of 16 neurons.
    """
    tall = layer.tall
    panels = BlockPanels(
        tall.starts,
        tall.indices.astype(np.int64),
        tall.weights.reshape(-1, PANEL),
        tall.outputs.reshape(-1, PANEL),
    )
    weights, value = panels.weights, layer.value
    whole = not len(layer.single.outputs)
    if value is not None and not (whole and len(bf16_terms(np.array([value], np.float32))) == 1):
        # Zeros come in, so that not all are equal any more; or one term is not enough.
        weights = np.full((len(panels.inputs), PANEL), value, np.float32)
        panels = panels._replace(weights=weights)
    if whole:
        return panels
    rest = _joined(layer.single, layer)
    return BlockPanels(
        np.concatenate((panels.starts, panels.starts[-1] + rest.starts[1:])),
        np.concatenate((panels.inputs, rest.inputs)),
        np.concatenate((weights, rest.weights)),
        np.concatenate((panels.outputs, rest.outputs)),
    )


def _joined(single: Panels, layer: PanelLayer) -> BlockPanels:
    """Let every 16 neurons, in their order, read what any of them reads."""
    count = len(single.outputs)
    panels = -(-count // PANEL)
    neuron = np.repeat(np.arange(count), np.diff(single.starts))
    reads = neuron // PANEL * layer.n_in + single.indices
    distinct, edge = np.unique(reads, return_inverse=True)
    weights = np.zeros((len(distinct), PANEL), np.float32)
    weights[edge, neuron % PANEL] = single.weights if layer.value is None else layer.value
    outputs = np.full(panels * PANEL, -1, np.int32)
    outputs[:count] = single.outputs
    starts = np.searchsorted(distinct, np.arange(panels + 1) * layer.n_in)
    return BlockPanels(starts, distinct % layer.n_in, weights, outputs.reshape(-1, PANEL))


def ring_steps(terms: int) -> int:
    """Return the steps that a warp may have on their way from memory: shared memory is short."""
    return 4 if terms < MOST_TERMS else 3


def lay_out_block(layer: PanelLayer, room: int) -> DeviceLayer | None:
    """Lay a layer out for the block kernel, if it fits.

    Parameters
    ----------
    layer : PanelLayer
        With tall panels of 16 neurons.
    room : int
        Shared memory a block may have, in bytes.
    """
    if max(layer.n_in, layer.n_out) > MOST_PLACES:
        return None
    panels = block_panels(layer)
    terms = _terms(panels, layer)
    for samples, held in SHAPES:
        areas = _areas(panels, layer, samples, held, len(terms))
        if areas.shared <= room and (not held or len(panels.outputs) <= WARPS * held):
            return _laid_out(panels, layer, samples, terms, areas)
    return None


def _areas(
    panels: BlockPanels, layer: PanelLayer, samples: int, held: int, terms: int
) -> BlockAreas:
    """Return the shared memory of a layer."""
    rows = max(layer.n_in, layer.n_out) + 2 * ZERO_ROWS
    rounds = -(-len(panels.outputs) // WARPS)
    return BlockAreas(
        tile=rows * samples * 4,
        head=WARPS * rounds * (PANEL * 6 + 4),
        step=STEP * 2 + (LANES * PANEL * terms if len(panels.weights) else 0),
        steps=WARPS * ring_steps(terms),
        held=held,
    )


def _laid_out(
    panels: BlockPanels,
    layer: PanelLayer,
    samples: int,
    terms: list[NDArray[np.uint16]],
    areas: BlockAreas,
) -> DeviceLayer:
    places = input_places(panels, layer.n_in)
    steps = panels.steps
    order = _dealt(steps, WARPS)  # [warp][round], -1 for none
    lengths = np.where(order >= 0, np.append(steps, 0)[order], 0)
    stream = int(lengths.sum(axis=1).max(initial=0))
    # Where the steps of each panel begin.
    begin = np.zeros(len(steps), np.int64)
    starts = np.cumsum(lengths, axis=1) - lengths + np.arange(len(order))[:, None] * stream
    begin[order[order >= 0]] = starts[order >= 0]
    total = len(order) * stream + SPARE_STEPS
    slots = begin.repeat(np.diff(panels.starts)) * STEP + _slots(panels, places)
    zero = -(-layer.n_in // 4) * 4
    place = np.tile(np.arange(zero, zero + QUARTERS), total * STEP // QUARTERS)
    place[slots] = places[panels.inputs]
    addresses = (place * 8 + (place & 3) * 2).reshape(total, STEP // QUARTERS, QUARTERS)
    equal = not len(panels.weights)
    weights = np.empty(0, np.uint16) if equal else _weights(terms, slots, total)
    outputs = np.append(panels.outputs, np.full((1, PANEL), -1, np.int32), axis=0)[order]
    return DeviceLayer(
        kernel="block",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=samples,
        shared=areas.shared,
        tall=DevicePanels(
            height=PANEL,
            lists=DevicePanels.none().lists,
            indices=np.ascontiguousarray(addresses.transpose(0, 2, 1)).astype(np.uint16),
            weights=weights,
            targets=DevicePanels.none().targets,
            slots=int(steps.sum()) * STEP * PANEL,
        ),
        single=DevicePanels.none(),
        value=(layer.value or 0.0) if equal else None,  # 0 where there are no edges
        bias=layer.bias,
        clamp=layer.clamp,
        choice=layer.choice.without_times("block"),
        block=BlockParts(
            terms=len(terms),
            rounds=order.shape[1],
            steps=stream,
            places=places.astype(np.uint16),
            outputs=outputs.reshape(-1, PANEL),
            biases=np.append(layer.bias, np.float32(0))[outputs].reshape(-1, PANEL),
            lengths=lengths.astype(np.int32).ravel(),
            areas=areas,
        ),
    )


def input_places(panels: BlockPanels, n_in: int) -> NDArray[np.int64]:
    """Return where in the tile each input lies: those that the same panels read in fours.

    Parameters
    ----------
    panels : BlockPanels
    n_in : int

    Returns
    -------
    ndarray of int64, shape (n_in,)
        A permutation of 0 to n_in - 1.
    """
    reader = np.repeat(np.arange(len(panels.outputs)), np.diff(panels.starts))
    order = np.lexsort((reader, panels.inputs))
    starts = np.searchsorted(panels.inputs[order], np.arange(n_in + 1))
    leader = equal_columns(starts, reader[order])
    by_class = np.argsort(leader, kind="stable")
    changes = np.flatnonzero(np.diff(leader[by_class])) + 1
    begins = np.concatenate(([0], changes)) if n_in else changes
    sizes = np.diff(np.append(begins, n_in))
    number = np.repeat(np.arange(len(begins)), sizes)
    within = np.arange(n_in) - np.repeat(begins, sizes)
    full = within < sizes[number] // QUARTERS * QUARTERS
    # Rotated from class to class, so that neurons that begin classes differ, too: a panel of the
    # layer before writes such.
    quad, member = within // QUARTERS, within % QUARTERS
    member = np.where(full, (member + number + quad) % QUARTERS, member)
    rank = np.lexsort((member, quad, number, ~full))
    places = np.empty(n_in, np.int64)
    places[by_class[rank]] = np.arange(n_in)
    return places


def _dealt(steps: NDArray[np.int64], warps: int) -> NDArray[np.int64]:
    """Deal panels to warps, the longest first, to and fro: [warp][round], -1 for none."""
    rounds = -(-len(steps) // warps)
    order = np.full(rounds * warps, -1)
    order[: len(steps)] = np.argsort(-steps, kind="stable")
    table = order.reshape(rounds, warps)
    table[1::2] = table[1::2, ::-1]
    return np.ascontiguousarray(table.T)


def _slots(panels: BlockPanels, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in its panel each edge goes: 4 i + q, read by quarter q.

    An input goes to the quarter of its place; what is too much for it fills what is free.
    """
    counts, steps = np.diff(panels.starts), panels.steps
    panel = np.repeat(np.arange(len(counts)), counts)
    place = places[panels.inputs]
    quarter = place % QUARTERS
    order = np.lexsort((place, quarter, panel))
    key = (panel * QUARTERS + quarter)[order]
    first = np.searchsorted(key, key)
    rank = np.empty(len(key), np.int64)
    rank[order] = np.arange(len(key)) - first
    room = steps * (STEP // QUARTERS)
    fits = rank < room[panel]
    slots = np.where(fits, rank * QUARTERS + quarter, -1)
    late = np.flatnonzero(~fits)
    if len(late):
        begin = np.concatenate(([0], np.cumsum(steps * STEP)))
        free = np.ones(begin[-1], np.bool_)
        free[(begin[panel] + slots)[fits]] = False
        gaps = np.flatnonzero(free)
        nth = np.arange(len(late)) - np.searchsorted(panel[late], panel[late])
        slots[late] = gaps[np.searchsorted(gaps, begin[panel[late]]) + nth] - begin[panel[late]]
    return slots


def _terms(panels: BlockPanels, layer: PanelLayer) -> list[NDArray[np.uint16]]:
    """Return the terms of the weights, or of the one weight there is."""
    if len(panels.weights) or layer.value is None:
        return bf16_terms(panels.weights)
    return bf16_terms(np.array([layer.value], np.float32))


def _weights(
    terms: list[NDArray[np.uint16]], slots: NDArray[np.int64], total: int
) -> NDArray[np.uint16]:
    """Return the terms of weights as lanes read them."""
    table = np.zeros((total * STEP, len(terms), PANEL), np.uint16)
    table[slots] = np.stack(terms, axis=1)
    # Of a step [i = 2 ih + il][q][term][o = 8 oh + g]; lane 4 g + q reads [ih][oh][il].
    split = table.reshape(total, 2, 2, QUARTERS, len(terms), 2, 8)
    return np.ascontiguousarray(split.transpose(0, 4, 6, 3, 1, 5, 2)).ravel()


def bf16_terms(values: NDArray[np.float32]) -> list[NDArray[np.uint16]]:
    """Split numbers into sums of bf16 numbers, rounded to nearest: at most three are exact.

    Returns
    -------
    list of ndarray of uint16
        The bits of the terms, the largest first; as few as hold all values exactly.
    """
    terms: list[NDArray[np.uint16]] = []
    rest = values.astype(np.float32)
    while not terms or (len(terms) < MOST_TERMS and rest.any()):
        bits = rest.view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
        overflowed = ~np.isfinite(rounded.view(np.float32))
        rounded = np.where(overflowed, bits & np.uint32(0xFFFF0000), rounded)
        terms.append((rounded >> 16).astype(np.uint16))
        rest = rest - rounded.view(np.float32)
    return terms
