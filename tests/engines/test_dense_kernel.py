"""The dense kernel: which layers take it, and how far its answers lie from float64."""

from itertools import pairwise

import engine_devices
import numpy as np
import pytest
from cuda_emulator import build
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import Layer, Network, ReLU
from teraedge.plan import gpu
from teraedge.plan.dense import dense_terms
from teraedge.plan.rates import Rates
from teraedge.rounding import error_bound

SHARED = 227 * 1024


device = engine_devices.gpu_device


@pytest.fixture
def only_dense(monkeypatch):
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: -1.0)


def rounded(values, terms):
    """Return values that so many bf16 terms hold."""
    if terms == 3:
        return values
    if terms == 2:
        return values.astype(np.float16).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def random_layer(rng, n_in, n_out, density=1.0, terms=3, activation=None, bias=0.1):
    weights = rng.normal(0, 1 / np.sqrt(n_in), (n_in, n_out)).astype(np.float32)
    weights = rounded(weights, terms) * (rng.random((n_in, n_out)) < density)
    return Layer(weights, rng.normal(0, bias, n_out).astype(np.float32), activation or ReLU())


@pytest.mark.parametrize("sizes", [(512, 512), (700, 300), (1024, 2000)])
def test_full_layers_run_dense_and_sparse_ones_do_not(sizes):
    rng = np.random.default_rng(0)
    kernels = {}
    for density in (0.01, 0.03, 0.1, 0.5, 1.0):
        layer = random_layer(rng, *sizes, density)
        kernels[density] = gpu.lay_out(layer, SHARED, tensor_cores=True).kernel
    assert kernels[1.0] == "dense"
    assert kernels[0.01] != "dense"
    assert kernels[0.03] != "dense"
    dense = [kernel == "dense" for kernel in kernels.values()]
    assert dense == sorted(dense)  # once, and from there on
    assert gpu.lay_out(layer, SHARED, tensor_cores=False).kernel != "dense"


@pytest.mark.parametrize(
    ("terms", "activation"),
    [
        (1, ReLU()),
        (2, teraedge.Identity()),
        (3, teraedge.ClippedReLU(1)),
        (3, teraedge.Tanh()),
        (3, teraedge.GELU()),
    ],
    ids=repr,
)
def test_within_the_bound_of_fp32(device, only_dense, terms, activation):
    rng = np.random.default_rng(terms)
    shapes = [(130, 97), (97, 201), (201, 10)]
    network = Network(
        [random_layer(rng, *shape, terms=terms, activation=activation) for shape in shapes]
    )
    assert len(dense_terms(network[0]).bits) == terms
    for samples in (1, 70):
        features = rng.normal(size=(samples, 130)).astype(np.float32)
        expected = teraedge.reference.run(network, features).outputs
        with teraedge.compile(network, device) as engine:
            assert {layer.kernel for layer in engine._plan.resident} == {"dense"}
            result = engine.run(features)
        assert (np.abs(result.outputs - expected) <= error_bound(network, features)).all()
        assert any("dense layers" in line for line in result.rounding)


@pytest.mark.skipif(not build.available(), reason=build.REASON)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_and_density(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = [data.draw(st.integers(1, 220)) for _ in range(3)]
    density = data.draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    network = Network([random_layer(rng, *shape, density) for shape in pairwise(sizes)])
    features = rng.normal(size=(data.draw(st.integers(0, 70)), sizes[0])).astype(np.float32)
    expected = teraedge.reference.run(network, features).outputs
    name, undo = engine_devices.opened("emulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rates, "dense_seconds", lambda *_: -1.0)
        try:
            with teraedge.compile(network, name) as engine:
                result = engine.run(features)
        finally:
            undo()
    assert (np.abs(result.outputs - expected) <= error_bound(network, features)).all()
