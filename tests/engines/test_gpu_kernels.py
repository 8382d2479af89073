"""Every tile of the resident kernel, and the wide kernel, over networks that would not get them.

The networks of the suite are small, so that all but one of them fit the largest tile.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import engine_devices
import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice
from engines_networks import NAMES_FOR_EACH_KERNEL, NETWORKS, chain, make_features

import teraedge
from teraedge import ClippedReLU, Layer, Network, Options, PackedFeatures
from teraedge.engines.cuda import driver
from teraedge.plan import block, gpu, resident
from teraedge.plan.rates import Rates
from teraedge.plan.segments import segments

device = engine_devices.gpu_device


@pytest.fixture(
    params=[
        *(("resident", samples) for samples in (16, 8, 4)),
        *(("block", samples, tiles) for samples, tiles in ((16, 2), (8, 2), (8, 1))),
        ("wide", 0),
        ("dense", 0),
    ],
    ids=lambda kernel: "-".join(map(str, kernel)),
)
def kernel(request, monkeypatch):
    """Let every layer run in one kernel, in tiles of so many samples."""
    name, samples, *tiles = request.param
    dense = name == "dense"
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: -1.0 if dense else np.inf)
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: np.inf)
    if name == "block":
        monkeypatch.setattr(Rates, "block_seconds", lambda *_: -1.0)
        monkeypatch.setattr(Rates, "block_at_best", lambda *_: -1.0)
        kinds = [k for k in block.KINDS if (k.samples, [2 - (k.held > 0)]) == (samples, tiles)]
        monkeypatch.setattr(block, "KINDS", kinds)
        return samples
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: np.inf)
    monkeypatch.setattr(resident, "SAMPLES", (samples,) if samples else ())
    monkeypatch.setattr(Rates, "resident_seconds", lambda *_: -1.0)
    monkeypatch.setattr(Rates, "staged_at_best", lambda *_: np.inf)
    return samples


@pytest.mark.parametrize("name", NAMES_FOR_EACH_KERNEL)
def test_equals_reference(device, kernel, name):
    network = NETWORKS[name]
    for samples in (1, 33, engine_devices.filling(device)):
        features = make_features(network, samples)
        expected = teraedge.reference.run(network, features)
        for mode in "ac":
            with teraedge.compile(network, device, Options.mode(mode)) as engine:
                assert {layer.samples for layer in engine._plan.resident} == {kernel}
                dense = {layer.kernel == "dense" for layer in engine._plan.resident}
                assert len(dense) == 1
                for _ in range(2):  # the second from the graph
                    result = engine.run(features)
                    np.testing.assert_array_equal(result.outputs, expected.outputs)
                    np.testing.assert_array_equal(result.live, expected.live)


def test_tiles_that_die_in_their_first_layer(device, kernel):
    """The block that had one goes on to the next, with the features of that."""
    rng = np.random.default_rng(6)
    layers = [(rng.random((48, 48)) < 0.4).astype(np.float32) for _ in range(3)]
    network = Network([Layer(weights, -2.0, ClippedReLU(64)) for weights in layers])
    samples = 4 * engine_devices.filling(device)
    share = np.where(np.arange(samples) % 2, 0.02, 0.4)[:, None]
    features = (rng.random((samples, 48)) < share).astype(np.float32)
    expected = teraedge.reference.run(network, features)
    assert samples * 0.4 < expected.trace[0].live < samples * 0.7
    with teraedge.compile(network, device, Options.mode("b")) as engine:
        for _ in range(2):
            result = engine.run(PackedFeatures.from_dense(features))
            np.testing.assert_array_equal(result.outputs, expected.outputs)
            np.testing.assert_array_equal(result.live, expected.live)


@pytest.mark.parametrize("memory", [None, "1KB"], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", ["rectangular", "most die", "shared inputs"])
def test_packed_features(device, kernel, name, memory):
    """The first layer may read bits, also if it comes from the host in every run."""
    network = NETWORKS[name]
    rng = np.random.default_rng(8)
    options = replace(Options.mode("b"), memory=memory)
    for samples in (1, 150):
        features = (rng.random((samples, network.n_in)) < 0.4).astype(np.float32)
        expected = teraedge.reference.run(network, features)
        with teraedge.compile(network, device, options) as engine:
            for _ in range(2):
                result = engine.run(PackedFeatures.from_dense(features))
                np.testing.assert_array_equal(result.outputs, expected.outputs)
                np.testing.assert_array_equal(result.live, expected.live)
            assert {segment.samples for segment in engine._ran} == {kernel}


@pytest.mark.parametrize("kernel", [("wide", 0)], indirect=True, ids=str)
@pytest.mark.parametrize("tile", [32, 16, 8])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("equal", [True, False])
def test_packed_features_of_a_wide_layer(device, kernel, tile, precision, equal, monkeypatch):
    """In a kernel of their own: long and empty lists, tall panels and single neurons."""
    monkeypatch.setattr(Rates, "bits_seconds", lambda *_: -1.0)
    monkeypatch.setattr(gpu, "BIT_SAMPLES", (tile,))
    rng = np.random.default_rng(tile + equal)
    bias = -0.5 if equal else 0.5  # which lets samples die, or none
    for n_in, n_out in ((333, 40), (784, 130)):
        weights = (rng.random((n_in, n_out)) < 0.05).astype(np.float32)
        weights[:, :16] = weights[:, :1]  # neurons that read the same inputs
        weights[:, 20], weights[:, 21] = 1, 0
        if not equal:
            weights *= rng.choice(np.float32([0.25, 0.5, -1]), weights.shape)
        second = (rng.random((n_out, 30)) < 0.1).astype(np.float32)
        layers = [teraedge.Layer(w, bias, ClippedReLU(32)) for w in (weights, second)]
        network = teraedge.Network(layers)
        options = replace(Options.mode("b"), precision=precision)
        with teraedge.compile(network, device, options) as engine:
            assert engine._plan.resident[0].bit_samples == tile
            for samples in (1, 33, 150, 0):
                features = (rng.random((samples, n_in)) < 0.01).astype(np.float32)
                features[::3] = 0
                expected = teraedge.reference.run(network, features)
                for _ in range(2):
                    for given in (PackedFeatures.from_dense(features), features):
                        result = engine.run(given)
                        np.testing.assert_array_equal(result.outputs, expected.outputs)
                        np.testing.assert_array_equal(result.live, expected.live)


@pytest.mark.parametrize("kernel", [("wide", 0)], indirect=True, ids=str)
@pytest.mark.parametrize("tile", [32, 16, 8])
def test_packed_features_of_many_tall_panels(device, kernel, tile, monkeypatch):
    """More of them than threads: neurons of a panel have their counts in common."""
    monkeypatch.setattr(Rates, "bits_seconds", lambda *_: -1.0)
    monkeypatch.setattr(gpu, "BIT_SAMPLES", (tile,))
    rng = np.random.default_rng(tile)
    panels = gpu.BIT_THREADS[tile] // 2 + 37
    weights = np.repeat(rng.random((70, panels)) < 0.1, 16, axis=1).astype(np.float32)
    network = Network([Layer(weights, rng.choice([-0.5, -2], weights.shape[1]), ClippedReLU(32))])
    with teraedge.compile(network, device, Options.mode("b")) as engine:
        first = engine._plan.resident[0]
        assert first.bit_samples == tile
        assert first.tall.height * first.tall.count == weights.shape[1]
        assert first.tall.count * 2 > gpu.BIT_THREADS[tile]
        for samples in (33, 150):
            features = (rng.random((samples, 70)) < 0.3).astype(np.float32)
            expected = teraedge.reference.run(network, features)
            for given in (PackedFeatures.from_dense(features), features):
                result = engine.run(given)
                np.testing.assert_array_equal(result.outputs, expected.outputs)
                np.testing.assert_array_equal(result.live, expected.live)


@pytest.mark.parametrize("kernel", [("block", 16, 2), ("block", 8, 1)], indirect=True, ids=str)
@pytest.mark.parametrize("size", [64, 96, 104])
def test_block_segments_hand_samples_on(device, kernel, size):
    """Samples die within a segment, between two and not at all; many tiles follow each other."""
    rng = np.random.default_rng(size)
    network = chain(rng, [size] * 15, -5, ClippedReLU(8), density=0.3)
    features = make_features(network, 1000)
    expected = teraedge.reference.run(network, features)
    assert 0 < len(expected.live) < 800
    with teraedge.compile(network, device, Options.mode("b")) as engine:
        plan = engine._plan
        parts = list(segments(plan.resident, plan.droppable.tolist(), 0))
        assert len(parts) > 2
        assert any(part.takes_own for part in parts) == (size % 32 == 0)
        for _ in range(2):
            result = engine.run(features)
            np.testing.assert_array_equal(result.live, expected.live)
            np.testing.assert_array_equal(result.outputs, expected.outputs)


def test_layers_of_different_kernels_follow_each_other(device, monkeypatch):
    """Tiles of 32, 16 and 8 samples and the wide kernel in one network."""
    rng = np.random.default_rng(0)
    sizes = [100, 1500, 3000, 7200, 50]
    layers = [
        teraedge.Layer((rng.random((a, b)) < 3 / a).astype(np.float32), -1, teraedge.ClippedReLU(4))
        for a, b in pairwise(sizes)
    ]
    network = teraedge.Network(layers)
    features = make_features(network, 70)
    expected = teraedge.reference.run(network, features)
    monkeypatch.setattr(Rates, "staged_at_best", lambda *_: np.inf)
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: np.inf)
    for mode in "ab":
        with teraedge.compile(network, device, Options.mode(mode)) as engine:
            assert len({layer.samples for layer in engine._plan.resident}) >= 3
            result = engine.run(features)
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        np.testing.assert_array_equal(result.live, expected.live)


@pytest.mark.skipif(not build.available(), reason=build.REASON)
@pytest.mark.parametrize("mode", ["a", "b"])
def test_more_samples_than_the_device_holds(monkeypatch, mode):
    """They run in batches, and rows go to the host in between."""
    network = NETWORKS["rectangular"]
    features = make_features(network, 989)
    expected = teraedge.reference.run(network, features)
    monkeypatch.setattr(driver, "open_device", partial(EmulatedDevice, memory_bytes=2**18))
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: np.inf)
    with teraedge.compile(network, "cuda", Options.mode(mode)) as engine:
        for _ in range(2):
            result = engine.run(features)
            assert engine._state.samples < 500
            np.testing.assert_array_equal(result.outputs, expected.outputs)
            np.testing.assert_array_equal(result.live, expected.live)
            assert len(result.trace) == len(network)
            assert result.trace[-1].live == (len(expected.live) if mode == "b" else 989)


@pytest.mark.parametrize("name", ["most die", "wakes up"])
def test_results_outlive_later_runs_and_the_engine(device, name):
    """Rows wait in the engine's tiles: asked for late, they are still those of their own run."""
    network = NETWORKS[name]
    batches = [make_features(network, samples) for samples in (33, 150, 70)]
    with teraedge.compile(network, device) as engine:
        results = [engine.run(features) for features in batches]
    for features, result in zip(batches, results, strict=True):
        expected = teraedge.reference.run(network, features)
        np.testing.assert_array_equal(result.live, expected.live)
        np.testing.assert_array_equal(result.outputs, expected.outputs)


def test_results_that_are_put_aside(device):
    """35 tasks for 16 warps: some have a third one, whose result registers do not hold."""
    rng = np.random.default_rng(6)
    network = chain(rng, [900, 1100, 1100, 40], -1, ClippedReLU(9), density=0.02)
    features = make_features(network, 40)
    expected = teraedge.reference.run(network, features).outputs
    with teraedge.compile(network, device, Options.mode("a")) as engine:
        layer = engine._plan.resident[1]
        assert (layer.samples, layer.tall.count, layer.single.count) == (32, 0, 35)
        np.testing.assert_array_equal(engine.run(features).outputs, expected)
