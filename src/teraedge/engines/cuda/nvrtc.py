"""Kernels from CUDA C++ to machine code with NVRTC, no GPU needed, and a cache of what came out.

The cache is our own rather than that of ``cuda.core.utils``, which can neither look into included
headers nor tell a damaged entry.
"""

import hashlib
import io
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from teraedge.cache import atomic_write, cache_dir
from teraedge.engines.cuda.bindings import libraries
from teraedge.errors import DeviceError

KERNELS = Path(__file__).parent / "kernels"
_DIGEST_BYTES = hashlib.sha256().digest_size
_log = logging.getLogger("teraedge")

Defines = Mapping[str, int | str]
"""Names and values of macros, by which a kernel file is specialised."""


def cubin(file: str, defines: Defines, arch: str, folder: Path = KERNELS) -> bytes:
    """Return the machine code of a kernel file, from the cache where it is there.

    Parameters
    ----------
    file : str
        Name of a file in `folder`, as "layer.cu".
    defines : mapping of str to int or str
        Macros for ``-D``.
    arch : str
        As "sm_90".
    folder : Path, optional
        Where the file and the headers that it includes are.

    Returns
    -------
    bytes
        An ELF image for one architecture.

    Raises
    ------
    DependencyError
        If NVRTC is not installed.
    DeviceError
        If the file does not compile; the message is the first error's line.
    """
    path = cache_dir() / "cuda" / f"{Path(file).stem}-{_key(file, defines, arch, folder)}.cubin"
    if (code := _read(path)) is not None:
        return code
    code, _ = compile_cubin(file, defines, arch, folder)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
    except OSError as error:  # a cache that cannot be written costs time, nothing else
        _log.info("compiled kernels cannot be kept in %s: %s", path.parent, error)
    return code


def compile_cubin(
    file: str, defines: Defines, arch: str, folder: Path = KERNELS
) -> tuple[bytes, str]:
    """Compile a kernel file, past the cache.

    Parameters
    ----------
    file, defines, arch, folder
        As in `cubin`.

    Returns
    -------
    code : bytes
        An ELF image.
    log : str
        What ptxas says of each kernel: registers, spills, shared memory.

    Raises
    ------
    DependencyError, DeviceError
        As in `cubin`.
    """
    core = libraries().core
    log = io.StringIO()
    try:
        options = core.ProgramOptions(
            name=file,
            arch=arch,
            std="c++17",
            define_macro=[(name, str(value)) for name, value in defines.items()] or None,
            include_path=[str(folder)],
            ptxas_options=["-v"],
        )
        program = core.Program((folder / file).read_text(), "c++", options)
        code = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:  # NVRTC's and the loader's have no public class
        raise _compile_error(file, arch, error) from error
    text = log.getvalue().replace("\0", "")
    _log.debug("compiled %s %s for %s\n%s", file, dict(defines), arch, text)
    return code, text


def version() -> str:
    """Return NVRTC's version, as "13.0".

    Raises
    ------
    DependencyError
        If it is not installed.
    """
    libraries()
    from cuda.bindings import nvrtc

    try:
        error, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as failure:
        raise _missing(failure) from failure
    if error != 0:
        raise DeviceError(f"NVRTC does not tell its version: {error.name}; install it again")
    return f"{major}.{minor}"


def _key(file: str, defines: Defines, arch: str, folder: Path) -> str:
    """Return a digest of everything that the machine code depends on."""
    digest = hashlib.sha256()
    for part in (version(), arch, repr(sorted((k, str(v)) for k, v in defines.items()))):
        digest.update(part.encode() + b"\0")
    for path in _sources(folder / file):
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\0".encode() + text)
    return digest.hexdigest()[:32]


def _sources(path: Path) -> list[Path]:
    """Return a file and all the headers of its folder that it includes, directly or not."""
    found: list[Path] = []
    waiting = [path]
    while waiting:
        source = waiting.pop()
        if source in found or not source.is_file():
            continue
        found.append(source)
        names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', source.read_text(), re.MULTILINE)
        waiting += [source.parent / name for name in names]
    return sorted(found)


def _read(path: Path) -> bytes | None:
    """Return the code that a cache file holds, or None if it is absent or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _compile_error(file: str, arch: str, error: Exception) -> Exception:
    if "libnvrtc" in str(error) or "NotFoundError" in type(error).__name__:
        return _missing(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\berror\b:?", line[:200])), lines[0])
    return DeviceError(f"the kernels of {file} do not compile for {arch}: {first}")


def _missing(error: Exception) -> Exception:
    from teraedge.errors import DependencyError

    return DependencyError(
        f"NVRTC, the CUDA compiler, was not found ({' '.join(str(error).split())[:200]}); "
        "pip install 'teraedge[cuda13]'"
    )
