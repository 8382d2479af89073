"""Layers as the block kernel reads them: panels of 16 neurons that read the same inputs.

The block kernel (engines/cuda/kernels/block.cu) multiplies 16 inputs into the 16 neurons of a panel
at a time, a *step*, on tensor cores. Neurons that share their inputs with fewer than 15 others are
put together and read all inputs of all of them, with weights of zero; whether that pays is a
question of cost.

**Blocks.** Inputs that are read by the same panels are a class, and 16 of a class are a block,
which is a step for each of those panels. What is left over of all classes that a panel reads is
read by that panel alone. Panels that share blocks follow each other (`plan.chains`).

**Places.** A row of the tile is at a *place*, and eight rows that are read, or written, at the same
time lie in different banks of shared memory if their places differ modulo 8. Which neuron is at
which place is free, so blocks have places in eights, one of each residue. What is left over may
meet.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.options import PRECISIONS, Precision
from teraedge.plan.block_parts import FIRST_PLACE, UNITS, BlockKind, BlockParts, row_units
from teraedge.plan.chains import Classes, chains, dealt, input_classes
from teraedge.plan.device import DeviceLayer, DevicePanels
from teraedge.plan.kernel_sizes import WARPS
from teraedge.plan.panels import PanelLayer, Panels
from teraedge.plan.terms import MOST_TERMS, Terms, split

PANEL, STEP = 16, 16
"""Neurons of a panel, and inputs of a step."""
EIGHT = 8
"""Rows that are read at the same time."""
MOST_PLACES = 2**16 // UNITS
"""Rows of a tile; units take two bytes."""
HELD, HELD_WITH_WEIGHTS = 64, 48
"""Registers for the panels that a warp holds: weights on their way take some, too."""
PIECES_AHEAD = 2
"""Fragments of weights that the kernel reads past the last."""


def _kinds(precision: Precision) -> Iterator[BlockKind]:
    fp32 = precision == "fp32"
    tiles = ((16, 2), (8, 2), (8, 1)) if fp32 else ((32, 2), (16, 2), (16, 1), (8, 2), (8, 1))
    for samples, count in tiles:
        for terms in range(MOST_TERMS[precision] + 1):
            if count == 2:
                yield BlockKind(samples, terms, 0, precision)
            elif terms < (2 if samples == 8 else 1):  # registers
                each = samples // 8 * (4 if fp32 else 2)
                held = (HELD_WITH_WEIGHTS if terms else HELD) // each
                yield BlockKind(samples, terms, held, precision)


KINDS = tuple(kind for precision in PRECISIONS for kind in _kinds(precision))
"""What there is of the block kernel; of a precision the best first."""


class BlockPanels(NamedTuple):
    """Panels of 16 neurons.

    Attributes
    ----------
    starts : ndarray of int64, shape (panels + 1,)
    inputs : ndarray of int64, shape (edges,)
        Of each panel, ascending.
    weights : ndarray of float32, shape (edges, 16), or empty
        Empty where all are equal.
    outputs : ndarray of int32, shape (panels, 16)
        Neurons, -1 where there is none.
    """

    starts: NDArray[np.int64]
    inputs: NDArray[np.int64]
    weights: NDArray[np.float32]
    outputs: NDArray[np.int32]


class Units(NamedTuple):
    """The steps that there are to read: blocks, and of each panel what is left.

    Attributes
    ----------
    table : ndarray of int64, shape (steps, 16)
        Inputs of each step; -1 where there is none.
    blocks : list of list of int
        The steps of each panel that are blocks.
    rest : ndarray of int64, shape (panels + 1,)
        Steps ``rest[p]`` to ``rest[p + 1]`` have what is left of panel p.
    """

    table: NDArray[np.int64]
    blocks: list[list[int]]
    rest: NDArray[np.int64]


class Stream(NamedTuple):
    """What a warp does.

    Attributes
    ----------
    panels : list of int
    lengths : list of int
        Steps into each panel alone, and 65536 times those into the next one too.
    steps : list of list of int
        Steps to read for each panel, in order.
    fragments : list of (int, int)
        Panel and step of each 16 times 16 weights.
    """

    panels: list[int]
    lengths: list[int]
    steps: list[list[int]]
    fragments: list[tuple[int, int]]


def lay_out_block(
    layer: PanelLayer, room: int, precision: Precision = "fp32"
) -> DeviceLayer | None:
    """Lay a layer out for the block kernel, if it fits.

    Parameters
    ----------
    layer : PanelLayer
        With tall panels of 16 neurons.
    room : int
        Shared memory a block may have, in bytes.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.
    """
    rows = max(layer.n_in, layer.n_out)
    if rows + FIRST_PLACE > MOST_PLACES:
        return None
    panels = block_panels(layer)
    equal = layer.value is not None and not len(panels.weights)
    terms = Terms([], 1.0) if equal else split(panels.weights, precision)
    kinds = [k for k in KINDS if (k.precision, k.terms) == (precision, len(terms.bits))]
    kinds = [kind for kind in kinds if kind.shared(kind.plane_bytes(rows), 0) <= room]
    if not kinds:
        return None
    classes = input_classes(panels.starts, panels.inputs, layer.n_in)
    places, units = _units(classes, panels, layer.n_in)
    streams = _streams(units)
    parts = _parts(panels, layer, units, streams, places, room)
    for kind in kinds:
        shared = kind.shared(kind.plane_bytes(rows), parts.record_bytes)
        if shared <= room and (not kind.held or parts.rounds <= kind.held):
            parts = parts._replace(kind=kind)
            return _laid_out(panels, layer, units, streams, terms, parts, shared)
    return None


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
    if not len(layer.single.outputs):
        return panels
    weights = panels.weights
    if layer.value is not None:  # zeros come in, so that not all are equal any more
        weights = np.full((len(panels.inputs), PANEL), layer.value, np.float32)
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


def _units(classes: Classes, panels: BlockPanels, n_in: int) -> tuple[NDArray[np.int64], Units]:
    """Cut inputs into steps; returns where in the tile each lies, shape (n_in,), and the steps."""
    sizes = np.diff(classes.starts)
    number = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(n_in) - np.repeat(classes.starts[:-1], sizes)
    whole = within < sizes[number] // STEP * STEP
    eights = within < sizes[number] // EIGHT * EIGHT
    # Eights, rotated from class to class, so that neurons that begin classes differ, too: a panel
    # of the layer before writes such.
    turn = (within + number + within // EIGHT) % EIGHT
    member = np.where(eights, within // EIGHT * EIGHT + turn, within)
    rank = np.lexsort((member, number, ~eights, ~whole))
    by_place = classes.order[rank]
    places = np.empty(n_in, np.int64)
    places[by_place] = FIRST_PLACE + np.arange(n_in)
    count = int(whole.sum()) // STEP
    block_of = np.full(n_in, -1)
    block_of[by_place[: count * STEP]] = np.arange(count * STEP) // STEP
    owner = number[rank][: count * STEP : STEP]
    blocks: list[list[int]] = [[] for _ in panels.outputs]
    for block, of in enumerate(owner.tolist()):
        for panel in classes.readers[of].tolist():
            blocks[panel].append(block)
    reader = np.repeat(np.arange(len(blocks)), np.diff(panels.starts))
    left = block_of[panels.inputs] < 0
    counts = np.bincount(reader[left], minlength=len(blocks))
    starts = np.concatenate(([0], np.cumsum(counts)))
    steps = np.concatenate(([0], np.cumsum(-(-counts // STEP))))
    table = np.full((count + steps[-1]) * STEP, -1)
    table[: count * STEP] = by_place[: count * STEP]
    inputs = panels.inputs[left]
    table[(count + steps[reader[left]]) * STEP + _slots(starts, places[inputs])] = inputs
    return places, Units(table.reshape(-1, STEP), blocks, count + steps)


def _slots(starts: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where among its own each of some inputs goes, eight by eight.

    Of eight, one has each residue of its place; what is too much of one fills what is free.
    """
    counts = np.diff(starts)
    steps = -(-counts // STEP)
    owner = np.repeat(np.arange(len(counts)), counts)
    residue = places % EIGHT
    order = np.lexsort((places, residue, owner))
    key = (owner * EIGHT + residue)[order]
    rank = np.empty(len(key), np.int64)
    rank[order] = np.arange(len(key)) - np.searchsorted(key, key)
    fits = rank < steps[owner] * (STEP // EIGHT)
    slots = np.where(fits, rank * EIGHT + residue, -1)
    late = np.flatnonzero(~fits)
    if len(late):
        begin = np.concatenate(([0], np.cumsum(steps * STEP)))
        free = np.ones(begin[-1], np.bool_)
        free[(begin[owner] + slots)[fits]] = False
        gaps = np.flatnonzero(free)
        nth = np.arange(len(late)) - np.searchsorted(owner[late], owner[late])
        slots[late] = gaps[np.searchsorted(gaps, begin[owner[late]]) + nth] - begin[owner[late]]
    return slots


def _streams(units: Units) -> list[Stream]:
    """Give each warp its panels, in chains that share blocks."""
    rest = units.rest.tolist()
    readers: list[list[int]] = [[] for _ in range(rest[0])]
    for panel, blocks in enumerate(units.blocks):
        for block in blocks:
            readers[block].append(panel)
    costs = [len(own) + rest[p + 1] - rest[p] for p, own in enumerate(units.blocks)]
    found = []
    for pieces in dealt(chains(units.blocks, readers), costs, WARPS):
        stream = Stream([], [], [], [])
        for piece in pieces:
            done: set[int] = set()  # by the panel before
            for k, panel in enumerate(piece):
                after = piece[k + 1] if k + 1 < len(piece) else panel
                own = [block for block in units.blocks[panel] if block not in done]
                done = set() if after == panel else set(own) & set(units.blocks[after])
                shared = sorted(done)
                alone = [block for block in own if block not in done]
                alone += range(rest[panel], rest[panel + 1])
                stream.panels.append(panel)
                stream.lengths.append(len(alone) + (len(shared) << 16))
                stream.steps.append(alone + shared)
                stream.fragments.extend((panel, step) for step in alone)
                for step in shared:
                    stream.fragments.extend(((panel, step), (after, step)))
        found.append(stream)
    return found


def _parts(
    panels: BlockPanels,
    layer: PanelLayer,
    units: Units,
    streams: list[Stream],
    places: NDArray[np.int64],
    room: int,
) -> BlockParts:
    """Return what the streams are but their weights, side by side."""
    rounds = max(len(stream.panels) for stream in streams)
    steps = max((len(own) for stream in streams for own in stream.steps), default=0)
    order = np.array([s.panels + [-1] * (rounds - len(s.panels)) for s in streams])
    lengths = np.array([s.lengths + [0] * (rounds - len(s.panels)) for s in streams], np.uint32)
    taken = np.full((WARPS, rounds, steps, STEP), -1)
    for warp, stream in enumerate(streams):
        for number, own in enumerate(stream.steps):
            taken[warp, number, : len(own)] = units.table[own]
    rows = np.where(taken < 0, np.arange(STEP) % EIGHT, np.append(places, 0)[taken])
    outputs = np.append(panels.outputs, np.full((1, PANEL), -1, np.int32), axis=0)[order]
    return BlockParts(
        kind=KINDS[0],
        room=room,
        rounds=rounds,
        fragments=max(len(stream.fragments) for stream in streams),
        places=places.astype(np.uint16),
        outputs=outputs,
        biases=np.append(layer.bias, np.float32(0))[outputs],
        lengths=lengths,
        units=row_units(rows),
    )


def _laid_out(
    panels: BlockPanels,
    layer: PanelLayer,
    units: Units,
    streams: list[Stream],
    terms: Terms,
    parts: BlockParts,
    shared: int,
) -> DeviceLayer:
    equal = parts.kind.terms == 0
    weights = np.empty(0, np.uint16)
    if not equal:
        weights = _weights(panels, layer.n_in, units, streams, terms.bits, parts)
    none = DevicePanels.none()
    fragments = sum(len(stream.fragments) for stream in streams)
    return DeviceLayer(
        kernel="block",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=parts.kind.samples,
        shared=shared,
        tall=DevicePanels(
            height=PANEL,
            lists=none.lists,
            indices=none.indices,
            weights=weights,
            targets=none.targets,
            slots=fragments * STEP * PANEL,
        ),
        single=none,
        value=layer.value if equal else None,
        scale=terms.scale,
        bias=layer.bias,
        clamp=layer.clamp,
        curve=layer.curve,
        choice=layer.choice.without_times("block"),
        block=parts,
    )


def _weights(
    panels: BlockPanels,
    n_in: int,
    units: Units,
    streams: list[Stream],
    terms: list[NDArray[np.uint16]],
    parts: BlockParts,
) -> NDArray[np.uint16]:
    """Return the terms of all fragments as lanes read them."""
    reader = np.repeat(np.arange(len(panels.outputs)), np.diff(panels.starts))
    keys = reader * n_in + panels.inputs
    stride = parts.fragments
    pieces = WARPS * stride + PIECES_AHEAD
    table = np.zeros((pieces * STEP, len(terms), PANEL), np.uint16)
    every = np.stack(terms, axis=1)
    for warp, stream in enumerate(streams):
        if not stream.fragments:
            continue
        panel, step = np.array(stream.fragments).T
        inputs = units.table[step].ravel()
        at = np.flatnonzero(inputs >= 0)
        edge = np.searchsorted(keys, (panel.repeat(STEP) * n_in + inputs)[at])
        table[warp * stride * STEP + at] = every[edge]
    # Of a fragment [i = 8 ih + 2 q + il][term][o = 8 oh + g]; lane 4 g + q reads [ih][oh][il].
    split = table.reshape(pieces, 2, 4, 2, len(terms), 2, 8)
    return np.ascontiguousarray(split.transpose(0, 4, 6, 2, 1, 5, 3)).ravel()
