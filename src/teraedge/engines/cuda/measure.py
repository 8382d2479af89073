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
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from teraedge.bench.gpu import copy_bandwidth, host_bandwidth
from teraedge.engines.cuda import driver
from teraedge.engines.cuda.calibrate import typical
from teraedge.engines.cuda.engine import CudaEngine
from teraedge.engines.cuda.trials import SIZES, Sizes, Trial, makers
from teraedge.errors import TeraedgeError
from teraedge.features import PackedFeatures
from teraedge.host import usable_cores
from teraedge.options import Options
from teraedge.plan.device import DeviceLayer
from teraedge.plan.kernel_sizes import STATIC_SHARED
from teraedge.plan.plan import LaidOutPlan
from teraedge.plan.rates import Rates

log = logging.getLogger(__name__)

STEPS = 24
"""Rates are rounded to so many steps a factor of ten, so that choices do not flap."""
HELD = 0.02
"""Weight of the typical rates beside a layer's relative error."""


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
        rates, complete = _copied(device, typical(device), sizes.copied)
        making = makers(sizes, room, device.multiprocessors, device.tensor_cores)
    finally:
        device.close()
    with ThreadPoolExecutor(min(len(making), usable_cores()), "teraedge-measure") as pool:
        # Kernels are compiled, and layers laid out, side by side; runs follow each other.
        begun = {kernel: pool.submit(_prepared, make, name) for kernel, make in making.items()}
        for kernel, future in begun.items():
            try:
                rates = fitted(_run(future.result(), sizes.seconds), rates)
            except (TeraedgeError, RuntimeError, ValueError) as error:  # the last two: no fit
                log.info("the %s kernel could not be measured: %s", kernel, error)
                complete = False
    return rates, complete


def _copied(device: driver.Device, rates: Rates, nbytes: int) -> tuple[Rates, bool]:
    """Return rates with those of copies, and whether there was memory for these."""
    try:
        copy = copy_bandwidth(device, nbytes, 20)
        host = host_bandwidth(device, nbytes // 4, 3)
    except TeraedgeError as error:
        log.info("copies could not be measured: %s", error)
        return rates, False
    return replace(rates, hbm_bytes=_rounded(copy), host_bytes=_rounded(host)), True


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


def fitted(measured: Sequence[tuple[Trial, list[float]]], rates: Rates) -> Rates:
    """Return rates with what the trials of a kernel tell.

    Parameters
    ----------
    measured : sequence of (Trial, list of float)
        With the seconds a sample of each layer.
    rates : Rates
        What is known by now.
    """
    equations = []
    for trial, times in measured:
        alike: dict[int, list[float]] = {}
        for layer, taken in list(zip(trial.layers, times, strict=True))[1:]:
            alike.setdefault(id(layer), []).append(taken)
        layers = {id(layer): layer for layer in trial.layers}
        equations += [
            _equation(layers[each], min(taken), rates)
            for each, taken in alike.items()
            if min(taken) > 0  # no clock too coarse
        ]
    log.debug("measured %s", equations)
    return solved(equations, rates) if equations else rates


UNKNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "resident": (("single_reads", "border"), ("list_bytes",)),
    "tall": (("tall_reads",), ("list_bytes",)),
    "lists": (("list_bytes",), ("single_reads",)),
    "block": (("block_tile", "block_sample", "block_product"), ("wide_bytes",)),
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


def _run(
    prepared: list[tuple[CudaEngine, Trial]], seconds: float
) -> list[tuple[Trial, list[float]]]:
    """Return trials and their times."""
    measured = []
    for engine, trial in prepared:
        with engine:
            measured.append((trial, _times(engine, trial, seconds)))
    return measured


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
