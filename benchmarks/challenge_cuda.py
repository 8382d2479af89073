"""The twelve official challenge networks on one GPU.

    python benchmarks/challenge_cuda.py --output benchmarks/results/DATE-cuda-challenge.json

Times are from the call of `Engine.run` to the ids on the host, with the 0/1 inputs, packed in bits,
on the device already (a row says "host" if they were not). The ids of every run are compared with
the official ones before its time counts; a network with one wrong id FAILED, and so has the
benchmark. With --precision fp16 or bf16, which are not exact, a row names the ids that differ, and
none of those says that it passed. Smaller networks come first; one that would not end within
--budget-seconds is left out.
The HBM limit is that of activations written and read once a layer, in a copy's measured speed; the
gather limit is one read from shared memory for every executed edge and sample. Neither is a limit
where a kernel keeps activations in shared memory and reads them once for many neurons: no share is
given then.
"""

import argparse
import sys
import time
from itertools import product
from statistics import median
from typing import Any

import numpy as np

import teraedge
from teraedge.bench import session as sessions
from teraedge.bench.gpu import limit_seconds, peaks, share_of_limit
from teraedge.bench.machine import peak_memory_bytes
from teraedge.bench.ondevice import packed_to_device
from teraedge.bench.record import row
from teraedge.bench.session import Session
from teraedge.datasets import challenge
from teraedge.engines.cuda import driver
from teraedge.options import ITEMSIZE, PRECISIONS, Precision

LAYERS = (120, 480, 1920)
TRACED = 32
"""First layers that a row tells of one by one."""
WARM_COMPILE = 5.0
"""Seconds up to which a network is compiled a second time, for the time with a warm cache."""


WIDE = {"wide", "chained", "staged"}
"""Kernels whose activations go through device memory after every layer."""


class FailedError(Exception):
    """The answer is wrong."""


def on_device(features: teraedge.PackedFeatures, device: str) -> tuple[Any, str]:
    """Return features on the device and "device", or as they are and "host" if that cannot be."""
    try:
        return packed_to_device(features, device), "device"
    except Exception as error:
        print(f"  features stay on the host: {type(error).__name__}: {error}", flush=True)
        return features, "host"


def summary(trace: tuple[teraedge.LayerTrace, ...]) -> dict[str, Any]:
    """Return what a row tells of the layers of its last run."""
    first = trace[:TRACED]
    return {
        "live": [layer.live for layer in first],
        "live_last": trace[-1].live,
        "live_sum": sum(layer.live for layer in trace),
        "seconds": [round(layer.seconds, 8) for layer in first],
        "seconds_rest": sum(layer.seconds for layer in trace[TRACED:]),
        "seconds_sum": sum(layer.seconds for layer in trace),
    }


def measure(
    network: teraedge.Network,
    features: Any,
    truth: np.ndarray,
    mode: str,
    gpu: Any,
    limits: dict[str, float],
    *,
    device: str = "cuda",
    precision: Precision = "fp32",
    **rule: Any,
) -> dict[str, Any]:
    """Return the row of a network, every run of it PASSED.

    Parameters
    ----------
    network, features, truth, mode
        What runs; `features` are packed, on the host; `truth` are the ids of live samples.
    gpu : Device
        The device, to ask for its memory.
    limits : dict
        As `peaks` returns them.
    device : str
    precision : {"fp32", "fp16", "bf16"}
        What is not fp32 may end with other ids, which the row names.
    **rule
        As for `repetitions`.

    Raises
    ------
    FailedError
        If the ids of a run in fp32 are wrong.
    """
    options = teraedge.Options.mode(mode, precision=precision)
    exact = precision == "fp32"
    free = gpu.free_bytes()
    engine = teraedge.compile(network, device, options)
    compiles = [engine.compile_seconds]
    if compiles[0] < WARM_COMPILE:
        engine.close()
        engine = teraedge.compile(network, device, options)
        compiles.append(engine.compile_seconds)
    with engine:
        given, where = on_device(features, device)
        last: list[teraedge.Result] = []

        def once() -> float:
            last.clear()  # gives back the device memory of its rows
            begin = time.perf_counter()
            result = engine.run(given)
            ids = result.live
            seconds = time.perf_counter() - begin
            if exact and not np.array_equal(ids, truth):
                wrong = len(np.setxor1d(ids, truth))
                raise FailedError(f"{wrong} ids are not as in the official answer")
            last.append(result)
            return seconds

        try:
            once()
        except FailedError:
            raise
        except Exception as error:
            if where == "host":
                raise
            print(f"  features go back to the host: {type(error).__name__}: {error}", flush=True)
            given, where = features, "host"
        runs = sessions.repeat(once, **rule)
        result = last[0]
        ids = result.live
        kernels = {layer.kernel for layer in engine.explain().rows}
        used = free - gpu.free_bytes()
    moved = 2 * ITEMSIZE[precision] * network.n_in * sum(layer.live for layer in result.trace)
    floors = limit_seconds(limits, edges=result.executed_edges, moved_bytes=moved)
    return row(
        network.name or "network",
        runs,
        mode=mode,
        nominal_edges=result.nominal_edges,
        executed_edges=result.executed_edges,
        samples=result.samples,
        device=gpu.name,
        gpus=1,
        precision=precision,
        passed=exact,
        differ=len(np.setxor1d(ids, truth)),
        missing_ids=np.setdiff1d(truth, ids).tolist(),
        extra_ids=np.setdiff1d(ids, truth).tolist(),
        categories=len(truth),
        features=where,
        compile_seconds=compiles[-1],
        compile_seconds_all=compiles,
        device_memory_bytes=used,
        peak_memory_bytes=peak_memory_bytes(),
        exact=list(result.exact),
        trace=summary(result.trace),
        # Passes and merging change the work that the limits are for.
        **share_of_limit(median(runs), floors if mode == "b" and kernels <= WIDE else {}),
    )


def line(found: dict[str, Any]) -> str:
    """Return a row for people."""
    seconds, share = found["seconds"], found["share_of_limit"]
    limit = "" if share is None else f"  {share:4.0%} of {found['limit']}"
    return (
        f"{found['network']:>10} {found['mode']}  {seconds['median'] * 1e3:9.3f} ms "
        f"({seconds['min'] * 1e3:.3f} to {seconds['max'] * 1e3:.3f}, {len(seconds['runs'])} runs) "
        f"{found['nominal_edges_per_s'] / 1e12:8.2f} nominal "
        f"{found['executed_edges_per_s'] / 1e12:6.2f} executed TE/s  "
        f"compile {found['compile_seconds']:.2f} s  "
        f"{found['device_memory_bytes'] / 1e9:.2f} GB{limit}  features on {found['features']}  "
        f"{found['precision']}: {found['differ']} ids differ"
    )


def main() -> int:
    """Measure, print a table, write the result file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sessions.add_arguments(parser)
    parser.add_argument("--mode", default="b", help="one or more of a, b, c, as in 'bc'")
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        choices=PRECISIONS,
        help="how activations are stored, one or more",
    )
    parser.add_argument("--data", help="the folder of MNIST's files")
    parser.add_argument("--samples", type=int, help="only the first so many")
    arguments = parser.parse_args()

    gpu = driver.open_device(arguments.device)
    limits = peaks(gpu)
    session = Session.of(arguments, gpu, peaks=limits, failed=[])
    print(f"{gpu!r}: {', '.join(f'{key} {value:.4g}' for key, value in limits.items())}")
    names = sorted(
        ((neurons, layers) for neurons in challenge.SIZES for layers in LAYERS),
        key=lambda pair: (pair[0] * pair[1], pair[0]),
    )
    inputs: dict[int, teraedge.PackedFeatures] = {}
    costs = {0: 0.0}  # seconds a neuron and layer, compiling and running, by neurons
    failed: list[str] = []
    for neurons, layers in names:
        name = f"{neurons}-{layers}"
        size = neurons * layers
        # As the last network of so many neurons, else as the last of all.
        expected = costs.get(neurons, list(costs.values())[-1]) * size
        if not session.starts(name, expected):
            continue
        try:
            if neurons not in inputs:
                inputs[neurons] = challenge.features(
                    neurons, arguments.samples, source=arguments.data
                )
                # Compiles the kernels, so that times of compile are with a warm cache.
                teraedge.compile(challenge.network(neurons, 1), arguments.device).close()
            truth = challenge.categories(neurons)
            truth = truth[truth < len(inputs[neurons])]
            network = challenge.network(neurons, layers)
            cost = 0.0
            for mode, precision in product(arguments.mode, arguments.precision):
                found = measure(
                    network,
                    inputs[neurons],
                    truth,
                    mode,
                    gpu,
                    limits,
                    device=arguments.device,
                    precision=precision,
                )
                session.add(found)
                print(line(found), flush=True)
                cost += found["compile_seconds"] + sum(found["seconds"]["runs"])
            costs.pop(neurons, None)
            costs[neurons] = cost / size
        except Exception as error:
            print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            session.write(failed=failed)
    print("\n" + "\n".join(line(found) for found in session.rows))
    verdict = "ids right in all runs in fp32: PASSED"
    print(f"FAILED: {', '.join(failed)}" if failed else verdict)
    session.write()
    return 1 if failed or not session.rows else 0


if __name__ == "__main__":
    sys.exit(main())
