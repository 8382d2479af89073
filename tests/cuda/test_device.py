"""What every device must do, whether emulated or a GPU: the emulator stands for the real one."""

import numpy as np
import pytest
from cuda_emulator.cases import WIDTH, kernel, run

from teraedge.errors import DeviceError


@pytest.mark.parametrize("count", [1, 33, 989])
def test_shared_memory_and_barriers(device, count):
    values = np.arange(count, dtype=np.float32)
    blocks = -(-count // 256)
    _, sums = run(
        device, "block_sums", [values, np.zeros(blocks, np.float32)], count, grid=blocks, block=256
    )
    expected = [values[i : i + 256].sum() for i in range(0, count, 256)]
    np.testing.assert_array_equal(sums, expected)


def test_warp_functions(device):
    values = np.random.default_rng(0).integers(0, 100, 64).astype(np.int32)
    _, out = run(device, "warps", [values, np.zeros((64, 8), np.int32)], block=64)
    for thread, row in enumerate(out):
        warp = values[thread // 32 * 32 :][:32]
        lane = thread % 32
        odd = sum(1 << i for i in range(32) if warp[i] % 2)
        assert int(row[0]) & 0xFFFFFFFF == odd
        assert row[1] == warp.sum()
        assert row[2] == warp[max(lane - 1, 0)]
        assert row[3] == warp[lane // 16 * 16]
        assert row[4] == (warp[:lane] % 2).sum()
        assert row[5] == (warp == 7).any()
        assert row[6] == 1
        assert row[7] == (warp[:8].sum() if lane < 8 else -1)


def test_atomics(device):
    values = np.random.default_rng(0).integers(0, WIDTH, 1000).astype(np.int32)
    counts, total = np.zeros(WIDTH + 1, np.int32), np.zeros(1, np.float32)
    _, counts, total = run(device, "histogram", [values, counts, total], 1000, grid=8, block=128)
    np.testing.assert_array_equal(counts[:WIDTH], np.bincount(values, minlength=WIDTH))
    assert (counts[WIDTH], total[0]) == (values.max(), 500)


def test_counting_barriers(device):
    (out,) = run(device, "counted", [np.zeros(4, np.int64)], block=70)
    assert out.tolist() == [35, 1, 1, 0]


def test_templates_have_shared_memory_too(device):
    (out,) = run(device, "templated", [np.zeros(WIDTH, np.float32)], block=WIDTH)
    np.testing.assert_array_equal(out, np.arange(WIDTH)[::-1])


@pytest.mark.parametrize("wait", ["event", "stream", "host"])
def test_streams_wait(device, wait):
    add = kernel(device, "add_one")
    first, second = device.stream(), device.stream()
    memory, host = device.allocate(128), device.pinned(128)
    host.array.view(np.float32)[:] = np.arange(32)
    first.to_device(memory, host.array)
    first.launch(add, 1, 32, 0, memory)
    if wait == "event":
        second.wait(first.record())
    elif wait == "stream":
        second.wait(first.handle)
    else:
        first.synchronize()
    second.launch(add, 1, 32, 0, memory)
    second.to_host(host.array, memory)
    second.synchronize()
    np.testing.assert_array_equal(host.array.view(np.float32), np.arange(32) + 2)


def test_graph(device):
    add = kernel(device, "add_one")
    stream, other = device.stream(), device.stream()
    memory, more = device.allocate(128), device.allocate(256)
    stream.fill(memory, 0)
    with stream.capture() as graph:
        stream.launch(add, 1, 32, 0, memory)
        other.wait(stream.record())  # the capture spreads
        other.launch(add, 1, 32, 0, memory)
        other.copy(more, memory, 128, target_offset=128)
        stream.wait(other.record())
        stream.fill(more, 0, 128)
    for _ in range(3):
        graph.launch(stream)
    out = np.empty(64, np.float32)
    stream.to_host(out, more)
    stream.synchronize()
    assert out.tolist() == [0] * 32 + [6] * 32
    graph.free()
    with pytest.raises(DeviceError, match="freed"):
        graph.launch(stream)


def test_error_in_a_capture_leaves_the_stream_usable(device):
    stream, memory = device.stream(), device.allocate(4)

    def fail():
        with stream.capture():
            stream.fill(memory, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    stream.fill(memory, 2)
    out = np.zeros(4, np.uint8)
    stream.to_host(out, memory)
    assert out.tolist() == [2] * 4


def test_copies(device):
    stream = device.stream()
    numbers, out = np.arange(250, dtype=np.float32), np.empty(250, np.float32)
    first, second = device.allocate(1000), device.allocate(1000)
    stream.to_device(first, numbers)
    stream.copy(second, first, 500, 500, 0)
    stream.copy(second, first.address, 500, 0, 500)
    stream.fill(second, 0, 100, offset=900)
    stream.to_host(out, second)
    stream.synchronize()
    expected = np.roll(numbers, 125)
    expected[225:] = 0
    np.testing.assert_array_equal(out, expected)
    stream.to_host(out[:0], second)
    stream.to_device(second, np.empty((0, 3)), offset=1000)
    with pytest.raises(ValueError, match="bytes 4 to 1004"):
        stream.to_device(first, numbers, 4)


def test_events(device):
    stream = device.stream()
    first = stream.record()
    stream.fill(device.allocate(10**6), 0)
    second = stream.record()
    second.synchronize()
    assert 0 <= second.seconds_since(first) < 1


def test_kernels(device):
    sums = kernel(device, "block_sums")
    assert 0 < sums.registers < 255
    assert sums.local_bytes == 0
    assert 1 <= sums.occupancy(256, 0) <= 8
    assert 1 <= sums.occupancy(256, 90 * 1024) <= 2
    with pytest.raises(DeviceError):
        kernel(device, "absent")


def test_much_shared_memory(device):
    """More than 48 KiB a block is only there if asked for."""
    room = device.shared_bytes
    last = room // 4 - 1
    (out,) = run(device, "shared_beyond", [np.zeros(1, np.float32)], last, shared=room)
    assert out.shape == (1,)


def test_memory(device):
    before = device.free_bytes()
    assert 0 < before <= device.memory_bytes
    memory = device.allocate(50 * 2**20)
    assert memory.address % 256 == 0
    assert device.free_bytes() <= before - 50 * 2**20
    with pytest.raises(DeviceError, match=r"of memory free and .* more are needed; run fewer"):
        device.allocate(device.memory_bytes + 1)
    memory.free()
    memory.free()
    # The driver may have taken a little for itself meanwhile.
    assert abs(device.free_bytes() - before) < 16 * 2**20
    device.allocate(0).free()


def test_memory_that_outlives_its_device(device):
    stream = device.stream()
    kept, other = device.allocate(128, outlives=True), device.allocate(128)
    stream.fill(kept, 7)
    stream.synchronize()
    device.close()
    assert other.address == 0
    out = np.zeros(100, np.uint8)
    kept.read(out)
    assert (out == 7).all()
    kept.free()
    with pytest.raises(DeviceError, match="was given back"):
        kept.read(out)
    with pytest.raises(DeviceError, match="was given back"):
        stream.record()
