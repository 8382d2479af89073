"""A pruned MLP, 784-2048-2048-10, on the CPU, beside dense and sparse programs people would use.

    python benchmarks/mlp_cpu.py --output benchmarks/results/DATE-cpu-mlp.json
    python benchmarks/mlp_cpu.py --density 0.05 --batch 1 256

Weights are random and pruned by magnitude, features dense; what is compared is `Engine.run` from a
NumPy array to its rows, with default options. Rivals: torch dense (`nn.Sequential` in inference
mode), torch CSR (activations [neuron][sample], transposed beforehand, which is not counted), and
onnxruntime with the dense model. All programs take turns in one process on the same cores; a turn
is as many calls as fill `TURN` seconds, of which the median counts. Answers are compared first.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

import teraedge
from teraedge.bench.record import row, write_results
from teraedge.host import usable_cores
from teraedge.rounding import error_bound

SIZES = (784, 2048, 2048, 10)
DENSITIES = (0.05, 0.1, 0.2, 0.5)
BATCHES = (1, 16, 256, 4096)
TURN = 0.15
"""Seconds of a program's turn, about."""
SETTLE = 0.25
"""Seconds between two programs: the threads of OpenMP spin on for 0.2 s after their work."""
WARM = 3

Program = Callable[[], np.ndarray]


def share(text: str) -> float:
    """Return a density that was given as an argument.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is not a number above 0, at most 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text} is no density; give a number from 0 to 1, as 0.05"
        )
    return value


def pruned_mlp(density: float, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> teraedge.Network:
    """Return the network: He-initialised weights, of which the largest of each layer are kept.

    All of the last layer's, as is usual: with 95 % of its 20,480 weights gone, most of the hidden
    neurons before it would be read by nothing, and would be dropped when compiling.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for number, (n_in, n_out) in enumerate(pairwise(sizes), 1):
        last = number == len(sizes) - 1
        weights = rng.normal(0, np.sqrt(2 / n_in), (n_in, n_out)).astype(np.float32)
        if not last:
            weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
        bias = rng.normal(0, 0.01, n_out).astype(np.float32)
        layers.append(teraedge.Layer(weights, bias, None if last else teraedge.ReLU()))
    return teraedge.Network(layers)


def torch_programs(network: teraedge.Network, x: np.ndarray) -> dict[str, Program]:
    """Return torch's dense and CSR programs."""
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    torch.set_num_threads(usable_cores())
    modules: list[Any] = []
    for layer in network:
        linear = torch.nn.Linear(layer.n_in, layer.n_out)
        linear.weight.data = torch.from_numpy(layer.weights.toarray().T.copy())
        linear.bias.data = torch.from_numpy(np.array(layer.bias))
        modules += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1]).eval()
    rows, columns = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(x.T))
    weights = []
    for layer in network:
        csr = layer.weights.T.tocsr()
        parts = (torch.from_numpy(part.astype(np.int32)) for part in (csr.indptr, csr.indices))
        weights.append(torch.sparse_csr_tensor(*parts, torch.from_numpy(csr.data), size=csr.shape))
    biases = [torch.from_numpy(np.array(layer.bias))[:, None] for layer in network]

    def dense() -> np.ndarray:
        with torch.inference_mode():
            return model(rows).numpy()

    def csr() -> np.ndarray:
        with torch.inference_mode():
            y = columns
            for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
                y = (weight @ y).add_(bias)
                if number < len(weights):
                    y = y.clamp_(0)
            return y.numpy().T

    return {"torch dense": dense, "torch CSR": csr}


def onnx_programs(network: teraedge.Network, x: np.ndarray) -> dict[str, Program]:
    """Return onnxruntime's program of the dense model."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, arrays, name = [], [], "x0"
    for number, layer in enumerate(network, 1):
        last = number == len(network)
        arrays.append(numpy_helper.from_array(layer.weights.toarray(), f"w{number}"))
        arrays.append(numpy_helper.from_array(np.array(layer.bias), f"b{number}"))
        product = f"x{number}" if last else f"p{number}"
        nodes.append(helper.make_node("Gemm", [name, f"w{number}", f"b{number}"], [product]))
        if not last:
            nodes.append(helper.make_node("Relu", [product], [f"x{number}"]))
        name = f"x{number}"
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", size])
        for end, size in (("x0", network.n_in), (name, SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], arrays)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return {"onnxruntime dense": lambda: session.run(None, {"x0": x})[0]}


def turns(programs: dict[str, Program], repeat: int) -> dict[str, list[float]]:
    """Let the programs take turns; returns the median seconds of a call of each turn."""
    calls = {}
    for label, run in programs.items():
        for _ in range(WARM):
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
        calls[label] = max(1, min(2000, int(TURN / seconds)))
    found: dict[str, list[float]] = {label: [] for label in programs}
    for _ in range(repeat):
        for label, run in programs.items():
            time.sleep(SETTLE)
            run()
            times = []
            for _ in range(calls[label]):
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
            found[label].append(median(times))
    return found


def check(network: teraedge.Network, programs: dict[str, Program], x: np.ndarray) -> None:
    """Stop unless all give the answer: ours within the bound of fp32, rivals nearly so."""
    some = x[:64]
    expected = teraedge.reference.run(network, some).outputs
    bound = error_bound(network, some)
    for label, run in programs.items():
        allowed = bound if label == "teraedge" else np.maximum(bound, 1e-4)
        if not (np.abs(run()[:64] - expected) <= allowed).all():
            raise SystemExit(f"FAILED: {label} gives another answer")


def main() -> None:
    """Measure, print a line a case, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--density", type=share, nargs="*", default=DENSITIES,
                        help="of the weights that are left, as in 0.05")  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--output", help="write the result file here")
    arguments = parser.parse_args()
    rows = []
    for density in arguments.density:
        network = pruned_mlp(density)
        with teraedge.compile(network) as engine:
            for batch in arguments.batch:
                x = np.random.default_rng(1).random((batch, SIZES[0]), dtype=np.float32)
                programs: dict[str, Program] = {
                    "teraedge": lambda engine=engine, x=x: engine.run(x).outputs
                }
                programs |= torch_programs(network, x) | onnx_programs(network, x)
                check(network, programs, x)
                times = turns(programs, arguments.repeat)
                rows += _rows(density, batch, network, engine, times, engine.run(x))
                _print(density, batch, times)
    if arguments.output:
        write_results(arguments.output, rows)


def _rows(
    density: float,
    batch: int,
    network: teraedge.Network,
    engine: teraedge.Engine,
    times: dict[str, list[float]],
    result: teraedge.Result,
) -> list[dict[str, Any]]:
    rows = []
    for label, runs in times.items():
        mine = label == "teraedge"
        fields: dict[str, Any] = {"label": label, "density": density, "passed": mine or None}
        if mine:
            fields["compile_seconds"] = engine.compile_seconds
        else:
            fields["rival"] = label
        rows.append(
            row(
                f"mlp-{'-'.join(map(str, SIZES))}, density {density:g}",
                runs,
                mode="c",
                samples=batch,
                nominal_edges=batch * network.edges,
                executed_edges=result.executed_edges if mine else None,
                **fields,
            )
        )
    return rows


def _print(density: float, batch: int, times: dict[str, list[float]]) -> None:
    """Print how much faster we are, by the median of the ratios of turns."""
    ours = times["teraedge"]
    line = f"density {density:4.0%}, batch {batch:5}: {1e6 * median(ours):9.1f} us"
    for label, runs in times.items():
        if label != "teraedge":
            ratio = median(r / o for r, o in zip(runs, ours, strict=True))
            line += f", {label} {ratio:5.2f} x"
    print(line, flush=True)


if __name__ == "__main__":
    main()
