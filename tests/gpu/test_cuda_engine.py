"""The CUDA engine on a GPU: what only a real one can show."""

import gc

import numpy as np
import pytest
from engines_networks import NETWORKS, chain, make_features

import teraedge
from teraedge import ClippedReLU, Network, Options
from teraedge.engines.cuda import driver
from teraedge.errors import DeviceError


@pytest.fixture
def device():
    device = driver.open_device("cuda")
    yield device
    device.close()


def free_bytes(device):
    gc.collect()
    return device.free_bytes()


def test_a_hundred_runs_are_bit_identical():
    rng = np.random.default_rng(5)
    network = chain(rng, [300] * 12, -0.1, ClippedReLU(9))
    features = rng.random((5000, 300), dtype=np.float32)
    with teraedge.compile(network, "cuda") as engine:
        first = engine.run(features)
        for _ in range(100):
            again = engine.run(features)
            np.testing.assert_array_equal(again.outputs, first.outputs)
            np.testing.assert_array_equal(again.live, first.live)
        # A sample's result does not depend on the others.
        some = engine.run(features[1000:1033])
        np.testing.assert_array_equal(some.outputs, first.outputs[1000:1033])
    with teraedge.compile(network, "cuda") as engine:
        np.testing.assert_array_equal(engine.run(features).outputs, first.outputs)


@pytest.mark.parametrize("mode", ["a", "b", "c"])
def test_close_gives_all_memory_back(device, mode):
    network = NETWORKS["rectangular"]
    features = make_features(network, 989)
    with teraedge.compile(network, "cuda", Options.mode(mode)) as engine:
        engine.run(features)  # loads what stays loaded
    before = free_bytes(device)
    for _ in range(20):
        engine = teraedge.compile(network, "cuda", Options.mode(mode))
        engine.run(features)
        engine.close()
    # The driver takes a little for itself now and then; an engine that leaked would have 20 MB.
    assert free_bytes(device) >= before - 4 * 2**20


def test_an_error_in_a_run_gives_memory_back(device):
    network = NETWORKS["most die"]
    features = make_features(network, 989)

    def fail(fraction):
        raise RuntimeError("stop here")

    def run_and_fail():
        with teraedge.compile(network, "cuda") as engine:
            engine.run(features, progress=fail)

    with pytest.raises(RuntimeError, match="stop here"):
        run_and_fail()
    before = free_bytes(device)
    for _ in range(20):
        with pytest.raises(RuntimeError, match="stop here"):
            run_and_fail()
    assert free_bytes(device) >= before - 4 * 2**20  # as above


def test_out_of_memory_is_one_clear_line(device):
    network = NETWORKS["rectangular"]
    features = make_features(network, 500)
    expected = teraedge.reference.run(network, features)
    room = device.free_bytes() - 8 * 2**20
    message = ""
    with teraedge.compile(network, "cuda") as engine, device.allocate(room):
        try:  # it may get by with what is left, but must not fail in another way
            result = engine.run(features)
            np.testing.assert_array_equal(result.outputs, expected.outputs)
        except DeviceError as error:
            message = str(error)
    assert not message or ("of memory free" in message and "\n" not in message)
    with teraedge.compile(network, "cuda") as engine:
        np.testing.assert_array_equal(engine.run(features).outputs, expected.outputs)


def test_too_large_an_allocation(device):
    with pytest.raises(DeviceError, match=r"of memory free and .* more are needed"):
        device.allocate(device.memory_bytes + 1)
    device.allocate(1000).free()


def test_two_engines_at_once():
    network = NETWORKS["most die"]
    features = make_features(network, 989)
    expected = teraedge.reference.run(network, features).outputs
    with teraedge.compile(network, "cuda") as one, teraedge.compile(network, "cuda") as other:
        for engine in (one, other, one):
            np.testing.assert_array_equal(engine.run(features).outputs, expected)


def test_no_such_gpu():
    with pytest.raises(DeviceError, match="no device 'cuda:99'; this machine has"):
        teraedge.compile(Network([teraedge.Layer([[1.0]])]), "cuda:99")


@pytest.mark.parametrize("head", ["softmax", "log_softmax"])
def test_heads_stay_on_the_device(head):
    """Outputs are after the head, on the device; labels and live samples are those before it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    network = NETWORKS["rectangular"]
    headed = Network(list(network), head=head)
    features = make_features(network, 300)
    expected = teraedge.reference.run(headed, features)
    for mode in "ac":
        with teraedge.compile(headed, "cuda", Options.mode(mode)) as engine:
            result = engine.run(torch.from_numpy(features).cuda())
            assert result.outputs.is_cuda
            outputs = result.outputs.cpu().numpy()
            np.testing.assert_allclose(outputs, expected.outputs, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(result.live, expected.live)
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_array_equal(result.live_outputs.cpu(), outputs[result.live])
            np.testing.assert_array_equal(result.top(2).labels, expected.top(2).labels)
