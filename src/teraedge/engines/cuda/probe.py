"""Whether a GPU works at all: a small kernel, compiled, run and compared."""

import numpy as np

from teraedge.engines.cuda.driver import Device

_THREADS = 256


def probe(device: Device) -> str | None:
    """Compile and run a small kernel.

    Parameters
    ----------
    device : Device

    Returns
    -------
    str or None
        What is wrong, or None if all is well.

    Raises
    ------
    DeviceError, DependencyError
        If it cannot be compiled or run.
    """
    blocks = 2 * device.multiprocessors
    kernel = device.kernels("probe.cu", {}, ["probe"])["probe"]
    stream = device.stream()
    sums = np.empty(blocks, np.int64)
    with device.allocate(sums.nbytes) as memory:
        stream.fill(memory, 0)
        stream.launch(kernel, blocks, _THREADS, 0, memory)
        stream.to_host(sums, memory)
        stream.synchronize()
    numbers = np.arange(blocks * _THREADS, dtype=np.int64).reshape(blocks, _THREADS)
    if not np.array_equal(sums, (numbers**2).sum(axis=1)):
        return "gives wrong sums"
    return None
