"""Which machine and which versions a figure was measured on."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teraedge.bench.gpu import describe
from teraedge.host import cpu_model, memory_bytes, usable_cores

if TYPE_CHECKING:
    from teraedge.engines.cuda.driver import Device

PACKAGES = ("teraedge", "numpy", "scipy", "numba", "llvmlite", "safetensors")


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has had so far, or None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; None if not installed.

    Those of GPU libraries and of rivals are there if something has imported them.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    for module, package in (("cuda.core", "cuda-core"), ("cuda.bindings", "cuda-bindings")):
        if sys.modules.get(module) is not None:
            found[package] = _version_of(module, package)
    if "cuda-bindings" in found:
        found["nvrtc"] = _nvrtc_version()
    for rival in ("torch", "cupy"):  # by module: CuPy's packages have many names
        if sys.modules.get(rival) is not None:
            found[rival] = _version_of(rival, rival)
    if "sparse_dot_mkl" in sys.modules:
        found["mkl"] = metadata.version("mkl")
    if "torch" in found:
        cuda = getattr(getattr(sys.modules["torch"], "version", None), "cuda", None)
        found["torch cuda"] = None if cuda is None else str(cuda)
    return found


def _version_of(module: str, package: str) -> str | None:
    """Return what an imported module says of itself, else its package."""
    version = getattr(sys.modules[module], "__version__", None)
    if version is not None:
        return str(version)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _nvrtc_version() -> str | None:
    from teraedge.engines.cuda import nvrtc
    from teraedge.errors import TeraedgeError

    try:
        return nvrtc.version()
    except TeraedgeError:
        return None


def machine(gpu: "Device | None" = None) -> dict[str, Any]:
    """Return what result files call ``machine``.

    Parameters
    ----------
    gpu : Device, optional
        The GPU that was measured, if it was not the CPU.
    """
    found = {
        "device": cpu_model(),
        "driver": None,
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return found if gpu is None else found | describe(gpu)


def provenance(gpu: "Device | None" = None) -> dict[str, Any]:
    """Return ``machine``, ``versions``, ``date`` and ``command``, as every result file has them.

    Of absolute paths in the command only the last part is told.
    """
    program = Path(sys.argv[0])
    name = "teraedge" if program.name == "__main__.py" else program.name
    arguments = [Path(arg).name if Path(arg).is_absolute() else arg for arg in sys.argv[1:]]
    return {
        "machine": machine(gpu),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([name, *arguments]),
    }
