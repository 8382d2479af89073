"""Every activation and head, on every engine, against the float64 reference."""

from itertools import pairwise

import numpy as np
import pytest
from engine_devices import options_for
from engines_networks import make_features, weights

import teraedge
from teraedge import (
    GELU,
    ClippedReLU,
    Hardtanh,
    Identity,
    Layer,
    Network,
    Options,
    PackedFeatures,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.errors import OptionsError

CURVES = [Sigmoid(), Tanh(), GELU(), GELU("tanh"), SiLU()]
BOUNDS = [Hardtanh(-2, 3), Hardtanh(1, 4), Hardtanh(None, 2), Hardtanh(-1, None), ClippedReLU(2)]
OPTIONS = {"a": Options.mode("a"), "c": Options.mode("c"), "half resident": Options(memory="9KB")}
EXTREMES = np.array([0, -0.0, 1e-30, -1e-6, 0.5, -0.7, 3, -8, 30, -40, 95, -110, 1e4, -1e9])


def random_network(activation, bias=None, head=None, sizes=(40, 70, 33, 20)):
    rng = np.random.default_rng(5)
    layers = []
    for a, b in pairwise(sizes):
        csr = weights(rng, a, b)
        csr.data *= rng.uniform(0.1, 0.6, csr.nnz).astype(np.float32)
        layers.append(Layer(csr, bias, activation))
    return Network(layers, head=head)


def assert_within_bound(network, result, features):
    expected = teraedge.reference.run(network, features)
    error = np.abs(result.outputs - expected.outputs)
    assert (error <= result.error_bound(network, features)).all(), error.max()
    np.testing.assert_allclose(result.outputs, expected.outputs, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("samples", [0, 1, 33, 150])
@pytest.mark.parametrize("bias", [None, -0.25, 0.5])
@pytest.mark.parametrize("activation", CURVES, ids=repr)
def test_curves(device, activation, bias, samples):
    network = random_network(activation, bias)
    features = make_features(network, samples)
    for options in options_for(device, OPTIONS).values():
        with teraedge.compile(network, device, options) as engine:
            assert_within_bound(network, engine.run(features), features)


@pytest.mark.parametrize("activation", CURVES, ids=repr)
def test_curves_far_out(device, activation):
    network = Network([Layer([[1.0]], activation=activation)])
    result = teraedge.compile(network, device).run(EXTREMES[:, None])
    expected = activation(EXTREMES)
    np.testing.assert_allclose(result.outputs[:, 0], expected, rtol=2e-6, atol=1e-7)
    assert (result.outputs[:2] == activation.at_zero).all()


@pytest.mark.parametrize("activation", BOUNDS, ids=repr)
def test_bounds_are_exact(device, activation):
    rng = np.random.default_rng(1)
    layers = [Layer(weights(rng, a, b), -1, activation) for a, b in pairwise((40, 60, 30, 9))]
    network = Network(layers)
    features = make_features(network, 150)
    expected = teraedge.reference.run(network, features)
    for options in options_for(device, OPTIONS).values():
        result = teraedge.compile(network, device, options).run(features)
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        np.testing.assert_array_equal(result.live, expected.live)


def test_every_activation_in_one_network(device):
    rng = np.random.default_rng(2)
    layers = []
    for activation in [*CURVES, Hardtanh(-1, 1), ReLU(), Identity(), *CURVES]:
        csr = weights(rng, 40, 40)
        csr.data *= np.float32(0.3)
        layers.append(Layer(csr, rng.normal(size=40), activation))
    network = Network(layers, head="log_softmax")
    features = make_features(network, 150)
    for given in (features, PackedFeatures.from_dense(features)):
        result = teraedge.compile(network, device).run(given)
        assert_within_bound(network, result, features)


@pytest.mark.parametrize("activation", [ReLU(), SiLU()], ids=repr)
def test_samples_that_stay_zero_are_dropped_before_curves(device, activation):
    network = random_network(activation)
    features = make_features(network, 100)
    features[::3] = 0
    result = teraedge.compile(network, device, Options.mode("b")).run(features)
    expected = teraedge.reference.run(network, features)
    assert result.exact == ("prune",)
    assert result.trace[-1].live < 100
    np.testing.assert_array_equal(result.live, expected.live)
    assert_within_bound(network, result, features)


@pytest.mark.parametrize("samples", [0, 1, 33, 150])
@pytest.mark.parametrize("head", ["softmax", "log_softmax"])
def test_heads(device, head, samples):
    plain, network = random_network(ReLU(), -0.1), random_network(ReLU(), -0.1, head)
    features = make_features(network, samples)
    features[:1] = 0  # a dead sample has outputs, too
    expected = teraedge.reference.run(network, features)
    without = teraedge.compile(plain, device).run(features)
    for options in options_for(device, OPTIONS).values():
        result = teraedge.compile(network, device, options).run(features)
        assert_within_bound(network, result, features)
        np.testing.assert_array_equal(result.live, without.live)
        np.testing.assert_array_equal(result.labels, without.labels)
        np.testing.assert_array_equal(result.live_outputs, result.outputs[result.live])
    if head == "softmax":
        np.testing.assert_allclose(expected.outputs.sum(axis=1), 1)


def test_top(device):
    network = random_network(Identity(), head="softmax")
    features = make_features(network, 33)
    result = teraedge.compile(network, device).run(features)
    top = result.top(5)
    np.testing.assert_array_equal(top.labels[:, 0], result.labels)
    assert (np.diff(top.values, axis=1) <= 0).all()
    np.testing.assert_array_equal(
        top.values, np.take_along_axis(result.outputs, top.labels, axis=1)
    )
    assert result.top(20).labels.shape == (33, 20)
    for k in (0, 21, 1.5):
        with pytest.raises(OptionsError, match="give a whole number from 1 to 20"):
            result.top(k)
