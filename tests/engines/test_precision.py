"""Activations stored as fp16 and bf16, in every kernel that can, against a float64 model."""

import engine_devices
import numpy as np
import pytest
from engines_networks import (
    NAMES_FOR_EACH_KERNEL,
    NETWORKS,
    RADIX_WEIGHTS,
    chain,
    make_features,
    radix,
    radix_features,
)

import teraedge
from teraedge import Identity, Layer, Network, Options, PackedFeatures, ReLU
from teraedge.errors import OptionsError
from teraedge.plan import block, gpu, resident
from teraedge.plan.rates import Rates
from teraedge.rounding import LARGEST, error_bound

HALVES = ("fp16", "bf16")


def stored(values, precision):
    """Return float64 values rounded as they are stored."""
    held = np.clip(values, -LARGEST[precision], LARGEST[precision])
    if precision == "fp16":
        return held.astype(np.float16).astype(np.float64)
    bits = held.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def model(network, features, precision):
    """Run a network in float64, rounding features and the outputs of every layer."""
    y = stored(np.asarray(features, np.float64), precision)
    for layer in network:
        y = y @ layer.weights.astype(np.float64)
        y = stored(layer.activation(y + (0 if layer.bias is None else layer.bias)), precision)
    return y


device = engine_devices.gpu_device


KERNELS = [
    "resident-32",
    "resident-8",
    "resident-4",
    "block-32",
    "block-16",
    "block-held",
    "block-8",
    "wide",
    "dense",
]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    """Let every layer run in one kernel, perhaps in tiles of so many samples."""
    name, _, samples = request.param.partition("-")
    if name == "block":
        kinds = [k for k in block.KINDS if samples in ("held", str(k.samples))]
        if samples == "held":
            kinds = [k for k in kinds if k.held]
        monkeypatch.setattr(block, "KINDS", kinds)
    fastest = -3.0 if name == "block" else np.inf
    monkeypatch.setattr(Rates, "block_seconds", lambda *_: fastest)
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: fastest)
    seconds = -1.0 if name == "dense" else np.inf
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: seconds)
    if name == "block":
        samples = 4
    monkeypatch.setattr(resident, "SAMPLES", (int(samples),) if samples else ())
    monkeypatch.setattr(Rates, "resident_seconds", lambda *_: -1.0)
    return name


def check(device, network, features, precision, kernel=None, modes="ac"):
    """Compare with the model, to the last bit, where all sums are exact."""
    expected = model(network, features, precision)
    for mode in modes:
        options = Options.mode(mode, precision=precision)
        with teraedge.compile(network, device, options) as engine:
            kernels = {layer.kernel for layer in engine._plan.resident}
            assert kernel is None or kernels == {kernel}
            for given in (features, PackedFeatures.from_dense(features)):
                for _ in range(2):  # the second from the graph
                    result = engine.run(given)
                    np.testing.assert_array_equal(result.outputs, expected)
                    np.testing.assert_array_equal(result.live, np.flatnonzero(expected.any(axis=1)))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", NAMES_FOR_EACH_KERNEL)
def test_equals_the_model(device, kernel, name, precision):
    network = NETWORKS[name]
    for samples in (33, engine_devices.filling(device)):
        check(device, network, make_features(network, samples), precision, kernel)


@pytest.mark.parametrize("precision", HALVES)
def test_large_values_are_rounded(device, kernel, precision):
    """Sums of some thousands have more bits than are stored."""
    rng = np.random.default_rng(3)
    network = chain(rng, [60, 50, 45, 30], 1, ReLU(), density=0.3, low=-5, high=9)
    features = make_features(network, 70)
    exact = teraedge.reference.run(network, features).outputs
    assert (model(network, features, precision) != exact).mean() > 0.3
    check(device, network, features, precision, kernel, modes="a")


@pytest.fixture
def chained(monkeypatch):
    """Let layers run in the chained kernel."""
    monkeypatch.setattr(gpu, "CHAINED", np.inf)
    monkeypatch.setattr(resident, "SAMPLES", ())


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("weights", RADIX_WEIGHTS)
@pytest.mark.parametrize("width", [16, 8])
def test_chained_equals_the_model(device, chained, weights, width, precision):
    network = radix(RADIX_WEIGHTS[weights], width=width)
    for samples in (1, 150):
        kernel = "chained" if width == 16 else None  # panels of 8 with their own weights: wide
        check(device, network, radix_features(samples), precision, kernel, modes="b")


@pytest.mark.parametrize("precision", HALVES)
def test_within_the_bound(device, chained, precision):
    """Weights of all bits, in the wide, the resident and the chained kernel."""
    rng = np.random.default_rng(5)
    layers = [*radix(lambda rng, edges: rng.normal(0.1, 0.2, edges).astype(np.float32))][:2]
    narrow = chain(rng, [1024, 40, 30], 0.1, ReLU(), density=0.2)
    network = Network([*layers, *narrow])
    features = rng.random((70, 1024), np.float32)
    expected = teraedge.reference.run(network, features).outputs
    options = Options(precision=precision)
    with teraedge.compile(network, device, options) as engine:
        result = engine.run(features)
        assert f"activations as {precision}, each off by up to" in str(engine.explain())
    bound = result.error_bound(network, features)
    assert (bound == error_bound(network, features, precision)).all()
    error = np.abs(result.outputs - expected)
    assert (error <= bound).all()
    assert error.max() > 1e-4  # so it was not fp32
    assert np.median(bound) < 0.1 * np.abs(expected).max()
    close = model(network, features, precision)
    unit = 2.0 ** (-10 if precision == "fp16" else -7)
    assert (np.abs(result.outputs - close) <= 4 * unit * np.abs(close).max(axis=0)).all()
    assert any(precision in sentence for sentence in result.rounding)


@pytest.mark.parametrize("kernel", ["wide", "resident-32", "block-16", "dense"], indirect=True)
def test_what_fp16_cannot_hold_is_held_at_its_largest(device, kernel):
    up = Layer(np.full((4, 3), 30_000.0), None, Identity())
    down = Layer(np.full((3, 2), -1.0), 70_000.0, Identity())
    network = Network([up, down])
    features = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [9e4, 0, 0, 0]], np.float32)
    with teraedge.compile(network, device, Options.mode("a", precision="fp16")) as engine:
        result = engine.run(features)
    np.testing.assert_array_equal(result.outputs, model(network, features, "fp16"))
    exact = teraedge.reference.run(network, features).outputs
    assert (np.abs(result.outputs - exact) <= result.error_bound(network, features)).all()
    assert np.isfinite(result.outputs).all()


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("activation", [teraedge.Tanh(), teraedge.GELU()])
def test_smooth_activations(device, chained, activation, precision):
    network = radix(RADIX_WEIGHTS["random"], activation=activation)
    features = radix_features(40)
    with teraedge.compile(network, device, Options(precision=precision)) as engine:
        result = engine.run(features)
    expected = teraedge.reference.run(network, features).outputs
    assert (np.abs(result.outputs - expected) <= result.error_bound(network, features)).all()


@pytest.mark.parametrize("precision", HALVES)
def test_weights_that_two_terms_do_not_hold(device, chained, precision):
    """They stay in fp32: the wide kernel multiplies them."""
    tiny = [
        Layer(layer.weights * np.float32(2.0**-16), None, Identity())
        for layer in radix(lambda rng, edges: rng.normal(0.1, 0.2, edges).astype(np.float32))
    ][:1]
    network = Network(tiny)
    with teraedge.compile(network, device, Options.mode("a", precision=precision)) as engine:
        assert [layer.kernel for layer in engine._plan.resident] == [
            "wide" if precision == "fp16" else "chained"
        ]
        features = radix_features(20)
        result = engine.run(features)
    expected = teraedge.reference.run(network, features).outputs
    assert (np.abs(result.outputs - expected) <= result.error_bound(network, features)).all()


def test_factor_is_left_out():
    assert "factor" in Options().chosen_passes
    assert "factor" not in Options(precision="fp16").chosen_passes


def test_the_cpu_refuses():
    with pytest.raises(OptionsError, match=r"precision is 'bf16'; on device 'cpu' only 'fp32'"):
        teraedge.compile(NETWORKS["dense"], "cpu", Options(precision="bf16"))
