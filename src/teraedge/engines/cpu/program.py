"""A segment of layers as the kernels read it: one table of sizes, flags and addresses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.engines.cpu.first import NO_CHUNKS, first_chunks
from teraedge.engines.cpu.state import LAYER
from teraedge.plan.panels import PanelLayer, Panels


class Program:
    """Layers that are in memory together.

    Parameters
    ----------
    first : int
        Number of the first of them in the network.
    layers : sequence of PanelLayer
        Kept alive here, because the table holds their addresses.
    droppable : sequence of bool
        Whether a row that is zero after each layer stays zero for good.

    Attributes
    ----------
    table : ndarray of state.LAYER, shape (layers,)
    chunks : Chunks
        Of the first layer, for packed features.
    """

    def __init__(self, first: int, layers: Sequence[PanelLayer], droppable: Sequence[bool]) -> None:
        self.first, self.layers = first, layers
        self.table = np.zeros(len(layers), LAYER)
        self.chunks = first_chunks(layers[0]) if first == 0 else NO_CHUNKS
        for row, layer, drop in zip(self.table, layers, droppable, strict=True):
            _fill(row, layer, drop)

    @property
    def span(self) -> slice:
        """The numbers of these layers in the network."""
        return slice(self.first, self.first + len(self.layers))


def _fill(row: Any, layer: PanelLayer, droppable: bool) -> None:
    row["n_in"], row["n_out"], row["edges"] = layer.n_in, layer.n_out, layer.edges
    row["droppable"] = droppable
    row["equal"] = layer.value is not None
    row["value"] = layer.value or 0.0
    row["index_bytes"] = layer.tall.indices.itemsize
    row["bias"] = layer.bias.ctypes.data
    row["lower"], row["upper"] = layer.clamp
    row["curve"] = CURVES.index(layer.curve)
    row["tall"], row["single"] = _addresses(layer.tall), _addresses(layer.single)


def _addresses(panels: Panels) -> tuple[int, int, int, int, int]:
    arrays: list[NDArray[Any]] = [panels.starts, panels.indices, panels.weights, panels.outputs]
    return len(panels.starts) - 1, *(array.ctypes.data for array in arrays)  # type: ignore[return-value]
