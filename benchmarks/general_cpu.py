"""Mode A on the CPU: kernels alone, random weights, beside SciPy, torch CSR, MKL and dense BLAS.

    python benchmarks/general_cpu.py --output benchmarks/results/DATE-cpu-general.json
    python benchmarks/general_cpu.py --only radixnet-32-width-16 random-0.03

Nothing is pruned, merged or rewritten, all samples are live, and outputs are compared with the
float64 reference before any time counts. Rivals multiply activations [neuron][sample] in one
batch, which is how they are fastest here, and clamp in place. All programs take turns in one
process, with as many threads as it has cores. Rates are executed edges; of a dense product too only
the network's own edges count, so that they compare. Limits are measured in the same sitting.

On a machine that others use as well, ``taskset -c 0 python benchmarks/general_cpu.py --cpu-time``
takes the CPU time of one core instead: ratios then say what programs need, not who was disturbed.
"""

import argparse
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import teraedge
from teraedge.bench.record import row, write_results
from teraedge.datasets import radixnet
from teraedge.datasets import random as random_nets
from teraedge.engines.cpu.peaks import load_peak, multiply_add_peak
from teraedge.host import usable_cores
from teraedge.rounding import error_bound
from teraedge.text import count

SAMPLES, NEURONS = 4096, 1024
TILE_BYTES = 1 << 18  # of 1024 neurons x 64 samples: what a gather reads from
SETTLE = 0.3
"""Seconds between two programs: the threads of OpenMP spin on for 0.2 s after their work."""
SLOW = 2.0
"""Seconds of a program's first run from which on one repetition is enough."""
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def networks() -> dict[str, tuple[teraedge.Network, str]]:
    """Return networks by name, each with the limit it is measured against."""
    relu = teraedge.ReLU()
    width = radixnet.uniform(NEURONS, 32, 20, width=16, relabel=True, activation=relu, seed=1)
    found = {"radixnet-32-width-16": (width, "multiply-add")}
    radix = radixnet.uniform(NEURONS, 32, 20, relabel=True, activation=relu, seed=1)
    found["radixnet-32"] = (radix, "multiply-add")
    for density in DENSITIES:
        sizes = [NEURONS] * (9 if density < 0.1 else 5)
        net = random_nets.network(sizes, density=density, activation=relu, seed=1)
        found[f"random-{density:g}"] = (net, "load" if density < 0.4 else "multiply-add")
    return found


def rivals(network: teraedge.Network, features: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return functions that run the network once with other libraries."""
    sparse = [layer.weights.T.tocsr().astype(np.float32) for layer in network]
    x = np.ascontiguousarray(features.T)

    dense = [w.toarray() for w in sparse]

    def run(weights: list[Any]) -> Any:
        y = x
        for w in weights:
            y = w @ y
            np.maximum(y, 0, out=y)
        return y

    found: dict[str, Callable[[], Any]] = {
        "scipy CSR": partial(run, sparse),
        "numpy dense": partial(run, dense),
    }
    for package, programs in (("torch", torch_programs), ("sparse_dot_mkl", mkl_programs)):
        if importlib.util.find_spec(package) is not None:
            found |= programs(sparse, x)
    return found


def torch_programs(sparse: list[Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """As `rivals`, with torch: sparse, and dense BLAS."""
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    torch.set_num_threads(usable_cores())

    def chain(weights: list[Any]) -> Callable[[], Any]:
        start = torch.from_numpy(x)

        def run() -> Any:
            y = start
            for w in weights:
                y = (w @ y).clamp_(0)
            return y

        return run

    def csr(w: Any) -> Any:
        parts = (torch.from_numpy(part.astype(np.int32)) for part in (w.indptr, w.indices))
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(w.data), size=w.shape)

    return {
        "torch CSR": chain([csr(w) for w in sparse]),
        "torch dense": chain([torch.from_numpy(w.toarray()) for w in sparse]),
    }


def mkl_programs(sparse: list[Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """As `rivals`, with MKL's sparse product (packages mkl and sparse-dot-mkl)."""
    found = sorted((Path(sys.prefix) / "lib").glob("libmkl_rt.so*"))
    if found:  # where pip puts it, which no loader looks at
        os.environ.setdefault("MKL_RT", str(found[0]))
    from sparse_dot_mkl import dot_product_mkl, mkl_set_num_threads

    mkl_set_num_threads(usable_cores())
    room = np.zeros_like(x), np.zeros_like(x)  # as little allocation as we allow ourselves

    def mkl_csr() -> Any:
        y = x
        for number, w in enumerate(sparse):
            y = dot_product_mkl(w, y, out=room[number % 2], out_scalar=0.0)
            np.maximum(y, 0, out=y)
        return y

    return {"MKL CSR": mkl_csr}


def check(network: teraedge.Network, engine: teraedge.Engine, features: np.ndarray) -> None:
    """Stop unless the outputs of some samples keep to the bound of fp32."""
    some = features[:64]
    expected = teraedge.reference.run(network, some).outputs
    if not (np.abs(engine.run(some).outputs - expected) <= error_bound(network, some)).all():
        raise SystemExit("FAILED: outputs are beyond the bound of fp32")


def main() -> None:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of networks; by default all")
    parser.add_argument("--output", help="write the result file here")
    parser.add_argument("--cpu-time", action="store_true", help="of one core, not wall time")
    arguments = parser.parse_args()

    cores, rows = usable_cores(), []
    if arguments.cpu_time and cores > 1:
        raise SystemExit("--cpu-time needs one core; run it under taskset -c 0")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    features = np.random.default_rng(0).random((SAMPLES, NEURONS), dtype=np.float32)
    for name, (network, limit) in networks().items():
        if arguments.only and name not in arguments.only:
            continue
        engine = teraedge.compile(network, options=teraedge.Options.mode("a"))
        check(network, engine, features)
        default = teraedge.compile(network)  # looks for what to merge, and finds nothing
        programs = {
            "teraedge": lambda engine=engine: engine.run(features),
            "teraedge, mode c": lambda engine=default: engine.run(features),
        }
        programs |= rivals(network, features)
        expected = engine.run(features).outputs.T
        times: dict[str, list[float]] = {label: [] for label in programs}
        slow = set()
        for label, run in programs.items():
            begin = clock()
            given = run()
            if clock() - begin > SLOW:
                slow.add(label)
            given = given.outputs.T if isinstance(given, teraedge.Result) else given
            if not np.allclose(given, expected, rtol=1e-3, atol=1e-3):
                raise SystemExit(f"FAILED: {label} gives another answer")
        for number in range(arguments.repeat):
            for label, run in programs.items():
                if number == 0 or label not in slow:
                    time.sleep(SETTLE)
                    begin = clock()
                    run()
                    times[label].append(clock() - begin)
        if limit == "multiply-add":
            peak = multiply_add_peak(cores, clock=clock)
        else:
            peak = load_peak(cores, TILE_BYTES, clock=clock)
        edges = SAMPLES * network.edges
        ours = median(times["teraedge"])
        line = f"{name:22} {edges / ours / 1e9:7.1f} GE/s, {edges / ours / peak:5.1%} of {limit}"
        for label, runs in times.items():
            mine = label.startswith("teraedge")
            fields: dict[str, Any] = {"label": label, "passed": mine or None}
            fields["clock"] = "cpu" if arguments.cpu_time else "wall"
            if label == "teraedge":
                fields |= {
                    "compile_seconds": engine.compile_seconds,
                    "share_of_limit": edges / ours / peak,
                    "limit": f"{limit}s a second of {count(cores, 'core')}, {peak / 1e9:.1f} G/s",
                }
            else:
                line += f", {label} {median(runs) / ours:5.2f} x"
            if not mine:
                fields["rival"] = label
            counts = {"nominal_edges": edges, "executed_edges": edges, "samples": SAMPLES}
            if label.endswith("mode c"):
                counts["executed_edges"] = default.run(features).executed_edges
            mode = "c" if label.endswith("mode c") else "a"
            rows.append(row(name, runs, mode=mode, **counts, **fields))
        print(line, flush=True)
    if arguments.output:
        write_results(arguments.output, rows)


if __name__ == "__main__":
    main()
