"""Measure what the steps of a layer cost on this machine, once, and keep the figures.

The first compile on a machine takes about two seconds for it. The figures lie in the cache folder
under a key of the CPU model, its vector width and our sources, and decide layouts, so they are
rounded: what a shared machine adds in noise seldom changes a choice. The environment variable
``TERAEDGE_CALIBRATION`` names a file to read instead, or is ``typical`` for figures of a common
machine, so that layouts do not depend on the machine at all.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from teraedge import __version__
from teraedge.cache import atomic_write, cache_dir
from teraedge.engines.cpu import feeding
from teraedge.engines.cpu.peaks import load_peak, multiply_add_peak
from teraedge.engines.cpu.simd import HEIGHT, LANES, TILE
from teraedge.errors import DataError, OptionsError
from teraedge.host import cache_bytes, cpu_model
from teraedge.jit import SOURCE_KEY
from teraedge.options import Options
from teraedge.plan.choice import Choice
from teraedge.plan.cost import VARIABLE, Constants, Levels, Limit
from teraedge.plan.panels import PanelLayer, Panels
from teraedge.plan.plan import LaidOutPlan

log = logging.getLogger(__name__)

STEPS = 24
"""Figures are rounded to so many steps a factor of ten."""

_FED = 8  # features
_TILES = 4  # a run
_SECONDS = 1.2  # of runs; the fastest counts, layer by layer
_TRIALS = 50, 500_000  # of a millisecond: some run while nobody else does
TYPICAL = Constants(
    tile=TILE,
    height=HEIGHT,
    caches=(32 * 2**10, 2**20),
    tall_edge=(0.05, 0.054, 0.15),
    single_edge=(0.02, 0.03, 0.1),
    tall_run=0.05,
    single_run=0.035,
    tall_neuron=0.12,
    single_neuron=0.3,
    load=0.5,
    store=0.5,
    byte=0.06,
    multiply_add=0.012,
    read=(0.012, 0.025, 0.1),
)
"""Of one AVX-512 core, rounded."""


def constants() -> Constants:
    """Return the speeds of this machine, measured where that was not done before.

    Raises
    ------
    OptionsError
        If the environment variable `VARIABLE` names a file that cannot be used.
    """
    return _constants(os.environ.get(VARIABLE, ""))


@cache
def _constants(chosen: str) -> Constants:
    if chosen == "typical":
        return TYPICAL
    if chosen:
        return _read_chosen(Path(chosen).expanduser())
    path = _cache_path()
    found = None if path is None else _read_cached(path)
    if found is not None:
        return found
    start = time.perf_counter()
    found = measure()
    log.info("measured this machine's speeds in %.2f s", time.perf_counter() - start)
    return found if path is None else _keep(found, path)


def _cache_path() -> Path | None:
    """Return the file of this machine's figures, None where there is no folder for it."""
    about = [cpu_model(), LANES, TILE, HEIGHT, cache_bytes(), __version__, SOURCE_KEY]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    try:
        return cache_dir() / "calibration" / f"cpu-{key}.json"
    except DataError:
        return None


def _read(path: Path) -> Constants:
    found = Constants.from_json(json.loads(path.read_bytes()))
    if (found.tile, found.height) != (TILE, HEIGHT):
        raise ValueError(f"is for tiles of {found.tile} samples and panels of {found.height}")
    return found


def _read_chosen(path: Path) -> Constants:
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionsError(
            f"{VARIABLE} is {str(path)!r}, which cannot be used: {reason}; give a file of "
            f"this machine's kind, or 'typical', or unset it"
        ) from None


def _read_cached(path: Path) -> Constants | None:
    """Return what a file holds, None where there is none or it makes no sense."""
    try:
        return _read(path)
    except (OSError, ValueError, RecursionError):
        return None


def _keep(found: Constants, path: Path) -> Constants:
    """Write the figures, unless another process was faster: all must use the same."""
    other = _read_cached(path)
    if other is not None:
        return other
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
    except OSError as error:  # a folder that cannot be written is no reason to fail
        log.info("the measured speeds cannot be kept: %s", error)
    return found


def measure() -> Constants:
    """Measure the speeds of one core of this machine."""
    caches = cache_bytes()
    groups = [_panel_trials(HEIGHT, caches), _panel_trials(1, caches)]
    groups += [_run_trials(HEIGHT, 1, caches), _run_trials(1, 2, caches)]
    times = _layer_ns([layer for group in groups for layer in group])
    tall, tall_neuron = _panel_costs(groups[0], times[:8])
    single, single_neuron = _panel_costs(groups[1], times[8:16])
    tall_run = _input_cost(groups[2], times[16:18])
    single_run = _input_cost(groups[3], times[18:])
    load, store = _feature_costs()
    peaks = [1e9 / load_peak(1, size, *_TRIALS) for size in _working_sets(caches)]
    # A disturbed measurement of a peak must not be slower than what uses it.
    reads = np.minimum(peaks, single).tolist()
    multiply_add = min(1e9 / multiply_add_peak(1, *_TRIALS), tall[0] / HEIGHT)
    return Constants(
        tile=TILE,
        height=HEIGHT,
        caches=caches,
        tall_edge=_rising(tall),
        single_edge=_rising(single),
        tall_run=_rounded(tall_run),
        single_run=_rounded(single_run),
        tall_neuron=_rounded(tall_neuron),
        single_neuron=_rounded(single_neuron),
        load=_rounded(load),
        store=_rounded(store),
        byte=_rounded(reads[2] / 4),
        multiply_add=_rounded(multiply_add),
        read=_rising(reads),
    )


def _working_sets(caches: tuple[int, int]) -> tuple[int, int, int]:
    """Return bytes, powers of two, that lie in L1, in L2, and in neither."""
    near, far = (2 ** int(math.log2(size)) for size in caches)
    return near // 2, far // 4, far * 8


def _panel_trials(height: int, caches: tuple[int, int]) -> list[PanelLayer]:
    """Return pairs of layers: for each cache of many and of few inputs, then of many neurons."""
    few, many = 16, 144 if height == 1 else 80
    sizes = _working_sets(caches)
    panels = sizes[1] // (4 * TILE) // height  # whose outputs leave the inputs room in L2
    layers = [
        _layer(height, np.full(panels, fan_in), max(size // (4 * TILE), many))
        for size in sizes
        for fan_in in (many, few)
    ]
    rows = max(sizes[0] // (4 * TILE), 16)
    random = np.random.default_rng(1)
    fans = [random.integers(1, 16, neurons // height) for neurons in (1280, 256)]
    return layers + [_layer(height, fan_in, rows) for fan_in in fans]


def _run_trials(height: int, every: int, caches: tuple[int, int]) -> list[PanelLayer]:
    """Return two layers that read one of `every` inputs, out of some four times as large as L1."""
    rows = caches[0] // TILE
    panels = [neurons // height for neurons in (640, 128)]
    return [_layer(height, np.full(number, rows // every), rows) for number in panels]


def _panel_costs(layers: list[PanelLayer], times: list[float]) -> tuple[list[float], float]:
    """Return ns a sample of an input of a panel, by cache, and of a neuron."""
    inputs = [_input_cost(layers[k : k + 2], times[k : k + 2]) for k in (0, 2, 4)]
    more, fewer = layers[6:]
    neurons = more.n_out - fewer.n_out
    added = times[6] - times[7] - (_inputs(more) - _inputs(fewer)) * inputs[0]
    return inputs, max(added / neurons, inputs[0] / more.tall.height)


def _input_cost(layers: list[PanelLayer], times: list[float]) -> float:
    """Return the ns a sample of an input that one of two layers has more than the other."""
    more, fewer = layers
    return max(times[0] - times[1], 0.0) / (_inputs(more) - _inputs(fewer))


def _inputs(layer: PanelLayer) -> int:
    return len(layer.tall.indices) + len(layer.single.indices)


def _layer(height: int, fan_in: NDArray[np.int64], rows: int) -> PanelLayer:
    """Return a layer of panels, each with so many inputs of `rows`, in an order of chance."""
    random = np.random.default_rng(0)
    neurons = len(fan_in) * height
    starts = np.concatenate(([0], np.cumsum(fan_in)))
    picked = random.integers(0, rows, starts[-1])
    if fan_in.max() * 8 > rows:  # otherwise few are picked twice
        picked = np.concatenate([random.permutation(rows)[:count] for count in fan_in])
    picked = picked[np.lexsort((picked, np.repeat(np.arange(len(fan_in)), fan_in)))]
    indices = picked.astype(np.uint16 if rows <= 2**16 else np.uint32)
    weights = np.ones(len(indices) * height, np.float32)
    full = Panels(height, starts, indices, weights, random.permutation(neurons).astype(np.int32))
    none = Panels(1, starts[:1], indices[:0], weights[:0], full.outputs[:0])
    return PanelLayer(
        n_in=rows,
        n_out=neurons,
        edges=len(weights),
        tall=full if height > 1 else replace(none, height=HEIGHT),
        single=full if height == 1 else none,
        value=None,
        bias=np.zeros(neurons, np.float32),
        clamp=(0.0, 32.0),
        choice=Choice("", "", 0.0, Limit("", 0.0), ""),
    )


def _layer_ns(layers: list[PanelLayer]) -> list[float]:
    """Return ns a sample of each layer over a few tiles, at best, as the engine runs it.

    All are layers of one network, so that what disturbs the machine for a while disturbs all.
    """
    from teraedge.engines.cpu.engine import CpuEngine  # which needs the constants

    chain, width = [], _FED
    for layer in layers:
        chain += [_layer(1, np.ones(layer.n_in, np.int64), width), layer]  # the first feeds it
        width = layer.n_out
    features = np.ones((_TILES * TILE, _FED), np.float32)
    options = Options(prune=False, merge=False, passes=False, threads=1)
    times: list[list[float]] = []
    with CpuEngine(LaidOutPlan(chain), options, 0.0) as engine:
        engine.run(features)
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end or not times:
            times.append([layer.seconds for layer in engine.run(features).trace[1::2]])
    best: list[float] = (np.min(times, axis=0) * 1e9 / len(features)).tolist()
    return best


def _feature_costs() -> tuple[float, float]:
    """Return ns a value of reading float32 features into a tile, and of writing rows out of it."""
    neurons = 1024
    features = np.ones((TILE, neurons), np.float32)
    tile = _aligned(neurons * TILE)
    load = _best_ns(lambda: feeding.load_dense(features, 0, TILE, tile))
    store = _best_ns(lambda: feeding.store_rows(tile, features))
    return load / features.size, store / features.size


def _aligned(size: int) -> NDArray[np.float32]:
    """Return float32 ones that begin at a cache line, as tiles do."""
    memory = np.ones(size + 16, np.float32)
    offset = -memory.ctypes.data % 64 // 4
    return memory[offset : offset + size]


def _best_ns(run: Callable[[], object]) -> float:
    """Return the ns of the fastest of many calls: others on the machine can only add time."""
    run()
    best = math.inf
    end = time.perf_counter() + 0.02
    while (begin := time.perf_counter()) < end or best == math.inf:
        run()
        best = min(best, time.perf_counter() - begin)
    return best * 1e9


def _rising(values: list[float]) -> Levels:
    """Round figures by cache, of which a further one is never faster."""
    rising = np.maximum.accumulate([_rounded(value) for value in values]).tolist()
    return rising[0], rising[1], rising[2]


def _rounded(value: float) -> float:
    """Round to `STEPS` steps a factor of ten, and to at least a femtosecond."""
    step = round(math.log10(max(value, 1e-6)) * STEPS)
    return float(f"{10 ** (step / STEPS):.3g}")
