"""The staged kernel of the CUDA engine, where layers would run in another kernel."""

import engine_devices
import numpy as np
import pytest
from engines_networks import NETWORKS, chain, make_features

import teraedge
from teraedge import ClippedReLU, Options
from teraedge.plan import gpu, resident, staged
from teraedge.plan.rates import Rates

SAMPLES = [0, 1, 33, 150, 989]
OPTIONS = {"a": Options.mode("a"), "c": Options.mode("c"), "half resident": Options(memory="20KB")}
SMALL = 24 * staged.SAMPLES * 4
"""Bytes for 16 rows and those of zeros: NETWORKS come in several parts."""


@pytest.fixture(scope="module", params=engine_devices.DEVICES[1:])
def device(request):
    name, end = engine_devices.opened(request.param)
    yield name
    end()


@pytest.fixture(params=[1, 2])
def buffers(request, monkeypatch):
    """Have every layer staged, as many parts at a time."""

    def stage(layer, room, *_):
        plan = staged.staging(layer, SMALL * request.param, request.param)
        return staged.settled(plan or staged.staging(layer, room, request.param))

    monkeypatch.setattr(resident, "SAMPLES", ())
    monkeypatch.setattr(Rates, "wide_seconds", lambda *_: np.inf)
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: np.inf)
    monkeypatch.setattr(gpu, "_best_staging", stage)
    return request.param


def check(network, device, features, options):
    expected = teraedge.reference.run(network, features)
    with teraedge.compile(network, device, options) as engine:
        for _ in range(2):
            result = engine.run(features)
            np.testing.assert_array_equal(result.outputs, expected.outputs)
            np.testing.assert_array_equal(result.live, expected.live)
        assert {segment.kernel for segment in engine._ran} == {"staged"}


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "two hundred layers"])
def test_equals_reference(device, buffers, name, samples):
    network = NETWORKS[name]
    features = make_features(network, samples)
    for options in OPTIONS.values():
        check(network, device, features, options)


def test_several_output_blocks(device, buffers):
    """A block of threads takes 4096 neurons; the last one has fewer slices than warps."""
    rng = np.random.default_rng(3)
    network = chain(rng, [60, 9000, 50], -1, ClippedReLU(8), density=0.01)
    check(network, device, make_features(network, 70), Options.mode("c"))


def test_layers_of_different_kernels(device, monkeypatch):
    """Samples that die in one kernel are moved together for the next."""
    rng = np.random.default_rng(4)
    network = chain(rng, [40, 60, 50, 60, 40, 30], -2, ClippedReLU(8))
    features = make_features(network, 150)
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: np.inf)
    kernels = iter(["resident", "staged", "wide", "staged", "resident"])

    def lay_out(layer, shared_bytes, **_):
        kernel = next(kernels)
        if kernel == "resident":
            return real(layer, shared_bytes)
        panels = gpu.all_single(layer)
        if kernel == "wide":
            return gpu.lay_out_wide(panels)
        return staged.lay_out_staged(panels, staged.staging(panels, 2 * SMALL, 2))

    real = gpu.lay_out
    monkeypatch.setattr(gpu, "lay_out", lay_out)
    expected = teraedge.reference.run(network, features)
    with teraedge.compile(network, device) as engine:
        result = engine.run(features)
        ran = [segment.kernel for segment in engine._ran]
    np.testing.assert_array_equal(result.outputs, expected.outputs)
    np.testing.assert_array_equal(result.live, expected.live)
    assert ran == ["resident", "staged", "wide", "staged", "resident"]
    assert [layer.live for layer in result.trace] == [layer.live for layer in expected.trace]
