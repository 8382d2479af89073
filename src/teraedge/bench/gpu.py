"""A GPU for result files: what it is, what it does at most, and how much of that was reached.

Takes the device object of the CUDA engine and imports no GPU library itself.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teraedge.engines.cuda.driver import Device

GATHERS = 32
"""Words that a multiprocessor reads from shared memory in a clock."""
MULTIPLY_ADDS = 128
"""fp32 multiply-adds that a multiprocessor does in a clock."""


def describe(gpu: "Device") -> dict[str, Any]:
    """Return what ``machine`` in a result file says of a GPU.

    Parameters
    ----------
    gpu : Device
    """
    return {
        "device": gpu.name,
        "driver": gpu.driver_version,
        "architecture": gpu.arch,
        "multiprocessors": gpu.multiprocessors,
        "clock_hz": gpu.clock_hz,
        "device_memory_bytes": gpu.memory_bytes,
        "l2_bytes": gpu.l2_bytes,
    }


def copy_bandwidth(gpu: "Device", nbytes: int = 1 << 30, repeat: int = 10) -> float:
    """Measure a copy within device memory.

    Returns
    -------
    float
        Bytes read and written a second, of the best of `repeat` copies.
    """
    stream = gpu.stream()
    source, target = gpu.allocate(nbytes), gpu.allocate(nbytes)
    try:
        stream.fill(source, 1)
        best = float("inf")
        for _ in range(repeat + 1):  # the first one warms up
            before = stream.record()
            stream.copy(target, source, nbytes)
            after = stream.record()
            stream.synchronize()
            best = min(best, after.seconds_since(before))
    finally:
        for block in (source, target, stream):
            block.free()
    return 2 * nbytes / best


def host_bandwidth(gpu: "Device", nbytes: int = 1 << 28, repeat: int = 5) -> float:
    """Measure a copy from page-locked host memory to the device.

    Returns
    -------
    float
        Bytes copied a second, of the best of `repeat` copies.
    """
    stream = gpu.stream()
    source, target = gpu.pinned(nbytes), gpu.allocate(nbytes)
    try:
        source.array[:] = 1
        best = float("inf")
        for _ in range(repeat + 1):
            before = stream.record()
            stream.to_device(target, source.array)
            after = stream.record()
            stream.synchronize()
            best = min(best, after.seconds_since(before))
    finally:
        for block in (source, target, stream):
            block.free()
    return nbytes / best


def peaks(gpu: "Device", nbytes: int = 1 << 30) -> dict[str, float]:
    """Return the limits of a GPU.

    Returns
    -------
    dict
        ``copy_bytes_per_s`` and ``host_bytes_per_s``, measured; ``gathers_per_s`` from shared
        memory and ``multiply_adds_per_s``, at the highest clock.
    """
    clocks = gpu.multiprocessors * gpu.clock_hz
    return {
        "copy_bytes_per_s": copy_bandwidth(gpu, nbytes),
        "host_bytes_per_s": host_bandwidth(gpu, nbytes // 4),
        "gathers_per_s": GATHERS * clocks,
        "multiply_adds_per_s": MULTIPLY_ADDS * clocks,
    }


def limit_seconds(
    peaks: Mapping[str, float], *, edges: int, moved_bytes: int | None
) -> dict[str, float]:
    """Return the least time of a run by each limit that applies.

    Parameters
    ----------
    peaks : mapping
        As `peaks` returns them.
    edges : int
        Executed edges.
    moved_bytes : int, optional
        Activations that go to device memory and come back; None where none has to.
    """
    limits = {"gather": edges / peaks["gathers_per_s"]}
    if moved_bytes is not None:
        limits["HBM"] = moved_bytes / peaks["copy_bytes_per_s"]
    return limits


def share_of_limit(seconds: float, limits: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of a row that compare a time with the smallest of some limits.

    Parameters
    ----------
    seconds : float
        Measured.
    limits : mapping of str to float
        Seconds of each limit; empty if none is known.

    Examples
    --------
    >>> share_of_limit(2.0, {"HBM": 1.5, "gather": 1.0})
    {'share_of_limit': 0.5, 'limit': 'gather', 'limit_seconds': {'HBM': 1.5, 'gather': 1.0}}
    """
    if not limits:
        return {"share_of_limit": None, "limit": None}
    name = min(limits, key=lambda key: limits[key])
    return {
        "share_of_limit": limits[name] / seconds,
        "limit": name,
        "limit_seconds": dict(limits),
    }
