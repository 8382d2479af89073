"""What sparsity is worth on this CPU: three MNIST models in teraedge, torch and onnxruntime.

    python examples/mnist/models.py --output models
    python examples/mnist/compare.py models --output comparison.json

Each model is imported, run over the 10,000 test images and compared with torch: every prediction
must be the same. Then all programs take turns in one process, on the same cores.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from models import Digits, accuracy, density, linears, mlp
from safetensors.torch import save_file
from torch import nn

import teraedge
from teraedge.bench.record import row, write_results
from teraedge.host import usable_cores

BATCHES = (1, 16, 256, 10_000)
TURN = 0.1
"""Seconds of a program's turn, about; the median of its calls counts."""
SETTLE = 0.25
"""Seconds between two programs: the threads of OpenMP spin on for 0.2 s after their work."""

Program = Callable[[np.ndarray], np.ndarray]


def programs(model: nn.Sequential, engine: teraedge.Engine, folder: Path) -> dict[str, Program]:
    """Return functions that take rows of pixels to logits."""
    found: dict[str, Program] = {"teraedge": lambda x: engine.run(x).outputs}

    @torch.inference_mode()
    def dense(x: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(x)).numpy()

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    layers = [
        (layer.weight.detach().to_sparse_csr(), layer.bias.detach()) for layer in linears(model)
    ]

    @torch.inference_mode()
    def csr(x: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(x).T
        for number, (weight, bias) in enumerate(layers, 1):
            y = (weight @ y).add_(bias[:, None])
            y = y if number == len(layers) else y.clamp_(0)
        return y.T.numpy()

    found["torch dense"] = dense
    if density(model) < 0.5:  # of a dense one it would take minutes
        found["torch CSR"] = csr
    try:
        import onnxruntime
    except ImportError:
        return found
    path = folder / "model.onnx"
    teraedge.to_onnx(teraedge.from_torch(model), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return found | {"onnxruntime dense": lambda x: session.run(None, {name: x})[0]}


def seconds(found: dict[str, Program], x: np.ndarray, turns: int) -> dict[str, list[float]]:
    """Return the median seconds of a call in each turn of each program."""
    calls = {}
    for label, run in found.items():
        run(x)
        begin = time.perf_counter()
        run(x)
        calls[label] = max(1, min(1000, int(TURN / (time.perf_counter() - begin))))
    times: dict[str, list[float]] = {label: [] for label in found}
    for _ in range(turns):
        for label, run in found.items():
            time.sleep(SETTLE)
            run(x)
            each = []
            for _ in range(calls[label]):
                begin = time.perf_counter()
                run(x)
                each.append(time.perf_counter() - begin)
            times[label].append(median(each))
    return times


def sizes(model: nn.Sequential, network: teraedge.Network, folder: Path) -> tuple[int, int]:
    """Return the bytes of the model as teraedge stores it, and as dense fp32 safetensors."""
    teraedge.save(network, folder / "sparse.safetensors")
    save_file(model.state_dict(), folder / "dense.safetensors")
    sparse, dense = (folder / f"{name}.safetensors" for name in ("sparse", "dense"))
    return sparse.stat().st_size, dense.stat().st_size


def compare(
    name: str, model: nn.Sequential, test: Digits, batches: tuple[int, ...], turns: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what is to be said of a model, and rows of a result file.

    Raises
    ------
    SystemExit
        If a single prediction differs from torch's.
    """
    torch.set_num_threads(usable_cores())
    network = teraedge.from_torch(model)
    x = test.x.numpy()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, teraedge.compile(network) as engine:
        with torch.inference_mode():
            expected = model(test.x).numpy()
        result = engine.run(x)
        if not np.array_equal(result.labels, expected.argmax(axis=1)):
            raise SystemExit(f"FAILED: predictions of the {name} model differ from torch's")
        sparse, dense = sizes(model, network, Path(folder))
        facts = {
            "model": name,
            "density": density(model),
            "accuracy": accuracy(model, test),
            "predictions_differ": 0,
            "largest_logit_error": float(np.abs(result.outputs - expected).max()),
            "bytes": sparse,
            "dense_bytes": dense,
        }
        found = programs(model, engine, Path(folder))
        for batch in batches:
            some = np.ascontiguousarray(x[:batch])
            for label, runs in seconds(found, some, turns).items():
                mine = label == "teraedge"
                rows.append(
                    row(
                        f"mnist-{name}",
                        runs,
                        mode="c",
                        samples=len(some),
                        nominal_edges=len(some) * network.edges,
                        executed_edges=engine.run(some).executed_edges if mine else None,
                        passed=mine or None,
                        label=label,
                        density=facts["density"],
                        **({} if mine else {"rival": label}),
                    )
                )
    return facts, rows


def times_as_fast(rows: list[dict[str, Any]], label: str, samples: int) -> float:
    """Return how many times as fast teraedge is: the median of the ratios of turns."""
    ours, theirs = (
        next(r["seconds"]["runs"] for r in rows if r["label"] == one and r["samples"] == samples)
        for one in ("teraedge", label)
    )
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def report(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return what a person wants to read of a model."""
    lines = [
        f"{facts['model']}: density {facts['density']:.2%}, accuracy {facts['accuracy']:.2%}, the "
        f"same predictions, logits within {facts['largest_logit_error']:.1e}, file "
        f"{facts['bytes'] / 1e6:.2f} MB (dense {facts['dense_bytes'] / 1e6:.1f} MB)"
    ]
    rivals = dict.fromkeys(r["label"] for r in rows if r["label"] != "teraedge")
    for samples in dict.fromkeys(r["samples"] for r in rows):
        mine = next(
            r["seconds"]["median"]
            for r in rows
            if r["label"] == "teraedge" and r["samples"] == samples
        )
        against = ", ".join(
            f"{times_as_fast(rows, label, samples):.2f} x {label}" for label in rivals
        )
        lines.append(f"  {samples:6} images: {1e6 * mine:9.1f} us, {against}")
    return "\n".join(lines)


def main() -> None:
    """Compare the models of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, help="the folder that models.py wrote")
    parser.add_argument("--data", help="the folder of MNIST; by default as teraedge finds it")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", help="write the result file here")
    arguments = parser.parse_args()
    test = Digits.load("test", source=arguments.data)
    everything, models = [], []
    for name in ("pruned", "radix", "dense"):
        model = mlp().eval()
        model.load_state_dict(torch.load(arguments.models / f"{name}.pt", weights_only=True))
        facts, rows = compare(name, model, test, BATCHES, arguments.turns)
        print(report(facts, rows), flush=True)
        models.append(facts)
        everything += rows
    if arguments.output:
        write_results(arguments.output, everything, models=models)


if __name__ == "__main__":
    main()
