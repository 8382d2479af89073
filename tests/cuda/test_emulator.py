"""The emulator itself: what a GPU does not promise, and that it finds what is wrong."""

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.cases import kernel, run
from cuda_emulator.device import EmulatedDevice, EmulationError

from teraedge.errors import DeviceError

pytestmark = pytest.mark.skipif(not build.available(), reason=build.REASON)


@pytest.fixture
def device():
    device = EmulatedDevice(folder=build.HERE)
    yield device
    device.close()
    assert device.used == 0


def test_missing_barrier_shows(device):
    values = np.arange(256, dtype=np.float32)
    _, sums = run(
        device, "racy_sums", [values, np.zeros(1, np.float32)], 256, block=256, shared=1024
    )
    assert sums[0] != values.sum()


def test_blocks_run_in_an_order_of_their_own(device):
    ranks = np.zeros(40, np.int64)
    orders = [run(device, "order", [np.zeros(1, np.int64), ranks], grid=40)[1] for _ in range(2)]
    assert sorted(orders[0]) == list(range(40))
    assert not np.array_equal(orders[0], np.arange(40))
    assert not np.array_equal(orders[0], orders[1])


def test_shared_memory_starts_as_garbage(device):
    (out,) = run(device, "uninitialised", [np.zeros(4, np.float32)], shared=64)
    assert np.isnan(out[[0, 2]]).all()
    assert out[[1, 3]].tolist() == [2, 4]


def test_fresh_memory_is_garbage(device):
    memory, out = device.allocate(40), np.zeros(10, np.float32)
    device.stream().to_host(out, memory)
    assert np.isnan(out).all()


def test_asynchronous_copies_arrive_when_they_are_waited_for(device):
    given = [np.arange(128, dtype=np.float32), np.zeros(32, np.float32)]
    _, out = run(device, "copies", given, 1)
    np.testing.assert_array_equal(out, given[0][1::4][::-1])
    _, out = run(device, "copies", given, 0)
    assert np.isnan(out).all()
    with pytest.raises(EmulationError, match="not 4, 8 or 16 aligned bytes"):
        run(device, "crooked", given[:1])


@pytest.mark.parametrize(
    ("name", "arrays", "numbers", "message"),
    [
        (
            "divergent",
            [(64, np.int32)],
            [],
            r"divergent barrier: thread \d+ waits in __syncthreads",
        ),
        ("deadlock", [(64, np.int32)], [], r"deadlock in block \(0, 0, 0\): thread"),
        ("beyond", [(64, np.float32)], [64 + 1000], r"access 4256 bytes from the start of .* 256"),
        ("beyond", [(63, np.float32)], [63], r"a write 252 bytes from the start of an allocation"),
        ("beyond", [(64, np.float32)], [-2000], r"by block \(0, 0, 0\), thread"),
        ("read_beyond", [(64, np.float32), (1, np.float32)], [64], r"access 256 bytes from"),
        ("shared_beyond", [(1, np.float32)], [32], r"access 128 bytes .* dynamic shared memory"),
        ("wrong_mask", [(64, np.int32)], [], r"mask lacks the calling lane at samples.cu:\d+"),
        ("spins_for_ever", [(1, np.int32)], [], r"deadlock .* waits in a loop at samples.cu"),
    ],
)
def test_finds(device, name, arrays, numbers, message):
    given = [np.zeros(size, dtype) for size, dtype in arrays]
    with pytest.raises(EmulationError, match=message):
        run(device, name, given, *numbers, block=64, shared=128)
    # and goes on working
    run(device, "counted", [np.zeros(4, np.int64)], block=70)


def test_shared_memory_red_zone(device):
    with pytest.raises(EmulationError, match="a write 100 bytes from the start of dynamic shared"):
        run(device, "shared_beyond", [np.zeros(1, np.float32)], 25, shared=100)


def test_arguments_are_64_bits(device):
    with pytest.raises(EmulationError, match="'int count' is not 64 bits"):
        kernel(device, "narrow")
    with pytest.raises(EmulationError, match="takes 3 arguments, given 2"):
        device.stream().launch(kernel(device, "block_sums"), 1, 32, 0, 1, 2)


def test_limits(device):
    stream, counted = device.stream(), kernel(device, "counted")
    for grid, block, shared in [(0, 32, 0), (1, 1025, 0), (1, 32, 228 * 1024), ((1, 70000), 32, 0)]:
        with pytest.raises(DeviceError):
            stream.launch(counted, grid, block, shared, 0)
    small = EmulatedDevice(memory_bytes=1000)
    with small.allocate(600), pytest.raises(DeviceError, match="has 400 B of 1 kB of memory free"):
        small.allocate(500)
    assert small.free_bytes() == 1000


def two_streams(device, wait, pinned):
    """Add one to numbers on two streams, one after the other, and return what comes out."""
    add = kernel(device, "add_one")
    first, second = device.stream(), device.stream()
    memory, host = device.allocate(128), device.pinned(128)
    host.array.view(np.float32)[:] = np.arange(32)
    first.to_device(memory, host.array if pinned else host.array.copy())
    first.launch(add, 1, 32, 0, memory)
    if wait == "event":
        second.wait(first.record())
    elif wait == "stream":
        second.wait(first.handle)
    elif wait == "host":
        first.synchronize()
    second.launch(add, 1, 32, 0, memory)
    out = device.pinned(128)
    second.to_host(out.array, memory)
    assert np.isnan(out.array.view(np.float32)).all() or not device.deferred  # not yet there
    second.synchronize()
    result = out.array.view(np.float32).copy()
    device.close()
    return result


@pytest.mark.parametrize("wait", ["event", "stream", "host", "none"])
@pytest.mark.parametrize("pinned", [True, False])
def test_deferred_streams(wait, pinned):
    expected = np.arange(32, dtype=np.float32) + 2
    right = [
        np.array_equal(
            two_streams(EmulatedDevice(folder=build.HERE, deferred=True, seed=i), wait, pinned),
            expected,
        )
        for i in range(20)
    ]
    assert all(right) == (wait != "none")
    at_once = EmulatedDevice(folder=build.HERE)
    np.testing.assert_array_equal(two_streams(at_once, wait, pinned), expected)


@pytest.mark.parametrize("deferred", [False, True])
def test_graphs(deferred):
    device = EmulatedDevice(folder=build.HERE, deferred=deferred)
    add = kernel(device, "add_one")
    stream, other = device.stream(), device.stream()
    memory = device.allocate(128)
    stream.fill(memory, 0)
    with stream.capture() as graph:
        stream.launch(add, 1, 32, 0, memory)
        other.wait(stream.record())  # the capture spreads
        other.launch(add, 1, 32, 0, memory)
        stream.wait(other.record())
    assert device.launches == 0
    for _ in range(3):
        graph.launch(stream)
    out = np.zeros(32, np.float32)
    stream.to_host(out, memory)
    assert (out == 6).all()
    assert device.launches == 6
    graph.free()
    with pytest.raises(DeviceError, match="freed"):
        graph.launch(stream)
    device.close()


def test_times():
    device = EmulatedDevice(folder=build.HERE, deferred=True)
    stream = device.stream()
    first, second = stream.record(), stream.record()
    with pytest.raises(EmulationError, match="not over"):
        second.seconds_since(first)
    second.synchronize()
    assert second.seconds_since(first) > 0
