"""The official challenge on the CPU, teraedge beside SciPy and torch CSR in one process.

    python benchmarks/challenge_cpu.py --output benchmarks/results/DATE-cpu-challenge.json

Every run's ids are compared with the official ones before its time counts. The rivals do what a
careful user of them would: activations [neuron][sample], one sparse-times-dense product, bias and
clamp in place, dead samples dropped after every layer; once with all samples in one batch and once
with batches that suit the caches. All times are of inference alone, from features in memory to
ids, with as many threads as the process has cores; the programs take turns, so that a change of
the machine's speed meets all of them. A rival that is not installed is left out.

On a machine that others use as well, ``taskset -c 0 python benchmarks/challenge_cpu.py --cpu-time``
takes the CPU time of one core instead: ratios then say what programs need, not who was disturbed.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import teraedge
from teraedge.bench.machine import peak_memory_bytes
from teraedge.bench.record import row, write_results
from teraedge.datasets import challenge
from teraedge.host import usable_cores

BATCHES = (60_000, 4_096, 512)
SETTLE = 0.3
"""Seconds between two programs: the threads of OpenMP spin on for 0.2 s after their work."""

Clock = Callable[[], float]
Once = Callable[[], tuple[float, np.ndarray]]
"""Runs all samples once; returns seconds and the ids of live samples."""


def scipy_network(network: teraedge.Network) -> tuple[Callable, Callable]:
    """Return (run, convert): from dense [neuron][sample] to ids, and into the rival's array."""
    weights = [layer.weights.T.tocsr() for layer in network]
    bias, upper = np.float32(network[0].bias[0]), network[0].activation.upper

    def run(x):
        ids = np.arange(x.shape[1])
        for w in weights:
            x = w @ x
            x += bias
            np.clip(x, 0, upper, out=x)
            live = x.any(axis=0)
            if not live.all():
                x, ids = np.ascontiguousarray(x[:, live]), ids[live]
        return ids

    return run, lambda dense: dense


def torch_network(network: teraedge.Network) -> tuple[Callable, Callable]:
    """As `scipy_network`, for torch's CSR tensors."""
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    torch.set_num_threads(usable_cores())
    weights = []
    for layer in network:
        w = layer.weights.T.tocsr()
        parts = (torch.from_numpy(part.astype(np.int32)) for part in (w.indptr, w.indices))
        weights.append(torch.sparse_csr_tensor(*parts, torch.from_numpy(w.data), size=w.shape))
    bias, upper = float(network[0].bias[0]), network[0].activation.upper

    def run(x):
        ids = torch.arange(x.shape[1])
        for w in weights:
            x = w @ x
            x += bias
            x.clamp_(0, upper)
            live = x.amax(0) > 0
            if not live.all():
                x, ids = x[:, live], ids[live]
        return ids

    return run, torch.from_numpy


RIVALS = {"scipy": scipy_network, "torch": torch_network}


def rival(name: str, network: teraedge.Network, features: Any, batch: int, clock: Clock) -> Once:
    """Return a rival that runs in batches; making its arrays is not part of its time."""
    run, convert = RIVALS[name](network)

    def once() -> tuple[float, np.ndarray]:
        seconds, ids = 0.0, []
        for start in range(0, len(features), batch):
            dense = np.asarray(features[start : start + batch]).T.astype(np.float32)
            x = convert(np.ascontiguousarray(dense))
            begin = clock()
            ids.append(np.asarray(run(x)) + start)
            seconds += clock() - begin
        return seconds, np.concatenate(ids)

    return once


def ours(
    mode: str, network: teraedge.Network, features: Any, details: dict[str, Any], clock: Clock
) -> Once:
    """Return teraedge in a measuring mode; notes in `details` what is not a time."""
    engine = teraedge.compile(network, options=teraedge.Options.mode(mode))
    details["compile_seconds"] = engine.compile_seconds

    def once() -> tuple[float, np.ndarray]:
        begin = clock()
        result = engine.run(features)
        seconds = clock() - begin
        details["executed_edges"] = result.executed_edges
        details["exact"] = result.exact
        return seconds, result.live

    once()  # the first run allocates
    details["peak_memory_bytes"] = peak_memory_bytes()  # of this process, before any rival
    return once


def main() -> None:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--neurons", type=int, default=1024)
    parser.add_argument("-l", "--layers", type=int, default=120)
    parser.add_argument("--modes", default="bc")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--output", help="write the result file here")
    parser.add_argument("--cpu-time", action="store_true", help="of one core, not wall time")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.cpu_time and usable_cores() > 1:
        raise SystemExit("--cpu-time needs one core; run it under taskset -c 0")

    network = challenge.network(arguments.neurons, arguments.layers)
    features = challenge.features(arguments.neurons)
    truth = challenge.categories(arguments.neurons)
    contenders: dict[str, Once] = {}
    details: dict[str, dict[str, Any]] = {}
    for mode in arguments.modes:
        label = f"teraedge, mode {mode}"
        details[label] = {"mode": mode}
        contenders[label] = ours(mode, network, features, details[label], clock)
    for name in () if arguments.no_rivals else RIVALS:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out")
            continue
        for batch in BATCHES:
            label = f"{name} CSR, batch {batch}"
            details[label] = {"mode": "b", "rival": name}
            contenders[label] = rival(name, network, features, batch, clock)

    times: dict[str, list[float]] = {label: [] for label in contenders}
    for _ in range(arguments.repeat):
        for label, once in contenders.items():
            time.sleep(SETTLE)
            seconds, ids = once()
            if not np.array_equal(np.sort(ids), truth):
                raise SystemExit(f"FAILED: {label} gives other ids than the official ones")
            times[label].append(seconds)

    nominal, samples = len(features) * network.edges, len(features)
    print(
        f"{network.name}, {samples} samples, {usable_cores()} threads, fp32, ids right in all runs"
    )
    rows = []
    for label, runs in times.items():
        clock_name = "cpu" if arguments.cpu_time else "wall"
        fields = {"label": label, "passed": True, "clock": clock_name} | details[label]
        rows.append(row(network.name, runs, nominal_edges=nominal, samples=samples, **fields))
        print(
            f"  {label:26} {median(runs):8.4f} s  ({min(runs):.4f} to {max(runs):.4f})  "
            f"{nominal / median(runs) / 1e12:8.4f} nominal TE/s"
        )
    if arguments.output:
        write_results(arguments.output, rows)


if __name__ == "__main__":
    main()
