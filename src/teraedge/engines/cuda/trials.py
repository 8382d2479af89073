"""Layers made up to be timed, of each CUDA kernel: random patterns that are laid out fast."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import ReLU
from teraedge.network import Layer
from teraedge.plan.block import PANEL, lay_out_block
from teraedge.plan.choice import Choice
from teraedge.plan.dense import dense_shared, dense_terms, lay_out_dense
from teraedge.plan.device import DeviceLayer
from teraedge.plan.gpu import RESIDENT_HEIGHT, lay_out_small, lay_out_wide
from teraedge.plan.panels import PanelLayer, Panels
from teraedge.plan.resident import lay_out_resident, most_samples
from teraedge.plan.staged import lay_out_staged, settled, staging


@dataclass(frozen=True)
class Sizes:
    """How large trials are.

    Attributes
    ----------
    neurons : int
        Of a layer whose tiles are as large as there are; others have multiples of it.
    rounds : int
        Tiles that each multiprocessor takes.
    wide_neurons, wide_samples : int
        Of a wide layer.
    seconds : float
        That a trial is repeated for.
    copied : int
        Bytes of a copy.
    """

    neurons: int = 1024
    rounds: int = 4
    wide_neurons: int = 2**15
    wide_samples: int = 1792
    seconds: float = 0.06
    copied: int = 2**28


SIZES = Sizes()


class Trial(NamedTuple):
    """A chain of layers of one kernel, the first of which does not count, and how many samples."""

    layers: list[DeviceLayer]
    samples: int


def makers(
    sizes: Sizes, room: int, multiprocessors: int, tensor_cores: bool
) -> dict[str, Callable[[], list[Trial]]]:
    """Return what makes the trials of each kernel, after those of the kernels that it needs.

    A device that cannot run a kernel has none.
    """
    given = sizes, room, multiprocessors * sizes.rounds
    found: dict[str, Callable[[], list[Trial]]] = {
        "resident": partial(_resident, *given, 1),
        "tall resident": partial(_resident, *given, RESIDENT_HEIGHT),
        "resident, of four samples,": partial(_four, *given),
        "small": partial(_small, *given),
        "staged": partial(_staged, *given),
        "wide": partial(_wide, sizes),
    }
    if tensor_cores:
        found |= {"block": partial(_block, *given), "dense": partial(_dense, *given)}
    return found


def _resident(sizes: Sizes, room: int, tiles: int, height: int) -> list[Trial]:
    few, many = (_scattered(sizes.neurons, fan_in, height) for fan_in in (4, 32))
    samples = most_samples(many, room)
    if not samples:
        return []
    layers = [lay_out_resident(layer, samples) for layer in (few, many)]
    return [Trial([layers[0], *layers * 3], samples * tiles)]


def _four(sizes: Sizes, room: int, tiles: int) -> list[Trial]:
    # A multiprocessor has room for one block, as with layers that must run so.
    neurons = min(8 * sizes.neurons, int(room * 0.4) // 16 // 32 * 32)
    panels = _scattered(neurons, 12)
    if not most_samples(panels, room):
        return []
    layer = lay_out_resident(panels, 4)
    return [Trial([layer] * 4, 4 * tiles * 2)]


def _small(sizes: Sizes, room: int, tiles: int) -> list[Trial]:
    panels = [_scattered(sizes.neurons // 4, fan_in) for fan_in in (4, 16)]
    found = [lay_out_small(layer, layer, room) for layer in panels]
    layers = [layer for layer in found if layer is not None]
    return [Trial([layers[0], *layers * 6], 64 * tiles)] if len(layers) == 2 else []


def _staged(sizes: Sizes, room: int, tiles: int) -> list[Trial]:
    layers = []
    for fan_in in (8, 32):
        panels = _scattered(8 * sizes.neurons, fan_in)
        plan = staging(panels, room, 1)
        if plan is None:
            return []
        layers.append(lay_out_staged(panels, settled(plan)))
    return [Trial([layers[0], *layers * 2], layers[0].samples * tiles)]


def _wide(sizes: Sizes) -> list[Trial]:
    n = sizes.wide_neurons
    layers = [lay_out_wide(_scattered(n, 32)), lay_out_wide(_scattered(n, 32, PANEL))]
    return [Trial([layers[0], *(layer for layer in layers for _ in range(3))], sizes.wide_samples)]


def _block(sizes: Sizes, room: int, tiles: int) -> list[Trial]:
    n = sizes.neurons
    rings = [(n, (0, 1, 3)), (2 * n, (1,)), (4 * n, (0,))]
    trials = []
    for neurons, kinds in rings:
        ring = [_ring(neurons, terms) for terms in kinds]
        found = [layer for panels in ring if (layer := lay_out_block(panels, room)) is not None]
        if found:
            layers = [found[0], *(layer for layer in found for _ in range(4))]
            trials.append(Trial(layers, 16 * tiles))
    return trials


def _dense(sizes: Sizes, room: int, tiles: int) -> list[Trial]:
    n = sizes.neurons
    layers = [
        lay_out_dense(layer, dense_terms(layer))
        for terms in (1, 3)
        if dense_shared(terms) <= room
        for layer in [Layer(_weights(n * n, terms).reshape(n, n), 0.0, ReLU())]
    ]
    return [Trial([layers[0], *layers * 2], 64 * tiles)] if layers else []


def _scattered(neurons: int, fan_in: int, height: int = 1) -> PanelLayer:
    """Return a layer of panels that each read a random one of every so many inputs."""
    random = np.random.default_rng(fan_in)
    count = neurons // height
    within = random.random((count, fan_in)) + np.arange(fan_in)
    return _layer((within * (neurons / fan_in)).astype(np.int64), height)


def _ring(neurons: int, terms: int = 3) -> PanelLayer:
    """Return a layer of panels of 16 that share half of their inputs with each of two others."""
    count = neurons // PANEL
    begin = np.arange(count)[:, None] * PANEL + np.arange(2 * PANEL)
    return _layer(np.sort(begin % neurons, axis=1), PANEL, terms)


def _layer(inputs: NDArray[np.int64], height: int, terms: int = 3) -> PanelLayer:
    """Return a layer of panels.

    Parameters
    ----------
    inputs : ndarray of int64, shape (panels, inputs of each)
    height : int
    terms : int
        Of bf16 that a weight is the sum of; 0 if all are equal.
    """
    neurons = len(inputs) * height
    starts = np.arange(len(inputs) + 1) * inputs.shape[1]
    indices = inputs.ravel().astype(np.uint16 if neurons <= 2**16 else np.uint32)
    weights = _weights(len(indices) * height, terms) if terms else np.empty(0, np.float32)
    outputs = np.arange(neurons, dtype=np.int32)
    full = Panels(height, starts, indices, weights, outputs)
    none = Panels(RESIDENT_HEIGHT, starts[:1], indices[:0], weights[:0], outputs[:0])
    return PanelLayer(
        n_in=neurons,
        n_out=neurons,
        edges=len(indices) * height,
        tall=full if height > 1 else none,
        single=replace(none, height=1) if height > 1 else full,
        value=None if terms else 0.0625,
        bias=np.zeros(neurons, np.float32),
        clamp=(0.0, 32.0),
        choice=Choice("", "", None, None, ""),
    )


def _weights(count: int, terms: int) -> NDArray[np.float32]:
    """Return random weights that are the sum of so many bf16 terms: one, or three."""
    drawn = np.random.default_rng(count).standard_normal(count, np.float32) / 8
    bits = drawn.view(np.uint32) & (0xFFFF0000 if terms == 1 else 0xFFFFFFFF)
    return bits.astype(np.uint32).view(np.float32)
