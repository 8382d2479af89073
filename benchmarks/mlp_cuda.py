"""A pruned MLP with hidden layers of 4096 neurons on one GPU, beside PyTorch dense and CSR.

    python benchmarks/mlp_cuda.py --output benchmarks/results/DATE-cuda-mlp.json

Weights are random and pruned by magnitude, all but those of the last layer. Features lie on the
device as a program reads them, and outputs stay there; what is compared is a whole run, of
`Engine.run` with what it checks and counts, and of `nn.Sequential` (ReLU in place) under
`inference_mode`. teraedge runs in fp32 and with activations stored as fp16, torch dense in fp32
(without TF32), TF32 and fp16, torch CSR in fp32 [neuron][sample]. The density at which a program
starts to gain on dense fp16 is interpolated between those measured.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from mlp_cpu import pruned_mlp, share

import teraedge
from teraedge.bench import session as sessions
from teraedge.bench.record import row
from teraedge.bench.session import Session
from teraedge.engines.cuda import driver

SIZES = (784, 4096, 4096, 4096, 10)
DENSITIES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
BATCHES = (8192,)
REPEATS, WARM = 15, 3
BEST = "torch dense fp16"
TOLERANCE = {"fp32": 2e-5, "tf32": 5e-3, "fp16": 2e-2}
"""Largest error beside the largest output."""

Program = Callable[[], Any]


def dense_programs(network: teraedge.Network, x: Any) -> dict[str, Program]:
    """Return torch's dense programs, by precision."""
    import torch

    found: dict[str, Program] = {}
    for precision in ("fp32", "tf32", "fp16"):
        dtype = torch.float16 if precision == "fp16" else torch.float32
        modules: list[Any] = []
        for layer in network:
            linear = torch.nn.Linear(layer.n_in, layer.n_out)
            linear.weight.data = torch.from_numpy(layer.weights.toarray().T.copy())
            linear.bias.data = torch.from_numpy(np.array(layer.bias))
            modules += [linear, torch.nn.ReLU(inplace=True)]
        model = torch.nn.Sequential(*modules[:-1]).to(x.device, dtype).eval()
        given = x.to(dtype)

        def run(model: Any = model, given: Any = given, tf32: bool = precision == "tf32") -> Any:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            with torch.inference_mode():
                return model(given)

        found[f"torch dense {precision}"] = run
    return found


def csr_program(network: teraedge.Network, x: Any) -> Program:
    """Return torch's sparse program in fp32."""
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    start, steps = x.T.contiguous(), []
    for layer in network:
        csr = layer.weights.T.tocsr()
        parts = (csr.indptr.astype(np.int32), csr.indices.astype(np.int32), csr.data)
        arrays = (torch.from_numpy(part).to(x.device) for part in parts)
        weight = torch.sparse_csr_tensor(*arrays, size=csr.shape)
        steps.append((weight, torch.from_numpy(np.array(layer.bias)).to(x.device)[:, None]))

    def run() -> Any:
        y = start
        with torch.inference_mode():
            for number, (weight, bias) in enumerate(steps, 1):
                y = (weight @ y).add_(bias)
                if number < len(steps):
                    y = y.clamp_(0)
        return y.T

    return run


def timed(run: Program) -> list[float]:
    """Return the seconds of runs, from a device that waits to one that waits."""
    import torch

    times = []
    for _ in range(WARM + REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times[WARM:]


def check(label: str, found: Any, expected: np.ndarray) -> float:
    """Return the largest error beside the largest output; stop where it is too large."""
    rows = np.asarray(found[: len(expected)].cpu().float())
    error = float(np.abs(rows - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE[label.split()[-1]]:
        raise SystemExit(f"FAILED: {label} gives another answer: error {error:.2g}")
    return error


def measure(density: float, batch: int, session: Session, device: str) -> dict[str, float]:
    """Measure one network and batch; returns the median of each program."""
    import torch

    network = pruned_mlp(density, sizes=SIZES)
    x = np.random.default_rng(1).random((batch, SIZES[0]), dtype=np.float32)
    expected = teraedge.reference.run(network, x[:32]).outputs
    there, medians = torch.from_numpy(x).to(device), {}
    engines = {
        f"teraedge {precision}": teraedge.compile(
            network, device, teraedge.Options.mode("c", precision=precision)
        )
        for precision in ("fp32", "fp16")
    }
    programs: dict[str, Program] = {
        label: lambda engine=engine: engine.run(there).outputs for label, engine in engines.items()
    }
    programs |= dense_programs(network, there) | {"torch CSR fp32": csr_program(network, there)}
    for label, run in programs.items():
        error, times = check(label, run(), expected), timed(run)
        medians[label] = median(times)
        mine = label.startswith("teraedge")
        executed = engines[label].run(there).executed_edges if mine else None
        session.add(
            row(
                f"mlp-{'-'.join(map(str, SIZES))}, density {density:g}",
                times,
                mode="c",
                device=device,
                precision=label.split()[-1],
                samples=batch,
                nominal_edges=batch * network.edges,
                executed_edges=executed,
                label=label,
                density=density,
                passed=mine or None,
                error=error,
                **({} if mine else {"rival": f"{label}, torch {torch.__version__}"}),
            )
        )
    for engine in engines.values():
        engine.close()
    return medians


def start_of_gain(medians: dict[float, dict[str, float]], label: str) -> str:
    """Return at what density a program starts to gain on dense fp16."""
    ratios = {density: found[BEST] / found[label] for density, found in sorted(medians.items())}
    if all(ratio < 1 for ratio in ratios.values()):
        return f"gains at none of {', '.join(f'{density:g}' for density in ratios)}"
    for (below, gain), (above, loss) in pairwise(ratios.items()):
        if gain >= 1 > loss:
            share = np.log(gain) / np.log(gain / loss)
            return f"gains below a density of about {below * (above / below) ** share:.2g}"
    return f"gains at all of {', '.join(f'{density:g}' for density in ratios)}"


def main() -> None:
    """Measure, print a line a case, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sessions.add_arguments(parser)
    parser.add_argument("--density", type=share, nargs="*", default=DENSITIES,
                        help="of the weights that are left, as in 0.05")  # fmt: skip
    parser.add_argument("--batch", type=int, nargs="*", default=BATCHES)
    arguments = parser.parse_args()
    session = Session.of(arguments, driver.open_device(arguments.device))
    for batch in arguments.batch:
        medians = {}
        for density in arguments.density:
            name = f"density {density:g}, batch {batch}"
            if not session.starts(name, 15.0):
                continue
            medians[density] = found = measure(density, batch, session, arguments.device)
            cells = (f"{label} {seconds * 1e3:.2f}" for label, seconds in found.items())
            print(f"{name}, ms: {', '.join(cells)}", flush=True)
        for label in ("teraedge fp32", "teraedge fp16") if medians else ():
            print(f"batch {batch}: {label} {start_of_gain(medians, label)}, against {BEST}")


if __name__ == "__main__":
    main()
