"""Running the small kernels of samples.cu on a device, emulated or real."""

import numpy as np

WIDTH = 64


def kernel(device, name):
    return device.kernels("samples.cu", {"WIDTH": WIDTH}, [name])[name]


def run(device, name, arrays, *numbers, grid=1, block=32, shared=0):
    """Copy arrays to the device, run a kernel on them, and return them as they are after it."""
    stream = device.stream()
    memories = [device.allocate(array.nbytes) for array in arrays]
    for memory, array in zip(memories, arrays, strict=True):
        stream.to_device(memory, array)
    stream.launch(kernel(device, name), grid, block, shared, *memories, *numbers)
    after = [np.empty_like(array) for array in arrays]
    for memory, array in zip(memories, after, strict=True):
        stream.to_host(array, memory)
    stream.synchronize()
    for memory in memories:
        memory.free()
    return after
