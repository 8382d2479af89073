"""Measure what the CUDA kernels reach: short chains of layers made up for each, all samples live.

Every trial is a chain of one kernel's layers, laid out without a choice, that the engine runs some
times; what counts is the least time of layers alike, as among many others. A layer's time is linear
in what is unknown (`plan.rates`), so that a few layers, unlike enough, give it by least squares,
relative to the times and held weakly to the typical rates, scaled: what two constants share is
theirs to share. What a GPU cannot run keeps those.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import ReLU
from teraedge.bench.gpu import copy_bandwidth, host_bandwidth
from teraedge.engines.cuda import driver
from teraedge.engines.cuda.calibrate import typical
from teraedge.engines.cuda.engine import CudaEngine
from teraedge.errors import TeraedgeError
from teraedge.features import PackedFeatures
from teraedge.host import usable_cores
from teraedge.network import Layer
from teraedge.options import Options
from teraedge.plan.block import PANEL, lay_out_block
from teraedge.plan.dense import dense_shared, lay_out_dense
from teraedge.plan.device import DeviceLayer
from teraedge.plan.explain import Choice
from teraedge.plan.gpu import RESIDENT_HEIGHT, lay_out_small, lay_out_wide
from teraedge.plan.kernel_sizes import STATIC_SHARED
from teraedge.plan.panels import PanelLayer, Panels
from teraedge.plan.plan import LaidOutPlan
from teraedge.plan.rates import Rates
from teraedge.plan.resident import lay_out_resident, most_samples
from teraedge.plan.staged import lay_out_staged, settled, staging

log = logging.getLogger(__name__)

STEPS = 24
"""Rates are rounded to so many steps a factor of ten, so that choices do not flap."""
HELD = 0.02
"""Weight of the typical rates beside a layer's relative error."""


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


class Equation(NamedTuple):
    """The seconds of a layer: a sum of unknown rates, each times what there is of it."""

    parts: dict[str, float]
    seconds: float


def measure(name: str, sizes: Sizes = SIZES) -> tuple[Rates, bool]:
    """Measure the rates of a GPU.

    Parameters
    ----------
    name : str
        As for `open_device`.
    sizes : Sizes, optional

    Returns
    -------
    rates : Rates
    complete : bool
        Whether all was measured that the GPU can run; not if another program has its memory, say.
    """
    device = driver.open_device(name)
    try:
        room = device.shared_bytes - STATIC_SHARED
        rates = typical(device)
        copy = copy_bandwidth(device, sizes.copied, 20)
        host = host_bandwidth(device, sizes.copied // 4, 3)
        rates = replace(rates, hbm_bytes=_rounded(copy), host_bytes=_rounded(host))
        makers = _makers(sizes, room, device.multiprocessors, device.tensor_cores)
    finally:
        device.close()
    complete = True
    with ThreadPoolExecutor(min(len(makers), usable_cores()), "teraedge-measure") as pool:
        # Kernels are compiled, and layers laid out, side by side; runs follow each other.
        begun = {kernel: pool.submit(_prepared, make, name) for kernel, make in makers.items()}
        for kernel, future in begun.items():
            try:
                rates = _after(future.result(), rates, sizes.seconds)
            except TeraedgeError as error:
                log.info("the %s kernel could not be measured: %s", kernel, error)
                complete = False
    return rates, complete


def solved(equations: Sequence[Equation], rates: Rates) -> Rates:
    """Return rates with those that equations are of, as they fit them best.

    Parameters
    ----------
    equations : sequence of Equation
        What is a rate a second has its inverse there.
    rates : Rates
        What to hold to where equations tell little.
    """
    from scipy.optimize import nnls

    names = list(dict.fromkeys(name for equation in equations for name in equation.parts))
    before = np.array([_inverse(name, getattr(rates, name)) for name in names])
    table = np.array([[e.parts.get(name, 0.0) / e.seconds for name in names] for e in equations])
    table *= before
    # All as much faster or slower as they are together, before each is on its own.
    common = float(np.median(1 / table.sum(axis=1)))
    rows = np.vstack([table, HELD * np.eye(len(names))])
    right = np.concatenate([np.ones(len(equations)), np.full(len(names), HELD * common)])
    factors = np.maximum(nnls(rows, right)[0], 1e-3)
    found: dict[str, Any] = {
        name: _rounded(_inverse(name, value))
        for name, value in zip(names, before * factors, strict=True)
    }
    return replace(rates, **found)


def _after(prepared: list[tuple[CudaEngine, Trial]], rates: Rates, seconds: float) -> Rates:
    """Return rates with what the trials of a kernel tell."""
    equations = []
    for engine, trial in prepared:
        with engine:
            times = _times(engine, trial, seconds)
        alike: dict[int, list[float]] = {}  # the first layer may read bits
        for layer, taken in list(zip(trial.layers, times, strict=True))[1:]:
            alike.setdefault(id(layer), []).append(taken)
        layers = {id(layer): layer for layer in trial.layers}
        equations += [_equation(layers[each], min(taken), rates) for each, taken in alike.items()]
    log.debug("measured %s", equations)
    told = [equation for equation in equations if equation.seconds > 0]  # by no clock too coarse
    return solved(told, rates) if told else rates


UNKNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "resident": (("single_reads", "border"), ("list_bytes",)),
    "tall": (("tall_reads",), ("list_bytes",)),
    "lists": (("list_bytes",), ("single_reads",)),
    "block": (("block_tile", "block_sample", "block_product"), ()),
    "dense": (("dense_edge", "dense_product"), ()),
    "staged": (("staged_reads", "staged_bytes"), ("list_bytes",)),
    "wide": (("wide_bytes",), ()),
    "wide tall": (("tall_bytes",), ()),
    "small": (("small_edge", "small_neuron"), ()),
}
"""The rates that a layer's time is to tell, by what it is of, and those that hide behind them."""
_FAR = 1e12


def _equation(layer: DeviceLayer, seconds: float, rates: Rates) -> Equation:
    """Return what a layer's time says of the rates that it depends on.

    How much there is of each is read off the prediction, which is linear in what is unknown where
    what hides behind it takes no time. What is known is taken off the time.
    """
    names, hidden = UNKNOWN[_kind(layer)]
    base = _with(rates, dict.fromkeys((*names, *hidden), 1 / _FAR))
    known = base.seconds(layer)
    parts = {
        name: (_with(base, {name: _FAR**2}).seconds(layer) - known)
        / (_FAR * _inverse(name, getattr(rates, name)))
        for name in names
    }
    return Equation(parts, max(seconds - known, seconds / 5))


def _with(rates: Rates, longer: dict[str, float]) -> Rates:
    """Return rates of which some take so much longer."""
    values: dict[str, Any] = {
        name: _inverse(name, _inverse(name, getattr(rates, name)) * factor)
        for name, factor in longer.items()
    }
    return replace(rates, **values)


def _inverse(name: str, value: float) -> float:
    """Return the seconds of a rate a second, and the other way round; seconds as they are."""
    return 1 / value if name.endswith(("_reads", "_bytes")) else value


def _rounded(value: float) -> float:
    """Round to `STEPS` steps a factor of ten."""
    return float(f"{10 ** (round(math.log10(value) * STEPS) / STEPS):.3g}")


def _kind(layer: DeviceLayer) -> str:
    """Return the name in `UNKNOWN` that a layer of a trial has."""
    if layer.kernel == "resident":
        return "tall" if layer.tall.slots else "lists" if layer.samples == 4 else "resident"
    return "wide tall" if layer.kernel == "wide" and layer.tall.slots else layer.kernel


def _prepared(make: Callable[[], list[Trial]], name: str) -> list[tuple[CudaEngine, Trial]]:
    """Return trials ready to run."""
    options = Options(prune=False, merge=False, passes=False)
    return [(CudaEngine(LaidOutPlan(trial.layers), options, name), trial) for trial in make()]


def _times(engine: CudaEngine, trial: Trial, seconds: float) -> list[float]:
    """Return the least seconds a sample of each layer."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 256, (trial.samples, -(-engine.n_in // 8)), np.uint8)
    features = PackedFeatures(bits, engine.n_in)
    engine.run(features)
    times: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        times.append([layer.seconds for layer in engine.run(features).trace])
    least: list[float] = (np.min(times, axis=0) / trial.samples).tolist()
    return least


def _makers(
    sizes: Sizes, room: int, multiprocessors: int, tensor_cores: bool
) -> dict[str, Callable[[], list[Trial]]]:
    """Return what makes the trials of each kernel, after those of the kernels that it needs.

    A device that cannot run a kernel has none.
    """
    given = sizes, room, multiprocessors * sizes.rounds
    makers: dict[str, Callable[[], list[Trial]]] = {
        "resident": partial(_resident, *given, 1),
        "tall resident": partial(_resident, *given, RESIDENT_HEIGHT),
        "resident, of four samples,": partial(_four, *given),
        "small": partial(_small, *given),
        "staged": partial(_staged, *given),
        "wide": partial(_wide, sizes),
    }
    if tensor_cores:
        makers |= {"block": partial(_block, *given), "dense": partial(_dense, *given)}
    return makers


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
        lay_out_dense(Layer(_weights(n * n, terms).reshape(n, n), 0.0, ReLU()), terms)
        for terms in (1, 3)
        if dense_shared(terms) <= room
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
