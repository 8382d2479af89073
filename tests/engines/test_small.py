"""The small kernel, which takes four samples a warp through many layers."""

from itertools import pairwise

import engine_devices
import numpy as np
import pytest
from engines_networks import NETWORKS, make_features

import teraedge
from teraedge import Options
from teraedge.plan import small
from teraedge.plan.rates import Rates

device = engine_devices.gpu_device


@pytest.fixture(autouse=True)
def _only_small(monkeypatch):
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: -1.0)
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: np.inf)
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: np.inf)


def packed(network, samples):
    bits = np.random.default_rng(samples).random((samples, network.n_in)) < 0.5
    return teraedge.PackedFeatures(np.packbits(bits, axis=1), network.n_in), bits.astype(np.float32)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_equals_reference(device, name):
    network = NETWORKS[name]
    for samples in (1, 33, 150):
        features = make_features(network, samples)
        expected = teraedge.reference.run(network, features)
        for mode in "abc":
            with teraedge.compile(network, device, Options.mode(mode)) as engine:
                kernels = {layer.kernel for layer in engine._plan.resident}
                assert "small" in kernels or name == "wide indices"
                for _ in range(2):  # the second from the graph
                    result = engine.run(features)
                    np.testing.assert_allclose(
                        result.outputs, expected.outputs, rtol=1e-5, atol=1e-5
                    )
                    np.testing.assert_array_equal(result.live, expected.live)


def chain(sizes, fan_in, seed=0):
    """Return layers in which some samples die."""
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        weights = (rng.random((n_in, n_out)) < fan_in / n_in) * rng.choice(
            [0.25, 0.5], (n_in, n_out)
        )
        layers.append(teraedge.Layer(weights.astype(np.float32), -0.25, teraedge.ClippedReLU(4)))
    return teraedge.Network(layers)


@pytest.mark.parametrize("sizes", [[64] * 12, [1000, 40, 70, 120, 33, 700], [200, 64, 900, 64, 64]])
def test_segments_begin_and_end_with_wide_layers(device, sizes, monkeypatch):
    """Segments end where rows between two layers would be too wide, or layers too many."""
    monkeypatch.setattr(small, "LAYERS", 5)
    network = chain(sizes, 4)
    given, dense = packed(network, 150)
    expected = teraedge.reference.run(network, dense)
    assert len(expected.live) > 0
    for mode in "ab":
        with teraedge.compile(network, device, Options.mode(mode)) as engine:
            assert {layer.kernel for layer in engine._plan.resident} == {"small"}
            for features in (given, dense, given):
                result = engine.run(features)
                np.testing.assert_allclose(result.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
                np.testing.assert_array_equal(result.live, expected.live)
                live = [layer.live for layer in result.trace]
                assert live[-1] == (len(expected.live) if mode == "b" else 150)


def test_outputs_of_zero_are_not_live(device):
    """Lanes that have no neuron tell nothing, whatever the bias is."""
    weights = np.float32([[1], [1], [1], [0], [0]])
    network = teraedge.Network([teraedge.Layer(weights, -3.0)])
    features = np.float32([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    for mode in "abc":
        with teraedge.compile(network, device, Options.mode(mode)) as engine:
            result = engine.run(features)
        np.testing.assert_array_equal(result.outputs, [[0], [-1]])
        np.testing.assert_array_equal(result.live, [1])


def test_room_decides_where_segments_end(device):
    with teraedge.compile(chain([64] * 9, 4), device, Options.mode("a")) as engine:
        layers = engine._plan.resident
    extent = small.Extent()
    for layer in layers:
        extent = extent.more(layer, 40)
    assert extent.fits(layers[0].shared)
    assert extent.layers == 8
    for layer in layers * 130:
        extent = extent.more(layer, 40)
    assert not extent.fits(layers[0].shared)
