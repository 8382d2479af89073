"""Layers as the CUDA kernels read them: which kernel each gets, and its arrays.

A layer that fits runs in the *resident* kernel, which keeps a tile of 4 to 32 samples of all its
neurons in shared memory; a wider one in the *wide* kernel, which gathers rows from L2.

Both work on panels (`plan.panels`): neurons that read the same inputs. The resident kernel reads
slices of 32 tall panels, one a lane, or of 32 single neurons for each 32 sums that a lane can keep,
in sliced ELL (Monakov et al., 2010): the k-th edges of all lie side by side. Panels are sorted by
length, so that little is padded, and their edges are ordered for the banks of shared memory
(`plan.banks`). The wide kernel reads one panel a warp.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.network import Layer
from teraedge.plan import banks
from teraedge.plan.cost import Constants
from teraedge.plan.explain import Choice
from teraedge.plan.panels import PanelLayer, Panels, panel_layer

RESIDENT_HEIGHT, WIDE_HEIGHT = 4, 8
"""Neurons of a tall panel, by kernel."""
RESIDENT_TALL_EDGE, WIDE_TALL_EDGE = 1.5, 1.25
"""What an edge of a tall panel costs, in edges of a single neuron: as many reads of inputs, and
more of weights."""
SAMPLES = (32, 16, 8, 4)
"""Samples a resident tile may have."""
THREADS = 512
WARPS = THREADS // 32
ZERO_ROWS = 8
LANES = 32
COLUMNS = 64
"""Samples of a tile in global memory."""
STATIC_SHARED = 1024
"""Shared memory that kernels declare themselves, and the driver's own, in bytes, at most."""
WIDE_ALIGN = 8
"""Edges the wide kernel loads together."""


LIST = np.dtype([("begin", np.int64), ("length", np.int32), ("", "V4")])
"""`struct List` of kernels/common.cuh."""
TARGET = np.dtype([("output", np.int32), ("bias", np.float32)])
"""`struct Target`."""


@dataclass(frozen=True)
class DevicePanels:
    """Panels of one height, as kernels read them.

    Attributes
    ----------
    height : int
    lists : ndarray of `LIST`, shape (count,)
        Where each slice or panel begins, and its length: in pairs of edges (resident) or in edges
        (wide).
    indices : ndarray of uint16 or uint32
        Resident: two a word, in 16-byte chunks of shared memory, as `_words` orders them. Wide:
        (edges,), neurons.
    weights : ndarray of float32, or empty
        Resident: as `_words` orders them. Wide: (edges, height). Empty where all weights of the
        layer are equal.
    targets : ndarray of `TARGET`
        The neurons, -1 where there is none, and their biases. Resident: (count * lanes, height).
        Wide: (count, height).
    slots : int
        Edges that run, padding included.
    """

    height: int
    lists: NDArray[Any]
    indices: NDArray[Any]
    weights: NDArray[np.float32]
    targets: NDArray[Any]
    slots: int

    @property
    def count(self) -> int:
        """Slices, or panels."""
        return len(self.lists)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What goes to the device."""
        return self.lists, self.indices, self.weights, self.targets


@dataclass(frozen=True)
class DeviceLayer:
    """A layer as the CUDA kernels read it.

    Attributes
    ----------
    n_in, n_out, edges : int
    samples : int
        Samples of a resident tile; 0 for the wide kernel.
    shared : int
        Shared memory a block needs, in bytes.
    tall, single : DevicePanels
    value : float or None
        The weight, where all are equal.
    bias : ndarray of float32, shape (n_out,)
    clamp : (float, float)
    choice : Choice
        Without times: they are not predicted for this device.
    nbytes : int
        Bytes on the device.
    """

    n_in: int
    n_out: int
    edges: int
    samples: int
    shared: int
    tall: DevicePanels
    single: DevicePanels
    value: float | None
    bias: NDArray[np.float32]
    clamp: tuple[float, float]
    choice: Choice
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        arrays = (*self.tall.arrays, *self.single.arrays)
        # Each array and the layer's entry in the table begin where a line does.
        object.__setattr__(self, "nbytes", 256 + sum(array.nbytes + 256 for array in arrays))

    @property
    def resident(self) -> bool:
        """Whether it runs in the resident kernel."""
        return self.samples > 0

    @property
    def padding(self) -> float:
        """Edges that run for each that was stored, less 1."""
        return (self.tall.slots + self.single.slots) / max(self.edges, 1) - 1


def lay_out(layer: Layer, shared_bytes: int) -> DeviceLayer:
    """Lay a layer out for the kernel that it fits.

    Parameters
    ----------
    layer : Layer
    shared_bytes : int
        Shared memory a block may have.

    Raises
    ------
    ModelError
        If a weight or bias is too large for float32.
    """
    room = shared_bytes - STATIC_SHARED
    rows = max(layer.n_in, layer.n_out) + ZERO_ROWS
    if rows * min(SAMPLES, default=room) * 4 <= room:
        panels = panel_layer(layer, _relative(RESIDENT_HEIGHT, RESIDENT_TALL_EDGE))
        for samples in SAMPLES:
            if (shared := _shared(panels, samples)) <= room:
                return _resident(panels, samples, shared)
    return _wide(panel_layer(layer, _relative(WIDE_HEIGHT, WIDE_TALL_EDGE)))


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
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=samples,
        shared=shared,
        tall=_slices(layer.tall, layer, samples),
        single=_slices(layer.single, layer, samples),
        value=layer.value,
        bias=layer.bias,
        clamp=layer.clamp,
        choice=layer.choice.without_times("resident"),
    )


def _slices(panels: Panels, layer: PanelLayer, samples: int) -> DevicePanels:
    """Lay panels out in slices; a slice has `width` panels, some for each lane."""
    chunks = samples // 4
    size = 8 // chunks
    width = LANES * (_totals(samples) // samples if panels.height == 1 else 1)
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
    place = np.empty(len(counts), np.int64)
    filled = np.flatnonzero(lanes >= 0)
    place[lanes[filled]] = filled
    slot = np.repeat(place, counts)
    rows, columns = first[slot // width] + steps, slot % width
    table[rows, columns] = indices
    if size == 1:
        table[table < 0] = layer.n_in  # the first row of zeros
    else:
        banks.fill_gaps(table, size, layer.n_in)
    weights = np.empty(0, np.float32)
    if layer.value is None:
        values = np.zeros((*table.shape, panels.height), np.float32)
        values[rows, columns] = panels.weights.reshape(-1, panels.height)
        weights = _words(values.reshape(-1, 2, width // LANES, LANES, panels.height))
    pairs = (table * chunks).astype(np.uint16).reshape(-1, 2, width // LANES, LANES)
    words = np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).view(np.uint32)
    targets = np.zeros((len(lanes), panels.height), TARGET)
    targets["output"] = -1
    targets[filled] = _targets(panels, layer)[lanes[filled]]
    return DevicePanels(
        height=panels.height,
        lists=_list_table(first // 2, lengths // 2),
        indices=_words(words[:, None]).view(np.uint16),
        weights=weights,
        targets=targets,
        slots=table.size * panels.height,
    )


def _words(values: NDArray[Any]) -> NDArray[Any]:
    """Order what lanes read so that every load of a warp is one piece.

    Parameters
    ----------
    values : ndarray, shape (pairs, edges, panels of a lane, 32, height)

    Returns
    -------
    ndarray
        In the order (pairs, panels, words / v, 32, v) with the words (edge, height) of a lane's
        panel, v of them a load, at most 4.
    """
    pairs, edges, panels, _, height = values.shape
    words = edges * height
    v = min(4, words)
    loads = values.transpose(0, 2, 1, 4, 3).reshape(pairs, panels, words // v, v, LANES)
    return np.ascontiguousarray(loads.transpose(0, 1, 2, 4, 3)).ravel()


def _lanes(
    starts: NDArray[np.int64], indices: NDArray[np.int64], size: int, width: int
) -> NDArray[np.int64]:
    """Return the panel of each lane of all slices, -1 for none."""
    panels = len(starts) - 1
    order = np.argsort(-np.diff(starts), kind="stable")
    if size > 1:
        order = banks.balanced_groups(order, starts, indices, size)
    lanes = np.full(-(-panels // width) * width, -1, np.int64)
    lanes[:panels] = order
    # The k-th group of eight lanes is lanes k, k + 8 / size, ...
    by_group = lanes.reshape(-1, 8 // size, size)
    return np.ascontiguousarray(by_group.transpose(0, 2, 1)).ravel()


def _wide(layer: PanelLayer) -> DeviceLayer:
    index = np.uint16 if layer.n_in <= 2**16 else np.uint32
    return DeviceLayer(
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=0,
        shared=0,
        tall=_lists(layer.tall, layer, index),
        single=_lists(layer.single, layer, index),
        value=layer.value,
        bias=layer.bias,
        clamp=layer.clamp,
        choice=layer.choice.without_times("wide"),
    )


def _lists(panels: Panels, layer: PanelLayer, index: Any) -> DevicePanels:
    """Lay panels out one after the other, each from a multiple of `WIDE_ALIGN` on."""
    counts = np.diff(panels.starts)
    room = -(-counts // WIDE_ALIGN) * WIDE_ALIGN
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
        lists=_list_table(starts, counts),
        indices=indices,
        weights=weights,
        targets=_targets(panels, layer),
        slots=int(counts.sum()) * panels.height,
    )


def _list_table(begin: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[Any]:
    table = np.zeros(len(begin), LIST)
    table["begin"], table["length"] = begin, length
    return table


def _targets(panels: Panels, layer: PanelLayer) -> NDArray[Any]:
    """Return the neurons of each panel with their biases, shape (panels, height)."""
    targets = np.zeros(len(panels.outputs), TARGET)
    targets["output"], targets["bias"] = panels.outputs, layer.bias[panels.outputs]
    return targets.reshape(-1, panels.height)
