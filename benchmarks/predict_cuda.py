"""Predicted times of layers on a GPU beside measured ones, and what the runner-up kernel takes.

    python benchmarks/predict_cuda.py --output benchmarks/results/DATE-cuda-predict.json

Mode A: all samples live, nothing pruned, merged or rewritten. A cell's times are those of its
layers, added up; predicted ones stand on the rates that were measured on this GPU (`Rates`). Of
small networks one layer also runs in the kernel that is the best without the chosen one, a chain
of copies of each, so that a wrong choice shows. Answers are not looked at: general_cuda.py does.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import cuda_networks
import numpy as np
import scipy.sparse as sp
from cuda_networks import Case
from general_cuda import draw_features

import teraedge
from teraedge import ClippedReLU, Layer, Network, Options, ReLU
from teraedge.bench import session as sessions
from teraedge.bench.record import row
from teraedge.bench.session import Session
from teraedge.datasets import challenge
from teraedge.engines.cuda import driver
from teraedge.engines.cuda.calibrate import kept, rates_of
from teraedge.engines.cuda.engine import CudaEngine
from teraedge.plan import gpu
from teraedge.plan.device import DeviceLayer
from teraedge.plan.plan import LaidOutPlan
from teraedge.plan.rates import Rates

REPEAT = 5
COMPARED = 3_000_000
"""Edges of a layer up to which the runner-up runs, too: it is laid out once more."""
SLOW = 10.0
"""Seconds that a network takes to be made from which on it runs in fp32 only."""
SLOWER = 1e6
CLEARLY = 1.1
"""How much longer than the runner-up a chosen kernel must take to be a wrong choice."""
RATES_OF = {
    "small": ("small_edge", "small_neuron"),
    "resident": ("single_reads", "tall_reads", "list_bytes", "border"),
    "block": ("block_tile", "block_sample", "block_product"),
    "dense": ("dense_edge", "dense_product"),
    "staged": ("staged_reads", "staged_bytes"),
    "wide": ("wide_bytes", "tall_bytes"),
    "chained": ("tall_bytes",),
}


@dataclass(frozen=True)
class Cell:
    """A network to be measured, and how to make it."""

    name: str
    samples: int
    make: Callable[[], Network]
    seconds: float = 3.0
    """To draw and to lay out; a rough guess."""


def cells() -> list[Cell]:
    """Return all networks, those that take long last."""
    found = [
        Cell("mlp-256-16", 60_000, partial(_chain, [256] * 25, 16)),
        Cell("mixed", _samples(16384), partial(_chain, MIXED, 24)),
    ]
    for neurons, fans in (
        (1024, (32, 5, 20, 51, 102)),
        (4096, (32, 20, 82, 205, 410)),
        (16384, (32, 82, 164)),
        (65536, (32,)),
    ):
        for fan_in in fans:
            name = f"random-{neurons}-{fan_in / neurons:.2%}"
            found.append(_random(name, neurons, fan_in))
    for neurons in (1024, 4096, 16384, 65536):
        for width in (1, 16):
            if width == 1 and cuda_networks.radix_width(neurons) == 16:
                continue
            case = Case(f"radixnet-{neurons}-w{width}", neurons, 32, 4, _samples(neurons), width)
            found.append(Cell(case.name, case.samples, partial(_drawn, case)))
    for neurons in (1024, 4096, 16384):
        make = partial(challenge.network, neurons, 8)
        found.append(Cell(f"official-{neurons}-8", _samples(neurons), make))
    for neurons, density in ((1024, 1.0), (2048, 0.5)):
        make = partial(_dense, neurons, density)
        found.append(Cell(f"random-{neurons}-{density:.0%}", _samples(neurons), make))
    found.append(_random("random-16384-5%", 16384, 819, seconds=15.0))
    found.append(_random("random-65536-0.5%", 65536, 328, seconds=30.0))
    return found


MIXED = [1024, 1024, 4096, 4096, 16384, 16384, 512, 256, 256, 128]


def _samples(neurons: int) -> int:
    """Return enough samples to fill a GPU many times, and not more."""
    return int(min(60_000, 2**28 // neurons) // 64 * 64)


def _random(name: str, neurons: int, fan_in: int, seconds: float = 3.0) -> Cell:
    layers = 4 if neurons * fan_in < 2_000_000 else 2
    case = Case(name, neurons, fan_in, layers, _samples(neurons))
    return Cell(name, case.samples, partial(_drawn, case), seconds)


def _drawn(case: Case) -> Network:
    return cuda_networks.draw(case).network


def _dense(neurons: int, density: float, layers: int = 4) -> Network:
    random = np.random.default_rng(neurons)
    made = []
    for _ in range(layers):
        weights = random.standard_normal((neurons, neurons), np.float32)
        weights *= random.random((neurons, neurons), np.float32) < density
        weights *= np.float32(np.sqrt(2 / (density * neurons)))
        made.append(Layer(sp.csr_array(weights), 0.01, ReLU()))
    return Network(made)


def _chain(sizes: list[int], fan_in: int) -> Network:
    random = np.random.default_rng(len(sizes))
    made = []
    for n_in, n_out in pairwise(sizes):
        sources = cuda_networks.distinct(random, n_out, n_in, fan_in)
        values = random.standard_normal(sources.size, np.float32) * np.float32(np.sqrt(2 / fan_in))
        starts = np.arange(0, sources.size + 1, fan_in, dtype=np.int32)
        weights = sp.csr_array((values, sources.ravel(), starts), shape=(n_out, n_in)).T
        made.append(Layer(weights.tocsr(), 0.01, ClippedReLU(32.0)))
    return Network(made)


def measure(cell: Cell, precision: str, gpu_: Any, session: Session, device: str) -> dict[str, Any]:
    """Add the row of a network to a session."""
    network = cell.make()
    features = draw_features(cell.samples, network.n_in, device)
    options = Options.mode("a", precision=precision)
    with teraedge.compile(network, device, options) as engine:
        runs, explained = [], []
        for _ in range(REPEAT + 1):
            engine.run(features)
            explained.append(engine.explain())
            runs.append(max(explained[-1].measured or 0.0, 1e-12))  # a clock may be coarse
        best = min(explained[1:], key=lambda found: found.measured or 0.0)
        kernels = "+".join(dict.fromkeys(found.kernel for found in best.rows))
        seconds = engine.compile_seconds
    more: dict[str, Any] = {}
    layer = network[len(network) // 2]
    if precision == "fp32" and layer.n_in == layer.n_out and layer.edges <= COMPARED:
        more["compared"] = compared(layer, cell.samples, gpu_, device)
    edges = sum(each.edges for each in network) * cell.samples
    predicted = best.predicted or 0.0
    found = row(
        cell.name, runs[1:], mode="a", nominal_edges=edges, executed_edges=edges,
        samples=cell.samples, device=gpu_.name, gpus=1, label="teraedge layers",
        precision=precision, passed=None, kernels=kernels, predicted_seconds=predicted,
        error=abs(predicted / median(runs[1:]) - 1), mean_layer_error=best.error,
        compile_seconds=seconds, explained=[_short(one) for one in best.rows], **more,
    )  # fmt: skip
    session.add(found)
    return found


def _short(explained: Any) -> list[Any]:
    return [explained.layers, explained.kernel, explained.predicted, explained.measured]


def compared(layer: Layer, samples: int, gpu_: Any, device: str) -> list[dict[str, Any]]:
    """Run a layer in the chosen kernel and in the runner-up, four copies of each."""
    rates = rates_of(gpu_, device)
    chosen = gpu.lay_out(layer, gpu_.shared_bytes, rates=rates)
    other = gpu.lay_out(layer, gpu_.shared_bytes, rates=without(rates, chosen.kernel))
    return [alone(one, rates, samples, device) for one in (chosen, other)]


def without(rates: Rates, kernel: str) -> Rates:
    """Return rates by which no layer gets a kernel if there is another."""
    slower: dict[str, Any] = {}
    for name in RATES_OF[kernel]:
        faster = name.endswith(("_reads", "_bytes"))
        slower[name] = getattr(rates, name) * (1 / SLOWER if faster else SLOWER)
    return replace(rates, **slower)


def alone(layer: DeviceLayer, rates: Rates, samples: int, device: str) -> dict[str, Any]:
    """Return a kernel, and the predicted and the measured seconds of a layer in it."""
    features = draw_features(samples, layer.n_in, device)
    with CudaEngine(LaidOutPlan([layer] * 4), Options.mode("a"), device) as engine:
        times = [
            median(each.seconds for each in engine.run(features).trace[1:])
            for _ in range(REPEAT + 1)
        ]
    predicted = rates.seconds(layer) * samples
    return {"kernel": layer.kernel, "predicted": predicted, "measured": min(times[1:])}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a line a cell, and the mean error."""
    lines = [f"{'network':24} {'':5} {'kernels':26} predicted  measured  error   runner-up"]
    for found in rows:
        compared = found.get("compared")
        beside = ""
        if compared:
            first, second = compared
            wrong = first["measured"] > CLEARLY * second["measured"]
            beside = ", ".join(
                f"{one['kernel']} {one['predicted'] * 1e6:.0f}/{one['measured'] * 1e6:.0f}"
                for one in compared
            ) + (" WRONG CHOICE" if wrong and first["kernel"] != second["kernel"] else "")
        predicted, measured = found["predicted_seconds"], found["seconds"]["median"]
        lines.append(
            f"{found['network']:24} {found['precision']:5} {found['kernels']:26} "
            f"{predicted * 1e6:9.0f} {measured * 1e6:9.0f} "
            f"{predicted / measured - 1:+6.0%}   {beside}"
        )
    if rows:
        lines.append(
            f"mean error of {len(rows)} cells: {mean(found['error'] for found in rows):.1%}"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, write the result file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sessions.add_arguments(parser)
    arguments = parser.parse_args()
    device = driver.open_device(arguments.device)
    begin = time.perf_counter()
    rates = rates_of(device, arguments.device)
    seconds, from_file = time.perf_counter() - begin, kept(device)
    print(f"{device!r}: {seconds:.2f} s for {rates}", flush=True)
    measured = None if from_file is None else from_file.measured
    session = Session.of(
        arguments, device, rates=rates.to_json(), measured=measured, measuring_seconds=seconds
    )
    failed = []
    for cell in cells():
        for precision in ("fp32", "fp16"):
            if precision != "fp32" and cell.seconds > SLOW:
                continue
            if not session.starts(cell.name, cell.seconds):
                continue
            try:
                measure(cell, precision, device, session, arguments.device)
            except Exception as error:
                first = (str(error).splitlines() or [""])[0]
                print(f"{cell.name} {precision}: {type(error).__name__}: {first}", flush=True)
                failed.append(f"{cell.name} {precision}")
    print(table(session.rows))
    session.write(failed=failed)
    return 1 if failed or not session.rows else 0


if __name__ == "__main__":
    sys.exit(main())
