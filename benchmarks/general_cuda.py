"""Mode A on one GPU: the kernels alone, on random weights, beside PyTorch and CuPy.

    python benchmarks/general_cuda.py --output benchmarks/results/DATE-cuda-general.json

Nothing is pruned, merged or rewritten, all samples are live, every layer has weights of its own,
and some rows of everyone's answer are compared with the float64 reference before a time counts.
teraedge is timed from dense float32 features on the device, [sample][neuron], through all layers
to rows on the device and ids on the host; rivals from activations [neuron][sample] on the device
to the end of their last layer. Programs run one after the other in one process. Rates are of
executed edges; of a dense product too only the network's own edges count, so that they compare.

In fp32; with --precision fp16 or bf16 weights are such numbers for everyone, rivals compute in it,
and teraedge stores activations so.
"""

import argparse
import importlib.util
import sys
import time
from functools import partial
from statistics import median
from typing import Any

import cuda_networks
import numpy as np
from cuda_networks import Case, Drawn, draw, rounded
from cuda_rivals import HALF_RIVALS, RIVALS, Rival, TooLargeError, release

import teraedge
from teraedge.bench import session as sessions
from teraedge.bench.gpu import limit_seconds, peaks, share_of_limit
from teraedge.bench.record import row
from teraedge.bench.session import Session
from teraedge.engines.cuda import driver
from teraedge.options import ITEMSIZE, PRECISIONS, Precision

TOLERANCE: dict[Precision, float] = {"fp32": 5e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Relative norm of the error: fp32 through tens of layers is far below, TF32 above."""
SLOW_RIVAL = 0.3
"""Seconds above which a rival runs three times only."""
CHECKED = 16
"""Samples compared with the reference, at most."""


class FailedError(Exception):
    """The answer is wrong, or the network is no use for mode A."""


def draw_features(samples: int, neurons: int, device: str, seed: int = 0) -> Any:
    """Return features from 0.1 to 1, on the GPU if a library for that is there."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            generator = torch.Generator(device).manual_seed(seed)
            drawn = torch.rand((samples, neurons), generator=generator, device=device)
            return drawn.mul_(0.9).add_(0.1)
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        if cupy.cuda.is_available():
            generator = cupy.random.default_rng(seed)
            return generator.random((samples, neurons), dtype=np.float32) * np.float32(0.9) + 0.1
    drawn = np.random.default_rng(seed).random((samples, neurons), np.float32)
    return drawn * np.float32(0.9) + np.float32(0.1)


def halved(features: Any, precision: Precision) -> Any:
    """Return PyTorch's features as fp16 or bf16."""
    import torch

    return features.to(torch.float16 if precision == "fp16" else torch.bfloat16)


def rows_of(array: Any, ids: np.ndarray) -> np.ndarray:
    """Return some rows of a matrix on the host or on the device, on the host."""
    if hasattr(array, "cpu"):
        import torch

        return array[torch.from_numpy(ids).to(array.device)].cpu().numpy()
    if hasattr(array, "get"):
        import cupy

        return array[cupy.asarray(ids)].get()
    return np.asarray(array)[ids]


def reference(case: Case, drawn: Drawn, features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of some samples and their last rows in float64.

    Raises
    ------
    FailedError
        If a sample dies in any layer, or the last rows are too sparse or all the same.
    """
    count = min(CHECKED, case.samples, max(4, int(2e8 / case.edges)))
    chosen = np.random.default_rng(1).choice(case.samples, count, replace=False)
    ids = np.unique([0, *chosen, case.samples - 1])
    answer = teraedge.reference.run(drawn.network, rows_of(features, ids))
    expected = answer.outputs
    if any(layer.live < len(ids) for layer in answer.trace):
        raise FailedError("samples die in this network")
    if (expected != 0).mean() < 0.05 or len(np.unique(expected, axis=0)) < len(ids):
        raise FailedError("the last rows are all but zero, or all the same")
    return ids, expected


def error_of(found: np.ndarray, expected: np.ndarray, precision: Precision = "fp32") -> float:
    """Return the relative norm of an error.

    Raises
    ------
    FailedError
        If it is beyond `TOLERANCE`.
    """
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= TOLERANCE[precision]:
        raise FailedError(f"the relative error is {error:.2g}")
    return error


def ours(
    case: Case,
    drawn: Drawn,
    features: Any,
    expected: tuple[np.ndarray, np.ndarray],
    gpu: Any,
    limits: dict[str, float],
    *,
    device: str = "cuda",
    precision: Precision,
    **rule: Any,
) -> dict[str, Any]:
    """Return the row of teraedge; raises FailedError if an answer is wrong."""
    free = gpu.free_bytes()
    options = teraedge.Options.mode("a", precision=precision)
    with teraedge.compile(drawn.network, device, options) as engine:
        given, where = features, "host" if isinstance(features, np.ndarray) else "device"
        try:
            result = engine.run(given)
        except Exception as error:
            if where == "host":
                raise
            print(f"  features go back to the host: {type(error).__name__}: {error}", flush=True)
            given, where = rows_of(features, np.arange(case.samples)), "host"
            result = engine.run(given)
        error = error_of(rows_of(result.outputs, expected[0]), expected[1], precision)
        if any(layer.live != case.samples for layer in result.trace):
            raise FailedError("not all samples are live")
        layer_seconds: list[float] = []
        del result

        def once() -> float:
            begin = time.perf_counter()
            result = engine.run(given)
            live = len(result.live)
            seconds = time.perf_counter() - begin
            if live != case.samples:
                raise FailedError("not all samples are live")
            layer_seconds.append(sum(layer.seconds for layer in result.trace))
            return seconds

        runs = sessions.repeat(once, **rule)
        used = free - gpu.free_bytes()
    edges = case.edges * case.samples
    moved = 2 * ITEMSIZE[precision] * case.neurons * case.samples * case.layers
    # Neurons of a RadiX-Net share their inputs, so that one read may serve several edges.
    floors = limit_seconds(limits, edges=edges, moved_bytes=moved if case.width else None)
    return _row(
        case, runs, gpu, "teraedge", error, precision=precision,
        layer_seconds=median(layer_seconds[-len(runs):]),
        features=where,
        compile_seconds=engine.compile_seconds,
        device_memory_bytes=used,
        **share_of_limit(median(runs), floors),
    )  # fmt: skip


def theirs(
    case: Case, rival: Rival, label: str, expected: tuple[np.ndarray, np.ndarray], gpu: Any,
    precision: Precision, **rule: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the row of a rival; raises FailedError if its answer is wrong."""
    error = error_of(rival.rows(rival.run(), expected[0]), expected[1], precision)
    runs = sessions.repeat(rival.timed, **{"total": 1.0, "slow": SLOW_RIVAL} | rule)
    return _row(case, runs, gpu, label, error, rival=f"{rival.version} {label}".strip(),
                detail=rival.detail, precision=precision)  # fmt: skip


def _row(
    case: Case, runs: list[float], gpu: Any, label: str, error: float, **fields: Any
) -> dict[str, Any]:
    edges = case.edges * case.samples
    return row(
        case.name, runs, mode="a", nominal_edges=edges, executed_edges=edges,
        samples=case.samples, device=gpu.name, gpus=1, label=label, passed=True, error=error,
        neurons=case.neurons, fan_in=case.fan_in, layers=case.layers, **fields,
    )  # fmt: skip


def measure(
    case: Case, gpu: Any, limits: dict[str, float], session: Session, *, device: str = "cuda",
    rivals: list[str], precision: Precision = "fp32", **rule: Any,
) -> list[str]:  # fmt: skip
    """Add the rows of a case to a session; what fails costs a line.

    Returns
    -------
    list of str
        The programs that failed.
    """
    drawn = draw(case)
    if precision != "fp32":
        drawn = rounded(drawn, precision)
    features = draw_features(case.samples, case.neurons, device)
    expected = reference(case, drawn, features)
    programs: dict[str, Any] = {
        "teraedge": partial(ours, case, drawn, features, expected, gpu, limits, device=device)
    }
    rule["precision"] = precision

    def run_rival(label: str, **rule: Any) -> dict[str, Any]:
        given = features if precision == "fp32" else halved(features, precision)
        return theirs(case, RIVALS[label](drawn, given), label, expected, gpu, **rule)

    programs |= {label: partial(run_rival, label) for label in rivals}
    cells, failed = [], []
    for label, program in programs.items():
        release()
        try:
            found = program(**rule)
        except (TooLargeError, ImportError) as error:
            cells.append(f"{label} - ({error})")
            continue
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            print(f"  {case.name}, {label}: {type(error).__name__}: {first}", flush=True)
            failed.append(label)
            continue
        session.add(found)
        cells.append(f"{label} {found['executed_edges_per_s'] / 1e12:.3f}")
    print(f"{case.name:26} {case.layers:2} layers, TE/s: {', '.join(cells)}", flush=True)
    return failed


def table(rows: list[dict[str, Any]]) -> str:
    """Return all rates, a network a line."""
    labels = ["teraedge", *RIVALS]
    lines = [f"{'executed TE/s':26} " + " ".join(f"{label:>15}" for label in labels)]
    for network in dict.fromkeys(found["network"] for found in rows):
        mine = {found["label"]: found for found in rows if found["network"] == network}
        cells = [
            f"{mine[label]['executed_edges_per_s'] / 1e12:15.3f}" if label in mine else " " * 15
            for label in labels
        ]
        ratio = ""
        if "teraedge" in mine:
            own = mine["teraedge"]
            sparse = [mine[label]["seconds"]["median"] for label in mine
                      if label not in ("teraedge", "torch dense")]  # fmt: skip
            inside = case_rate(own)
            ratio = f"  {own['share_of_limit']:4.0%} of {own['limit']}, layers alone {inside:.2f}"
            if sparse:
                ratio += f", {min(sparse) / own['seconds']['median']:.2f} x the best sparse rival"
        lines.append(f"{network:26} {' '.join(cells)}{ratio}")
    return "\n".join(lines)


def case_rate(own: dict[str, Any]) -> float:
    """Return the rate of the layers alone, in executed TE/s."""
    edges = own["neurons"] * own["fan_in"] * own["layers"] * own["samples"]
    return edges / max(own["layer_seconds"], 1e-12) / 1e12


def main() -> int:
    """Measure, print a table, write the result file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sessions.add_arguments(parser)
    parser.add_argument("--rivals", default=",".join(RIVALS), help="separated by commas, or none")
    parser.add_argument("--max-edges", type=int, default=cuda_networks.MAX_EDGES,
                        help="of a layer; larger ones are left out")  # fmt: skip
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--list", action="store_true", help="show the networks and end")
    arguments = parser.parse_args()
    cases = cuda_networks.cases()
    if arguments.list:
        for case in cases:
            print(f"{case.name:26} {case.layers:2} layers, {case.samples} samples")
        return 0

    gpu = driver.open_device(arguments.device)
    limits = peaks(gpu)
    session = Session.of(arguments, gpu, peaks=limits)
    known = RIVALS if arguments.precision == "fp32" else HALF_RIVALS
    rivals = [label for label in known if label in arguments.rivals.split(",")]
    print(f"{gpu!r}: {', '.join(f'{key} {value:.4g}' for key, value in limits.items())}")
    failed: list[str] = []
    for case in cases:
        if not session.starts(case.name, case.expected_seconds):
            continue
        if case.neurons * case.fan_in > arguments.max_edges:
            print(f"{case.name}: left out, {case.neurons * case.fan_in / 1e6:.0f} M edges a layer")
            continue
        try:
            labels = measure(case, gpu, limits, session, device=arguments.device, rivals=rivals,
                             precision=arguments.precision)  # fmt: skip
        except Exception as error:
            print(f"{case.name}: {type(error).__name__}: {error}", flush=True)
            labels = ["teraedge"]
        failed += [f"{case.name}, {label}" for label in labels]
    print("\n" + table(session.rows))
    if failed:
        print(f"FAILED: {'; '.join(failed)}")
    session.write(failed=failed)
    return 0 if session.rows and not any(name.endswith("teraedge") for name in failed) else 1


if __name__ == "__main__":
    sys.exit(main())
