"""Which machine and which versions a figure was measured on."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from teraedge.host import cpu_model, memory_bytes, usable_cores

PACKAGES = ("teraedge", "numpy", "scipy", "numba", "llvmlite", "safetensors")

_LOADED = {"torch": "torch", "cuda.core": "cuda-core", "cuda.bindings": "cuda-bindings"}


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
    # A rival that was measured beside us, and what a GPU was used with.
    for module, package in _LOADED.items():
        if module in sys.modules:
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
