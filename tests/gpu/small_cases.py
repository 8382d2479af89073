"""Small networks on the GPU against the reference; what compute-sanitizer watches."""

import sys
from pathlib import Path

import numpy as np

import teraedge
from teraedge import ClippedReLU, Network, Options
from teraedge.datasets import radixnet
from teraedge.plan import gpu, resident, staged
from teraedge.plan.rates import Rates

NAMES = ["rectangular", "most die", "shared inputs", "empty rows and columns", "dense"]
OPTIONS = [Options.mode("a"), Options.mode("b"), Options.mode("c"), Options(memory=3000)]


def run_all(numbers, options):
    from engines_networks import NETWORKS, make_features

    for name in NAMES:
        network = NETWORKS[name]
        for samples in numbers:
            features = make_features(network, samples)
            expected = teraedge.reference.run(network, features)
            for chosen in options:
                with teraedge.compile(network, "cuda", chosen) as engine:
                    result = engine.run(features)
                    yield {layer.kernel for layer in engine._plan.resident}
                np.testing.assert_array_equal(result.outputs, expected.outputs)
                np.testing.assert_array_equal(result.live, expected.live)


def run_chained():
    """Run a network whose panels share inputs, in every precision."""
    layers = radixnet.uniform(
        1024, 32, 3, width=16, weights=1 / 16, bias=-0.3, activation=ClippedReLU(32), relabel=True
    )
    network = Network(list(layers))
    rng = np.random.default_rng(1)
    features = (rng.random((150, 1024)) < np.linspace(0.02, 0.4, 150)[:, None]).astype(np.float32)
    expected = teraedge.reference.run(network, features)
    for precision, error in (("fp32", 4e-5), ("fp16", 2e-2), ("bf16", 2e-1)):
        with teraedge.compile(network, "cuda", Options.mode("b", precision=precision)) as engine:
            outputs = engine.run(features).outputs
            yield {layer.kernel for layer in engine._plan.resident}
        np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=error)


def never(*_):
    return np.inf


def stage(layer, room, *_):
    return staged.settled(staged.staging(layer, 24 * 32 * 2, 2) or staged.staging(layer, room, 2))


def main():
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # No kernel but the small one, and the dense one, would get such small layers by itself.
    Rates.small_seconds, Rates.dense_seconds = (lambda *_: -1.0), never
    assert set().union(*run_all((1, 33, 150), OPTIONS[1:3])) == {"small"}
    Rates.small_seconds, Rates.dense_seconds = never, lambda *_: -1.0
    assert set().union(*run_all((33, 150), OPTIONS[:2])) == {"dense"}
    Rates.dense_seconds = never
    assert set().union(*run_all((1, 33, 150), OPTIONS)) == {"resident"}
    real = Rates.block_seconds, Rates.block_at_best
    Rates.block_seconds = Rates.block_at_best = lambda *_: -1.0
    assert set().union(*run_all((33, 150), OPTIONS[:2])) == {"block"}
    Rates.block_seconds, Rates.block_at_best = real
    resident.SAMPLES = ()
    Rates.staged_at_best = lambda *_: np.inf
    assert set().union(*run_all((150,), OPTIONS[:2])) == {"wide"}
    Rates.block_at_best = lambda *_: np.inf
    assert set().union(*run_chained()) == {"chained"}
    Rates.staged_at_best = lambda *_: 0.0
    Rates.wide_seconds = never
    gpu._best_staging = stage
    assert set().union(*run_all((150,), OPTIONS[:2])) == {"staged"}


if __name__ == "__main__":
    main()
