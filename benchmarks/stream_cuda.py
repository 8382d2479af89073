"""Weights beyond GPU memory: the same network with all layers resident, and with most streamed.

    python benchmarks/stream_cuda.py --output benchmarks/results/DATE-cuda-stream.json

A wide random network runs in mode A, once with all the memory there is and once with so little
(`Options.memory`) that most layers come from the host in every run. The first streaming run lays
the layers out and packs them into page-locked memory; the runs after it, which are measured, copy
from there. Both answers must be equal bit for bit. With few samples a run takes as long as its
copies, and shows what the bus gives.

    python benchmarks/stream_cuda.py --official 65536-1920 --memory 400MB --output ...

runs an official network in mode B on a host that may keep no packed layers: all that do not fit
are generated, laid out and packed anew, behind the run. Memory is read all the time.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import numpy as np
from cuda_networks import Case, random_layer
from general_cuda import draw_features, rows_of

import teraedge
from teraedge import Options
from teraedge.bench import session as sessions
from teraedge.bench.gpu import peaks
from teraedge.bench.machine import peak_memory_bytes
from teraedge.bench.record import row
from teraedge.bench.session import Session
from teraedge.datasets import challenge
from teraedge.engines.cuda import driver
from teraedge.engines.cuda import engine as engines

DISTINCT = 8
"""Layers that are drawn; the network repeats them, and the engine does not know."""
ROOM = 0.3
"""Of the bytes of all layers, what the device is given for them."""
FEW = 64
"""Samples of the run that the copies bound."""


class FailedError(Exception):
    """The two answers differ, or nothing was streamed."""


class Repeated:
    """A lazy network of `layers` layers that repeats some.

    Parameters
    ----------
    distinct : list of Layer
    layers : int
    """

    def __init__(self, distinct: list[teraedge.Layer], layers: int) -> None:
        self._distinct, self._layers = distinct, layers
        self.edges = sum(self[index].edges for index in range(layers))
        self.n_in, self.n_out = distinct[0].n_in, self[layers - 1].n_out

    def __len__(self) -> int:
        return self._layers

    def __getitem__(self, index: int) -> teraedge.Layer:
        return self._distinct[range(self._layers)[index] % len(self._distinct)]


def wide_network(case: Case, seed: int = 1) -> teraedge.Network:
    """Return the network of a case, of a few layers again and again."""
    distinct = [
        teraedge.Layer(random_layer(case, index, seed).T.tocsr(), 0.01, teraedge.ClippedReLU(32))
        for index in range(min(DISTINCT, case.layers))
    ]
    return teraedge.Network(Repeated(distinct, case.layers), name=case.name)


def small_memory(network: teraedge.Network) -> int:
    """Return an `Options.memory` in which most layers do not fit: six bytes an edge, at least."""
    return int(6 * network.edges * ROOM)


def timed(engine: teraedge.Engine, features: Any, **rule: Any) -> tuple[list[float], Any]:
    """Return the seconds of runs, and the result of the last."""
    last: list[Any] = []

    def once() -> float:
        last.clear()  # gives back the device memory of its rows
        begin = time.perf_counter()
        result = engine.run(features)
        len(result.live)
        seconds = time.perf_counter() - begin
        last.append(result)
        return seconds

    return sessions.repeat(once, **rule), last[0]


def measure(
    case: Case, gpu: Any, limits: dict[str, float], add: Callable[[dict[str, Any]], None], *,
    device: str = "cuda", **rule: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows: streamed, streamed with few samples, and resident.

    Resident layers come last, so that the host memory of the others is without theirs.
    """
    network = wide_network(case)
    features = draw_features(case.samples, case.neurons, device)
    few = features[: min(FEW, case.samples)]
    ids = np.unique(np.linspace(0, case.samples - 1, 64).astype(np.int64))
    rows: list[dict[str, Any]] = []
    answer: np.ndarray | None = None
    memory = small_memory(network)
    plans = {
        memory: [("streamed", features), ("streamed, few samples", few)],
        None: [("resident", features)],
    }
    for size, runs_of in plans.items():
        options = teraedge.Options(prune=False, merge=False, passes=False, memory=size)
        with teraedge.compile(network, device, options) as engine:
            for label, given in runs_of:
                begin = time.perf_counter()
                engine.run(given)
                first = time.perf_counter() - begin
                runs, result = timed(engine, given, **rule)
                if len(result.live) != len(given):
                    raise FailedError(f"{label}: samples die in this network")
                found = rows_of(result.outputs, ids[ids < len(given)])
                answer = found if answer is None else answer
                if not np.array_equal(found, answer[: len(found)]):
                    raise FailedError(f"{label}: the answers differ")
                del result
                fields = _copies(engine, label, median(runs), limits)
                if size and not fields["streamed_bytes"]:
                    raise FailedError(f"all layers fit into {size} bytes; give more --layers")
                edges = network.edges * len(given)
                rows.append(
                    row(
                        case.name, runs, mode="a", nominal_edges=edges, executed_edges=edges,
                        samples=len(given), device=gpu.name, gpus=1, label=label, passed=True,
                        memory=size, first_seconds=first, compile_seconds=engine.compile_seconds,
                        peak_memory_bytes=peak_memory_bytes(), **fields,
                    )
                )  # fmt: skip
                add(rows[-1])
                print(line(rows[-1]), flush=True)
    return rows


def _copies(engine: Any, label: str, seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """Return what an engine says of its copies, and their share of what the bus gives."""
    plan, state = getattr(engine, "_plan", None), getattr(engine, "_state", None)
    brought = getattr(plan, "streamed_bytes", 0)
    bound = label.endswith("few samples")  # by copies
    return {
        "streamed_bytes": brought,
        "resident_layers": len(getattr(plan, "resident", ())),
        "batch_samples": getattr(state, "samples", None),
        "streamed_bytes_per_s": brought / seconds,
        "share_of_limit": brought / seconds / limits["host_bytes_per_s"] if bound else None,
        "limit": "copy from the host" if bound else None,
    }


@contextmanager
def watched(gpu: Any, seconds: float = 0.5) -> Iterator[list[tuple[float, int, int]]]:
    """Note time, resident memory of the process and used memory of the device, again and again."""
    notes: list[tuple[float, int, int]] = []
    stop, begin, page = Event(), time.perf_counter(), 4096

    def note() -> None:
        while not stop.wait(seconds):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            used = gpu.memory_bytes - gpu.free_bytes()
            notes.append((time.perf_counter() - begin, pages * page, used))

    thread = Thread(target=note)
    thread.start()
    try:
        yield notes
    finally:
        stop.set()
        thread.join()


def official(
    name: str, memory: str, gpu: Any, samples: int | None, seconds: float = 0.5
) -> dict[str, Any]:
    """Return the row of one streamed run of an official network, with the memory it took.

    Memory is read every so many `seconds`.
    """
    neurons, layers = map(int, name.split("-"))
    network = challenge.network(neurons, layers)
    features = challenge.features(neurons, samples)
    expected = challenge.categories(neurons)
    expected = expected[expected < len(features)]
    engines.HOST_SHARE = 2**60  # nothing may stay packed on the host
    options = Options(prune=True, merge=False, passes=False, memory=memory)
    with teraedge.compile(network, "cuda", options) as engine:
        with watched(gpu, seconds) as notes:
            begin = time.perf_counter()
            ids = engine.run(features).live
            taken = time.perf_counter() - begin
        if not np.array_equal(ids, expected):
            raise FailedError(f"{len(ids)} ids, {len(expected)} expected")
        fields = _copies(engine, "streamed", taken, {})
        steady = notes[len(notes) // 10 :]  # buffers are there
        found = row(
            name, [taken], mode="b", nominal_edges=network.edges * len(features),
            samples=len(features), device=gpu.name, gpus=1, label="streamed anew", passed=True,
            memory=memory, compile_seconds=engine.compile_seconds,
            peak_memory_bytes=peak_memory_bytes(),
            host_bytes=[min(n[1] for n in steady), max(n[1] for n in steady)],
            device_bytes=[min(n[2] for n in steady), max(n[2] for n in steady)],
            memory_over_time=[[round(t, 1), host, used] for t, host, used in notes[::4]], **fields,
        )  # fmt: skip
    for key in ("host_bytes", "device_bytes"):
        low, high = found[key]
        print(f"{key}: {low / 1e9:.3f} to {high / 1e9:.3f} GB")
    print(f"{name}, {memory}: {taken:.1f} s, {fields['resident_layers']} layers resident, PASSED")
    return found


def line(found: dict[str, Any]) -> str:
    """Return a row for people."""
    seconds = found["seconds"]
    return (
        f"{found['label']:22} {found['samples']:6} samples {seconds['median'] * 1e3:9.2f} ms "
        f"({seconds['min'] * 1e3:.2f} to {seconds['max'] * 1e3:.2f}, {len(seconds['runs'])} runs) "
        f"{found['executed_edges_per_s'] / 1e12:.3f} TE/s, {found['streamed_bytes'] / 1e6:.0f} MB "
        f"streamed at {found['streamed_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"{found['resident_layers']} layers resident, batches of {found['batch_samples']}, "
        f"first run {found['first_seconds']:.1f} s, compile {found['compile_seconds']:.1f} s, "
        f"host peak {(found['peak_memory_bytes'] or 0) / 1e9:.2f} GB"
    )


def main() -> int:
    """Measure, print a table, write the result file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sessions.add_arguments(parser)
    parser.add_argument("--neurons", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--official", help="an official network instead, as 65536-1920")
    parser.add_argument("--memory", default="400MB", help="Options.memory of an official one")
    arguments = parser.parse_args()
    name = f"random-{arguments.neurons}-32-repeated"
    case = Case(name, arguments.neurons, 32, arguments.layers, arguments.samples)

    gpu = driver.open_device(arguments.device)
    limits = peaks(gpu)
    session = Session.of(arguments, gpu, peaks=limits)
    print(f"{gpu!r}: {', '.join(f'{key} {value:.4g}' for key, value in limits.items())}")
    if arguments.official:
        few = arguments.samples if arguments.samples != parser.get_default("samples") else None
        session.add(official(arguments.official, arguments.memory, gpu, few))
        return 0
    if not session.starts(name):
        return 1
    try:
        rows = measure(case, gpu, limits, session.add, device=arguments.device)
    except Exception as error:
        print(f"FAILED: {type(error).__name__}: {error}")
        return 1
    print("\n" + "\n".join(line(found) for found in rows))
    times = {found["label"]: found["seconds"]["median"] for found in rows}
    print(f"streamed takes {times['streamed'] / times['resident']:.3f} times as long as resident")
    print("equal answers: PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
