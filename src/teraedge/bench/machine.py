"""Which machine and which versions a figure was measured on."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from teraedge.host import memory_bytes, usable_cores

PACKAGES = ("teraedge", "numpy", "scipy", "numba", "llvmlite", "safetensors")


def cpu_model() -> str:
    """Return the name of the CPU as its maker writes it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown CPU"


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has had so far, or None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    for module, package in (("torch", "torch"), ("sparse_dot_mkl", "mkl")):
        if module in sys.modules:  # a rival that was measured beside us
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Return what result files call ``machine``."""
    return {
        "device": cpu_model(),
        "driver": None,
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def provenance() -> dict[str, Any]:
    """Return ``machine``, ``versions``, ``date`` and ``command``, as every result file has them."""
    program = Path(sys.argv[0])
    name = "teraedge" if program.name == "__main__.py" else program.name
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([name, *sys.argv[1:]]),
    }
