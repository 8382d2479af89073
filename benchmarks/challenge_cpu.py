"""The official challenge on the CPU, teraedge beside SciPy and torch CSR in one process.

    python benchmarks/challenge_cpu.py --output results.json

Every run's ids are checked before its time counts. The rivals do what a careful user of them would:
activations [neuron][sample], one sparse-times-dense product, bias and clamp in place, dead samples
dropped after every layer, and the best of several batch sizes. All times are of inference alone,
from features in memory to ids, with as many threads as the process has cores; the programs take
turns, so that a change of the machine's speed meets all of them.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import teraedge
from teraedge.bench.machine import peak_memory_bytes, usable_cores
from teraedge.bench.record import row, write_results
from teraedge.datasets import challenge

BATCHES = (60_000, 4_096, 512)


def rival_scipy(network, bias, upper):
    weights = [layer.weights.T.tocsr() for layer in network]

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


def rival_torch(network, bias, upper):
    import torch

    torch.set_num_threads(usable_cores())
    weights = []
    for layer in network:
        w = layer.weights.T.tocsr()
        parts = (torch.from_numpy(part.astype(np.int32)) for part in (w.indptr, w.indices))
        weights.append(torch.sparse_csr_tensor(*parts, torch.from_numpy(w.data), size=w.shape))

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


def rival_run(make: Callable, network, features, batch: int) -> Callable[[], tuple[float, np.ndarray]]:
    """Return a function that runs a rival once over all samples: (seconds, ids)."""
    first = network[0]
    run, convert = make(network, float(first.bias[0]), first.activation.upper)
    starts = range(0, len(features), batch)

    def once():
        seconds, ids = 0.0, []
        for start in starts:
            dense = np.asarray(features[start : start + batch]).T.astype(np.float32)
            x = convert(np.ascontiguousarray(dense))
            begin = time.perf_counter()
            ids.append(np.asarray(run(x)) + start)
            seconds += time.perf_counter() - begin
        return seconds, np.concatenate(ids)

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--neurons", type=int, default=1024)
    parser.add_argument("-l", "--layers", type=int, default=120)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--output", help="write the result file here")
    arguments = parser.parse_args()

    network = challenge.network(arguments.neurons, arguments.layers)
    features = challenge.features(arguments.neurons)
    truth = challenge.categories(arguments.neurons)
    name = f"{arguments.neurons}-{arguments.layers}"
    contenders: dict[str, Callable] = {}
    details: dict[str, dict] = {}
    for mode in ("b", "c"):
        engine = teraedge.compile(network, options=teraedge.Options.mode(mode))
        memory = peak_memory_bytes()

        def ours(engine=engine, label=f"teraedge mode {mode}"):
            result = engine.run(features)
            details[label]["executed_edges"] = result.executed_edges
            return result.seconds, result.live

        label = f"teraedge mode {mode}"
        contenders[label] = ours
        details[label] = {"mode": mode, "compile_seconds": engine.compile_seconds}
        contenders[label]()
        details[label]["peak_memory_bytes"] = peak_memory_bytes()
        del memory
    if not arguments.no_rivals:
        for rival, make in (("scipy", rival_scipy), ("torch", rival_torch)):
            for batch in BATCHES:
                label = f"{rival} CSR, batch {batch}"
                contenders[label] = rival_run(make, network, features, batch)
                details[label] = {"mode": "b", "rival": rival}

    times: dict[str, list[float]] = {label: [] for label in contenders}
    for _ in range(arguments.repeat):
        for label, once in contenders.items():
            seconds, ids = once()
            if not np.array_equal(np.sort(ids), truth):
                raise SystemExit(f"FAILED: {label} gives other ids than the official ones")
            times[label].append(seconds)

    rows = []
    ours = np.median(times["teraedge mode b"])
    print(f"{name}, 60000 samples, {usable_cores()} threads, fp32, ids checked in every run")
    for label, runs in times.items():
        extra = {"label": label, "passed": True} | details[label]
        rows.append(row(name, runs, nominal_edges=len(features) * network.edges, **extra))
        ratio = f"{np.median(runs) / ours:8.2f} x" if extra["mode"] == "b" else "    (mode c)"
        print(f"  {label:28} {np.median(runs):8.3f} s   {ratio}")
    if arguments.output:
        write_results(arguments.output, rows)


if __name__ == "__main__":
    main()
