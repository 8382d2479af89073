"""The chained kernel over networks that share inputs, from any features, as samples die."""

from dataclasses import replace

import engine_devices
import numpy as np
import pytest
from engines_networks import RADIX_WEIGHTS, radix, radix_features

import teraedge
from teraedge import Layer, Network, Options, PackedFeatures
from teraedge.plan import resident
from teraedge.plan.rates import Rates


@pytest.fixture(params=engine_devices.DEVICES[1:])
def device(request, monkeypatch):
    """Let layers run in the chained kernel, or in the wide one."""
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: np.inf)
    monkeypatch.setattr(Rates, "staged_at_best", lambda *_: np.inf)
    monkeypatch.setattr(resident, "SAMPLES", ())
    name, undo = engine_devices.opened(request.param)
    yield name
    undo()


@pytest.mark.parametrize("weights", RADIX_WEIGHTS)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("mode", ["a", "b"])
def test_equals_reference(device, weights, packed, mode):
    net = radix(RADIX_WEIGHTS[weights], 5, -0.3)
    with teraedge.compile(net, device, Options.mode(mode)) as engine:
        assert {layer.kernel for layer in engine._plan.resident} == {"chained"}
        for samples in (1, 33, 150):
            features = radix_features(samples)
            expected = teraedge.reference.run(net, features)
            given = PackedFeatures.from_dense(features) if packed else features
            for _ in range(2):  # the second from the graph
                result = engine.run(given)
                np.testing.assert_allclose(result.outputs, expected.outputs, rtol=0, atol=4e-5)
                np.testing.assert_array_equal(result.live, expected.live)
        if mode == "b":
            live = [layer.live for layer in result.trace]
            assert live[-1] < 150
            assert engine._state.counters.compacts.any()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_layers_from_the_host_in_every_run(device, packed):
    """Also the first, which may read bits."""
    net, features = radix(RADIX_WEIGHTS["equal"], 3, -0.3), radix_features(150)
    expected = teraedge.reference.run(net, features)
    given = PackedFeatures.from_dense(features) if packed else features
    with teraedge.compile(net, device, replace(Options.mode("b"), memory="1KB")) as engine:
        assert not engine._plan.resident
        for _ in range(2):
            result = engine.run(given)
            np.testing.assert_allclose(result.outputs, expected.outputs, rtol=0, atol=4e-5)
            np.testing.assert_array_equal(result.live, expected.live)
        assert {segment.kernel for segment in engine._ran} == {"chained"}


def test_smooth_activations(device):
    net = radix(RADIX_WEIGHTS["random"], 5, -0.3, activation=teraedge.Tanh())
    features = radix_features(70)
    with teraedge.compile(net, device) as engine:
        outputs = engine.run(features).outputs
    expected = teraedge.reference.run(net, features).outputs
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


def test_a_sample_alone_has_the_same_bits(device):
    """How many panels a warp takes in a run depends on how many samples there are."""
    net, features = radix(RADIX_WEIGHTS["random"], 5, -0.3), radix_features(150)
    with teraedge.compile(net, device, Options.mode("a")) as engine:
        outputs = engine.run(features).outputs
        for k in (0, 77, 149):
            alone = engine.run(features[k : k + 1]).outputs
            np.testing.assert_array_equal(alone[0], outputs[k])


def test_beyond_two_byte_indices_and_before_other_kernels(device):
    rng = np.random.default_rng(0)
    wide = np.zeros((70_000, 64), np.float32)
    wide[69_000:69_032] = rng.integers(1, 9, (32, 64)) / 64
    narrow = np.zeros((64, 40), np.float32)
    narrow[:, :20] = rng.random((64, 20)) < 0.05  # no panels: the wide kernel
    relu = teraedge.ReLU()
    net = Network([Layer(wide, -1.0, relu), Layer(narrow, -0.5, relu)])
    features = np.zeros((100, 70_000), np.float32)
    features[:, 69_000:69_032] = rng.random((100, 32)) < np.linspace(0, 0.5, 100)[:, None]
    expected = teraedge.reference.run(net, features)
    for given in (features, PackedFeatures.from_dense(features)):
        with teraedge.compile(net, device, Options.mode("b")) as engine:
            assert [part.kernel for part in engine._plan.resident] == ["chained", "wide"]
            result = engine.run(given)
        np.testing.assert_allclose(result.outputs, expected.outputs, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(result.live, expected.live)
