"""The plan of a network: its layers laid out, and which of them fit in memory at once."""

import logging
import os
from collections.abc import Iterator

import numpy as np

from teraedge.errors import ModelError
from teraedge.network import Layer, Network
from teraedge.options import Options, parse_bytes
from teraedge.plan.panels import PanelLayer, panel_layer

log = logging.getLogger(__name__)


class Plan:
    """How an engine runs a network.

    The layers are read once, one at a time. Those laid out within `Options.memory` stay; the
    others are read and laid out again in every run, as much of them at a time as fits.

    Parameters
    ----------
    network : Network
    options : Options
    height : int
        Neurons of a tall panel, as the engine's kernels want them.

    Attributes
    ----------
    n_in, n_out, edges, width : int
        Of the whole network; `width` is the largest number of neurons of any layer.
    resident : list of PanelLayer
        The first layers, as many as stay in memory.
    layer_edges : list of int
        Stored weights of each layer.
    droppable : ndarray of bool, shape (layers + 1,)
        Whether a row that is all zero before layer l (after the last, for l = layers) stays zero
        through every layer from there on, so that its sample is dead: f(b) = 0 in all of them.
    """

    def __init__(self, network: Network, options: Options, height: int) -> None:
        self._network, self._height = network, height
        self._budget = _memory_budget(options)
        self.resident: list[PanelLayer] = []
        self.layer_edges: list[int] = []
        quiet, self.width, self.n_out, total = [], network.n_in, 0, 0
        for index, layer in enumerate(network):
            laid_out = self._lay_out(layer, index)
            total += laid_out.nbytes
            if total <= self._budget:
                self.resident.append(laid_out)
            self.layer_edges.append(layer.edges)
            quiet.append(_keeps_zero(laid_out))
            self.width = max(self.width, layer.n_out)
            self.n_out = layer.n_out
        if len(self.resident) < len(self.layer_edges):
            # The rest passes through memory in every run: leave it room to come several at a time.
            while _nbytes(self.resident) > self._budget * 3 // 4:
                self.resident.pop()
        self.n_in = network.n_in
        self.edges = sum(self.layer_edges)
        suffix = np.logical_and.accumulate(np.array([*quiet, True])[::-1])[::-1]
        self.droppable = suffix if options.prune else np.zeros_like(suffix)
        log.info(
            "planned %d layers, %d resident in %.1f MB",
            len(self.layer_edges),
            len(self.resident),
            _nbytes(self.resident) / 1e6,
        )

    def streamed(self) -> Iterator[tuple[int, list[PanelLayer]]]:
        """Yield (first layer, layers) for the layers after the resident, as many as have room."""
        first = len(self.resident)
        segment: list[PanelLayer] = []
        room = self._budget - _nbytes(self.resident)
        for index in range(first, len(self.layer_edges)):
            laid_out = self._lay_out(self._network[index], index)
            if segment and _nbytes(segment) + laid_out.nbytes > room:
                yield first, segment
                first, segment = index, []
            segment.append(laid_out)
        if segment:
            yield first, segment

    def _lay_out(self, layer: Layer, index: int) -> PanelLayer:
        try:
            return panel_layer(layer, self._height)
        except ModelError as error:
            raise ModelError(f"layer {index}: {error}") from None


def _nbytes(layers: list[PanelLayer]) -> int:
    return sum(layer.nbytes for layer in layers)


def _keeps_zero(layer: PanelLayer) -> bool:
    """Tell whether a zero row stays zero: f(b) = 0 for every neuron, in the engine's arithmetic."""
    lower, upper = layer.clamp
    return not np.clip(layer.bias, lower, upper).any()


def _memory_budget(options: Options) -> int:
    if options.memory is not None:
        return parse_bytes(options.memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
