"""A last layer that only copies runs when its rows are asked for."""

import engine_devices
import numpy as np
import pytest
from test_small import chain

import teraedge
from teraedge import Options
from teraedge.engines.cuda.views import View

device = engine_devices.gpu_device


def spreading(width, n_out):
    """Return layers of which the last gives each of its inputs out, some more than once."""
    network = chain([width] * 6, 4)
    weights = np.zeros((width, n_out + 3), np.float32)
    weights[np.arange(n_out) % width, np.arange(n_out)] = 1
    return teraedge.Network([*network, teraedge.Layer(weights)])


class OnDevice:
    """Features as another library would give them."""

    def __init__(self, memory, shape):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (memory.address, False),
            "strides": None, "version": 3,
        }  # fmt: skip
        strides = shape[1], 1
        self.emulated_view = View(memory.address, shape, strides, np.dtype(np.float32), memory)


def given(engine, features, where):
    if where == "host":
        return features
    memory = engine._device.allocate(features.nbytes)
    engine._stream.to_device(memory, features)
    engine._stream.synchronize()
    return OnDevice(memory, features.shape)


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("samples", [1, 33, 150])
def test_rows_come_when_asked_for(device, where, merge, samples):
    network = spreading(64, 300)
    first, second = (
        (np.random.default_rng(seed).random((samples, 64)) < 0.5).astype(np.float32)
        for seed in (1, 2)
    )
    expected = [teraedge.reference.run(network, features) for features in (first, second)]
    assert samples == 1 or len(expected[0].live) > 0
    with teraedge.compile(network, device, Options(merge=merge, passes=False)) as engine:
        assert engine._deferred is not None
        kept = engine.run(given(engine, first, where))
        asked = engine.run(given(engine, second, where))  # while the first one is held
        assert engine._deferred not in engine._ran
        for result, right in zip((kept, asked), expected, strict=True):
            np.testing.assert_array_equal(result.live, right.live)
            assert result.trace[-1].live == len(right.live)
        check(asked, expected[1])
        assert "merge" not in asked.exact or merge
        last = engine.run(given(engine, first, where))
    check(last, expected[0])  # after the engine was closed
    check(kept, expected[0])


def check(result, expected):
    outputs = result._on_host
    np.testing.assert_allclose(outputs, expected.outputs, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_copy_runs_at_once(device):
    for weights in (np.eye(64) * 2, np.eye(64, 60), np.eye(64) + np.eye(64, k=1)):
        network = chain([64] * 4, 4)
        layers = [*network, teraedge.Layer(weights.astype(np.float32))]
        with teraedge.compile(teraedge.Network(layers), device, Options(passes=False)) as engine:
            assert engine._deferred is None
