"""What the CUDA kernels read of a layer, whichever kernel it is."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from teraedge.options import ITEMSIZE, Precision
from teraedge.plan import banks
from teraedge.plan.block_parts import BlockParts
from teraedge.plan.choice import Choice
from teraedge.plan.kernel_sizes import LANES
from teraedge.plan.panels import PanelLayer, Panels

Kernel = Literal["small", "resident", "block", "dense", "staged", "wide", "chained"]
LIST = np.dtype([("begin", np.int64), ("length", np.int32), ("shared", np.int32)])
"""`struct List` of kernels/common.cuh."""
TARGET = np.dtype([("output", np.int32), ("bias", np.float32)])
"""`struct Target`."""
_EMPTY = np.empty(0, np.int64)


@dataclass(frozen=True)
class DevicePanels:
    """Panels of one height, as kernels read them.

    Attributes
    ----------
    height : int
    lists : ndarray of `LIST`, shape (count,)
        Where each slice or panel begins, and its length: in pairs of edges, or in edges (wide).
        Staged: one for each part and slice, (parts * slices,).
    indices : ndarray of uint16 or uint32
        Two a word, in 16-byte chunks of shared memory, as `in_words` orders them. Wide: (edges,),
        neurons. Block: none.
    weights : ndarray of float32, or empty
        As `in_words` orders them. Wide: (edges, height). Block: bits of bf16, as uint16,
        [fragment][term][lane][8]; dense: panel by panel.
        Empty where all weights of the layer are equal.
    targets : ndarray of `TARGET`
        The neurons, -1 where there is none, and their biases: (slices * lanes, height). Wide:
        (count, height).
    slots : int
        Edges that run, padding included.
    """

    height: int
    lists: NDArray[Any]
    indices: NDArray[Any]
    weights: NDArray[Any]
    targets: NDArray[Any]
    slots: int

    @classmethod
    def none(cls) -> "DevicePanels":
        """Return no panels."""
        return cls(
            1, list_table(_EMPTY, _EMPTY), _EMPTY, np.empty(0, np.float32), _EMPTY.view(TARGET), 0
        )

    @property
    def count(self) -> int:
        """Lists: of slices, or of panels."""
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
    kernel : {"small", "resident", "block", "dense", "staged", "wide", "chained"}
    n_in, n_out, edges : int
    samples : int
        Samples that a block takes at a time; 0 for the wide kernel.
    shared : int
        Shared memory a block needs, in bytes; 0 for the wide kernel, which chooses; what there is
        for all layers of a segment (small).
    tall, single : DevicePanels
    value : float or None
        The weight, where all are equal.
    bias : ndarray of float32, shape (n_out,)
    clamp, curve : (float, float) and str
        Of the activation, as of `PanelLayer`.
    choice : Choice
        Without times: they are not predicted for this device.
    parts, part_rows, buffers : int
        Parts of the inputs, rows of a part, and how many parts there is room for at a time
        (staged).
    block : BlockParts or None
    places : ndarray of int32, shape (n_in,), or None
        Where the chained kernel would best have the row of each input.
    terms : int
        That a weight is the sum of (dense).
    scale : float
        What sums of weights that are not all equal are multiplied by (block, dense).
    instead : PanelLayer or None
        The panels that the resident kernel would take (small; block, where it saves little).
    bit_samples : int
        Samples of a tile in the kernel for packed features of a wide first layer; 0 where it has
        none.
    lone : PanelLayer or None
        Its neurons one by one, where it may also run over a few samples (`plan.few`).
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.
    copies : bool
        Whether each output is one of its inputs, or zero, and every input is among the outputs.
    nbytes : int
        Bytes on the device.
    """

    kernel: Kernel
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
    curve: str = ""
    parts: int = 0
    part_rows: int = 0
    buffers: int = 0
    block: BlockParts | None = None
    places: NDArray[np.int32] | None = None
    terms: int = 0
    scale: float = 1.0
    instead: PanelLayer | None = None
    bit_samples: int = 0
    lone: PanelLayer | None = None
    precision: Precision = "fp32"
    copies: bool = False
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Each array and the layer's entry in the table begin where a line does.
        object.__setattr__(self, "nbytes", 256 + sum(a.nbytes + 256 for a in self.arrays))

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What goes to the device."""
        return self.arrays_between(None, None)

    def arrays_between(
        self, before: "DeviceLayer | None", after: "DeviceLayer | None"
    ) -> tuple[NDArray[Any], ...]:
        """Return what goes to the device.

        Parameters
        ----------
        before, after : DeviceLayer or None
            The layers before and after it, if nobody else sees what passes between: those of a
            segment of the block kernel, or two that run in the chained kernel. Before it also the
            last one of a segment that gives samples in one piece.
        """
        tall = self.tall
        if before is not None and self.places is not None:
            tall = replace(tall, indices=self.places[tall.indices].astype(tall.indices.dtype))
        if after is not None and after.places is not None:
            targets = tall.targets.copy()
            targets["output"] = after.places[targets["output"]]
            tall = replace(tall, targets=targets)
        arrays = *tall.arrays, *self.single.arrays
        if self.block is None:
            return arrays
        records = self.block.records(None if after is None else after.block)
        inputs = self.block.inputs(None if before is None else before.block)
        return *arrays, inputs, self.block.ends, records

    @property
    def itemsize(self) -> int:
        """Bytes of an activation in device memory."""
        return ITEMSIZE[self.precision]

    @property
    def resident(self) -> bool:
        """Whether it runs in a kernel that takes a tile through several layers."""
        return self.kernel in ("small", "resident", "block")

    @property
    def padding(self) -> float:
        """Edges that run for each that was stored, less 1."""
        return (self.tall.slots + self.single.slots) / max(self.edges, 1) - 1


def in_words(values: NDArray[Any]) -> NDArray[Any]:
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


def list_table(
    begin: NDArray[np.int64], length: NDArray[np.int64], shared: NDArray[np.int64] | int = 0
) -> NDArray[Any]:
    """Return a table of `LIST`."""
    table = np.zeros(len(begin), LIST)
    table["begin"], table["length"], table["shared"] = begin, length, shared
    return table


def targets_of(panels: Panels, layer: PanelLayer) -> NDArray[Any]:
    """Return the neurons of each panel with their biases, shape (panels, height)."""
    targets = np.zeros(len(panels.outputs), TARGET)
    targets["output"], targets["bias"] = panels.outputs, layer.bias[panels.outputs]
    return targets.reshape(-1, panels.height)


def sliced(
    panels: Panels,
    layer: PanelLayer,
    samples: int,
    lanes: NDArray[np.int64],
    place: tuple[NDArray[np.int64], NDArray[np.int64]],
    table: NDArray[np.int64],
    zero_row: int,
) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[Any]]:
    """Return the indices, weights and targets of panels in slices.

    Parameters
    ----------
    panels : Panels
    layer : PanelLayer
    samples : int
        Floats of a row in shared memory.
    lanes : ndarray of int64, shape (slices * width,)
        The panel of each lane, -1 for none.
    place : (rows, columns)
        Where each edge goes in `table`.
    table : ndarray of int64, shape (steps of all lists, width)
        Rows of inputs, -1 where there is none; gaps are filled.
    zero_row : int
        The first of the rows of zeros.
    """
    chunks = samples // 4
    size, width = 8 // chunks, table.shape[1]
    if size == 1:
        table[table < 0] = zero_row
    else:
        banks.fill_gaps(table, size, zero_row)
    weights = np.empty(0, np.float32)
    if layer.value is None:
        values = np.zeros((*table.shape, panels.height), np.float32)
        values[place] = panels.weights.reshape(-1, panels.height)
        weights = in_words(values.reshape(-1, 2, width // LANES, LANES, panels.height))
    pairs = (table * chunks).astype(np.uint16).reshape(-1, 2, width // LANES, LANES)
    words = np.ascontiguousarray(pairs.transpose(0, 2, 3, 1)).view(np.uint32)
    targets = np.zeros((len(lanes), panels.height), TARGET)
    targets["output"] = -1
    filled = np.flatnonzero(lanes >= 0)
    targets[filled] = targets_of(panels, layer)[lanes[filled]]
    return in_words(words[:, None]).view(np.uint16), weights, targets


def in_group_order(panels: NDArray[np.int64], size: int, width: int) -> NDArray[np.int64]:
    """Give panels their lanes, group after group, in whole slices; -1 stands for none."""
    lanes = np.full(-(-len(panels) // width) * width, -1, np.int64)
    lanes[: len(panels)] = panels
    # The k-th group of eight lanes is lanes k, k + 8 / size, ...
    by_group = lanes.reshape(-1, 8 // size, size)
    return np.ascontiguousarray(by_group.transpose(0, 2, 1)).ravel()


def lanes_of(lanes: NDArray[np.int64], panels: int) -> NDArray[np.int64]:
    """Return the place of each panel among the lanes."""
    place = np.empty(panels, np.int64)
    filled = np.flatnonzero(lanes >= 0)
    place[lanes[filled]] = filled
    return place
