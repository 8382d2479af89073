"""The GPU side of ``teraedge doctor``: libraries, driver, and a small kernel on every GPU."""

import ctypes
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from teraedge.cli.finding import Finding
from teraedge.cli.progress import Stage
from teraedge.text import scaled, seconds

if TYPE_CHECKING:
    from teraedge.engines.cuda.driver import Device

INSTALL = "pip install 'teraedge[cuda13]'"
_ONLY_CPU = "everything runs on the CPU"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")  # of CUDA 13 and 12


def findings() -> Iterator[Finding]:
    """Yield what is there; NVIDIA's Python libraries are imported where there is a driver."""
    there = _has_driver()
    core, nvrtc = _version("cuda-core"), _version(*_NVRTC)
    hint = f"not installed: {INSTALL}" if there else "not installed"
    yield Finding("cuda-core", core, core or hint)
    yield Finding("NVRTC", nvrtc, nvrtc or hint)
    if not there:
        yield Finding("NVIDIA driver", None, "not found")
        yield Finding("gpu", None, f"none; {_ONLY_CPU}")
    elif core is None:
        yield Finding("NVIDIA driver", None, "found")
        yield Finding("gpu", None, f"not looked at, as cuda-core is missing; {_ONLY_CPU}")
    else:
        yield from _gpus()


def _gpus() -> Iterator[Finding]:
    from teraedge.engines.cuda import driver
    from teraedge.errors import TeraedgeError

    try:
        count = driver.device_count()
    except TeraedgeError as error:
        yield Finding("gpu", None, str(error))
        return
    version = driver.driver_version()
    yield Finding("NVIDIA driver", version, version)
    yield Finding("gpu", count, str(count))
    for ordinal in range(count):
        yield _gpu(ordinal)


def rates(name: str) -> Finding:
    """Tell what a GPU's layouts and predictions stand on: what was measured, and when."""
    from teraedge.engines.cuda import calibrate, driver

    try:
        device = driver.open_device(name)
        kept = None if calibrate.is_typical() else calibrate.kept(device)
        found = calibrate.typical(device) if kept is None else kept.rates
        device.close()
    except Exception as error:  # whatever it is, it is the finding
        return Finding(f"{name} speeds", None, f"fails: {type(error).__name__}: {error}", False)
    if kept is not None:
        source = f"measured {kept.measured}"
    elif calibrate.is_typical():
        source = "those of an H200, scaled, as TERAEDGE_CALIBRATION is 'typical'"
    else:
        source = "not kept: every program measures anew, since the cache cannot be written"
    measured = None if kept is None else kept.measured
    text = (
        f"{source}; {scaled(found.single_reads * 128, 'B')}/s from shared memory, "
        f"{scaled(found.wide_bytes, 'B')}/s from L2, {scaled(found.hbm_bytes, 'B')}/s HBM, "
        f"{scaled(found.host_bytes, 'B')}/s host"
    )
    return Finding(f"{name} speeds", {"measured": measured, **found.to_json()}, text)


def _gpu(ordinal: int) -> Finding:
    """Run a small kernel on one GPU."""
    from teraedge.engines.cuda import driver, probe

    name = f"cuda:{ordinal}"
    with Stage(f"testing {name}") as stage:
        try:
            device = driver.open_device(name)
            wrong = probe.probe(device)
            text = _describe(device)
            device.close()
        except Exception as error:  # whatever it is, it is the finding
            return Finding(name, None, f"fails: {type(error).__name__}: {error}", False)
    if wrong is not None:
        return Finding(name, None, f"{text}; a small kernel {wrong}", False)
    value = {"name": device.name, "memory_bytes": device.memory_bytes, "arch": device.arch}
    text += f"; a kernel compiles and runs right ({seconds(stage.seconds)})"
    return Finding(name, value, text, True)


def _describe(device: "Device") -> str:
    free, memory = scaled(device.free_bytes(), "B"), scaled(device.memory_bytes, "B")
    return f"{device.name}, {device.arch}, {free} of {memory} free"


def _has_driver() -> bool:
    """Tell whether the NVIDIA driver's library is there, without any Python library of theirs."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _version(*packages: str) -> str | None:
    """Return the version of the first of these packages that is installed."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
