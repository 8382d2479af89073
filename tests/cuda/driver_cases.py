"""What test_driver.py runs in a process of its own, with the stand-in for libcuda."""

import ctypes
from threading import Thread

import numpy as np
import pytest
from cuda_emulator import build

from teraedge.engines.cuda import driver, nvrtc
from teraedge.errors import DeviceError

FILE, DEFINES = "samples.cu", {"WIDTH": 64}


@pytest.fixture(scope="module")
def fake():
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_launch.restype = ctypes.c_char_p
    return library


@pytest.fixture
def device(fake, monkeypatch):
    real = nvrtc.cubin
    monkeypatch.setattr(nvrtc, "cubin", lambda *given: real(*given, build.HERE))
    device = driver.open_device("cuda")
    yield device
    device.close()
    assert fake.fake_used() == 0
    assert device.free_bytes() == 2**20


def last(fake):
    """Return name, grid, block, shared bytes and arguments of the last launch."""
    shape, arguments = (ctypes.c_uint * 7)(), (ctypes.c_longlong * 3)()
    name = fake.fake_launch(fake.fake_launches() - 1, shape, arguments).decode()
    return name, tuple(shape[:3]), tuple(shape[3:6]), shape[6], list(arguments)


def test_properties(device):
    assert (device.name, device.arch, device.multiprocessors) == ("Fake GPU", "sm_90", 132)
    assert (device.shared_bytes, device.l2_bytes) == (232448, 50 * 2**20)
    assert (device.memory_bytes, device.clock_hz) == (2**20, 1.98e9)
    assert "CUDA 13.0" in device.driver_version


def test_memory(device, fake):
    memory = device.allocate(1000)
    assert memory.address
    assert memory.address % 256 == 0
    assert device.free_bytes() == 2**20 - 1000
    memory.free()
    memory.free()
    with device.allocate(100) as memory:
        assert memory.nbytes == 100
    assert memory.address == 0
    with pytest.raises(DeviceError, match=r"has 1.05 MB of 1.05 MB .* and 2 MB more are needed"):
        device.allocate(2 * 10**6)
    device.allocate(0)
    device.allocate(1000)  # given back although nobody does
    assert fake.fake_used() == 0


def test_copies(device):
    stream = device.stream()
    numbers, out = np.arange(250, dtype=np.float32), np.empty(250, np.float32)
    first, second = device.allocate(1000), device.allocate(1000)
    stream.to_device(first, numbers)
    stream.copy(second, first, 500, 500, 0)
    stream.copy(second, first.address, 500, 0, 500)
    stream.to_host(out, second)
    np.testing.assert_array_equal(out, np.roll(numbers, 125))
    stream.fill(second, 0, 100, offset=900)
    stream.to_host(out, second)
    np.testing.assert_array_equal(out[225:], 0)
    pinned = device.pinned(1000)
    stream.to_host(pinned.array, first)
    np.testing.assert_array_equal(pinned.array.view(np.float32), numbers)
    stream.to_device(first, pinned.array[:4], offset=996)
    pinned.free()
    pinned.free()
    assert pinned.array.size == 0
    for nbytes, offset in [(1001, 0), (1, 1000), (-1, 0), (5, -1)]:
        with pytest.raises(ValueError, match="are not in Memory"):
            stream.fill(first, 0, nbytes, offset)
    with pytest.raises(ValueError, match="not C-contiguous"):
        stream.to_device(first, numbers[::2])
    first.free()
    with pytest.raises(ValueError, match="was freed"):
        stream.to_device(first, numbers)


def test_launches(device, fake):
    kernel = device.kernels(FILE, DEFINES, ["block_sums", "order"])["block_sums"]
    assert (kernel.registers, kernel.local_bytes, kernel.name) == (40, 8, "block_sums")
    assert kernel.occupancy(256, 0) == 8
    assert kernel.occupancy(256, 100_000) == 8  # 0 had it not asked for so much
    memory, stream = device.allocate(100), device.stream()
    stream.launch(kernel, 3, 256, 0, memory, memory.address + 8, -5)
    address = memory.address
    assert last(fake) == ("block_sums", (3, 1, 1), (256, 1, 1), 0, [address, address + 8, -5])
    stream.launch(kernel, (3, 2), 64, 200_000, np.int64(2**40), 2, 3)
    assert last(fake) == ("block_sums", (3, 2, 1), (64, 1, 1), 200_000, [2**40, 2, 3])
    thread = Thread(target=stream.launch, args=(kernel, 9, 32, 0, 1, 2, 3))
    thread.start()
    thread.join()
    assert last(fake)[1] == (9, 1, 1)
    with pytest.raises(DeviceError, match="Fake GPU failed with"):
        device.kernels(FILE, DEFINES, ["absent"])
    with pytest.raises(DeviceError, match=r'samples.cu do not compile for sm_90: .*"WIDTH"'):
        device.kernels(FILE, {}, ["order"])


def test_events_and_graphs(device, fake):
    kernel = device.kernels(FILE, DEFINES, ["order"])["order"]
    stream, other = device.stream(), device.stream()
    first = stream.record()
    second = stream.record()
    second.synchronize()
    assert 0 < second.seconds_since(first) < 1
    for event in (first, stream.handle, 1):
        other.wait(event)
    with stream.capture() as graph:
        stream.launch(kernel, 1, 32, 0, 1, 2, 3)
    graph.launch(other)
    assert last(fake)[0] == "graph"
    graph.free()
    graph.free()
    with pytest.raises(DeviceError, match="graph was freed"):
        graph.launch(stream)
    with pytest.raises(KeyError), stream.capture() as graph:
        raise KeyError
    with pytest.raises(DeviceError, match="never captured"):
        graph.launch(stream)
    stream.free()
    with pytest.raises(DeviceError, match="stream was given back"):
        stream.launch(kernel, 1, 32, 0, 1, 2, 3)


def test_failures(device, fake):
    stream = device.stream()
    fake.fake_fail(700)
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS \(.*\); this process can"):
        stream.synchronize()
    fake.fake_fail(0)
    stream.synchronize()


def test_the_current_context_stays_as_it_was(device):
    stream = device.stream()
    stream.record()
    api = device._context.driver
    assert int(api.cuCtxGetCurrent()[1]) == 0
