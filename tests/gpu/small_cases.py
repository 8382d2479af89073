"""Small networks on the GPU against the reference; what compute-sanitizer watches."""

import sys
from pathlib import Path

import numpy as np

import teraedge
from teraedge import ClippedReLU, Network, Options
from teraedge.datasets import radixnet
from teraedge.plan import block, few, gpu, resident, staged
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


def run_once():
    """Let equal samples run once, in blocks of their own."""
    rng = np.random.default_rng(2)
    layers = []
    for _ in range(14):
        weights = (rng.random((100, 100)) < 0.05) * rng.choice([0.25, 0.5], (100, 100))
        layers.append(teraedge.Layer(weights.astype(np.float32), -0.25, ClippedReLU(4)))
    network = Network(layers)
    rows = (rng.random((9, 100)) < 0.5).astype(np.float32)
    features = np.concatenate((rows[rng.integers(0, 9, 100)], np.eye(50, 100, dtype=np.float32)))
    expected = teraedge.reference.run(network, features)
    real = Rates.wave_seconds, few.FROM
    Rates.wave_seconds, few.FROM = (lambda *_: 1.0), 1
    with teraedge.compile(network, "cuda", Options(passes=False)) as engine:
        result = engine.run(features)
        assert engine._state.counters.distinct.any()
    Rates.wave_seconds, few.FROM = real
    np.testing.assert_allclose(result.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.live, expected.live)


def run_bits():
    """Run a wide first layer from packed features, with equal and distinct weights."""
    rng = np.random.default_rng(3)
    real = Rates.bits_seconds
    Rates.bits_seconds = lambda *_: -1.0
    for values in ([1.0], [0.25, 0.5, -1.0]):
        weights = (rng.random((300, 60)) < 0.1) * rng.choice(np.float32(values), (300, 60))
        weights[:, :16] = weights[:, :1]
        network = Network([teraedge.Layer(weights.astype(np.float32), -0.5, ClippedReLU(4))])
        features = (rng.random((150, 300)) < 0.05).astype(np.float32)
        expected = teraedge.reference.run(network, features)
        with teraedge.compile(network, "cuda", Options.mode("b")) as engine:
            assert engine._plan.resident[0].bit_samples
            result = engine.run(teraedge.PackedFeatures.from_dense(features))
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        np.testing.assert_array_equal(result.live, expected.live)
    Rates.bits_seconds = real


def run_halves():
    """Run the block kernel over halves, in tiles of every size, two of them and one."""
    from engine_devices import filling

    rng = np.random.default_rng(4)
    layers = []
    for n_in, n_out in ((90, 70), (70, 50), (50, 90)):
        weights = (rng.random((n_in, n_out)) < 0.3) * rng.choice([-0.5, 0.25, 0.5], (n_in, n_out))
        layers.append(teraedge.Layer(weights.astype(np.float32), -0.25, ClippedReLU(4)))
    network = Network(layers)
    kinds = block.KINDS
    for precision in ("fp16", "bf16"):
        for kind in (k for k in kinds if (k.precision, k.terms) == (precision, 1)):
            block.KINDS = (kind,)
            features = (rng.random((filling("cuda"), 90)) < 0.3).astype(np.float32)
            expected = teraedge.reference.run(network, features)
            options = Options.mode("b", precision=precision)
            with teraedge.compile(network, "cuda", options) as engine:
                outputs = engine.run(features).outputs
                yield {layer.kernel for layer in engine._plan.resident}
            np.testing.assert_allclose(outputs, expected.outputs, rtol=0, atol=5e-2)
    block.KINDS = kinds


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
    run_once()
    real = Rates.block_seconds, Rates.block_at_best
    Rates.block_seconds = Rates.block_at_best = lambda *_: -1.0
    assert set().union(*run_all((33, 150), OPTIONS[:2])) == {"block"}
    assert set().union(*run_halves()) == {"block"}
    Rates.block_seconds, Rates.block_at_best = real
    resident.SAMPLES = ()
    Rates.staged_at_best = lambda *_: np.inf
    assert set().union(*run_all((150,), OPTIONS[:2])) == {"wide"}
    run_bits()
    Rates.block_at_best = lambda *_: np.inf
    assert set().union(*run_chained()) == {"chained"}
    Rates.staged_at_best = lambda *_: 0.0
    Rates.wide_seconds = never
    gpu._best_staging = stage
    assert set().union(*run_all((150,), OPTIONS[:2])) == {"staged"}


if __name__ == "__main__":
    main()
