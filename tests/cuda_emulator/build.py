"""Kernel files to libraries for the CPU, with the system's C++ compiler."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from threading import Lock

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
REASON = "the CUDA emulator needs g++ and Linux"

_FLAGS = [
    *("-std=c++17", "-O1", "-g", "-fPIC", "-shared"),
    "-ffp-contract=off",  # only what is written as a fused multiply-add is one
    "-fno-weak",  # static shared memory of templates goes into one section with the others
    "-fno-gnu-unique",
    *("-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-sign-compare"),
    *("-Wno-unused-function", "-Wno-unused-variable", "-Wno-unused-but-set-variable"),
]
_DYNAMIC = re.compile(
    r"^(.*?)extern\s+__shared__\s+(?:__align__\s*\(\w+\)\s*|alignas\s*\(\w+\)\s*)?"
    r"((?:\w+\s+)*\w+)\s+(\w+)\s*\[\s*\]\s*;",
    re.MULTILINE,
)
_END = """
extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
char* emulated_statics() { return __start_emulated_shared; }
unsigned long long emulated_static_bytes() {
    return (unsigned long long)(__stop_emulated_shared - __start_emulated_shared);
}
}
"""


class EmulationError(AssertionError):
    """What a GPU would not say: a race, a divergent barrier, an access out of bounds."""


def available():
    """Tell whether kernels can be emulated here."""
    return COMPILER is not None and os.uname().sysname == "Linux"


@functools.cache
def folder():
    """Return a folder that lives as long as the process."""
    path = Path(tempfile.mkdtemp(prefix="teraedge-emulator-"))
    weakref.finalize(EmulationError, shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def runtime():
    """Build and load the machine that kernels run on."""
    target = folder() / "libcuda_emulator.so"
    _compile(HERE / "cuda_emulator.cpp", target, [f"-I{HERE}"])
    library = ctypes.CDLL(str(target))
    pointer, u64 = ctypes.c_void_p, ctypes.c_uint64
    library.emulate.restype = ctypes.c_char_p
    library.emulate.argtypes = [pointer] * 3 + [u64, pointer, u64, u64, ctypes.c_int, pointer]
    library.emulated_allocate.restype = pointer
    library.emulated_allocate.argtypes = [u64]
    library.emulated_free.argtypes = [pointer]
    library.emulated_room.restype = ctypes.c_longlong
    library.emulated_room.argtypes = [pointer]
    return library


_building = Lock()


def kernel_library(source, defines):
    """Build and load a kernel file, once, whatever thread asks.

    Parameters
    ----------
    source : Path
    defines : tuple of (str, str)
    """
    with _building:
        return _kernel_library(source, defines)


@functools.cache
def _kernel_library(source, defines):
    runtime()
    key = hashlib.sha256(repr((source, defines)).encode()).hexdigest()[:16]
    build = folder() / f"{source.stem}-{key}"
    build.mkdir(exist_ok=True)
    for file in source.parent.iterdir():
        if file.suffix in (".cu", ".cuh", ".h"):
            end = _END if file == source else ""
            (build / file.name).write_text(_rewritten(file) + end)
    target = build / "kernels.so"
    macros = [f"-D{name}={value}" for name, value in defines]
    emulator = ["-include", str(HERE / "cuda_emulator.h"), f"-I{HERE}"]
    link = ["-L", str(folder()), "-lcuda_emulator", f"-Wl,-rpath,{folder()}"]
    _compile(build / source.name, target, [*emulator, *macros], link)
    library = ctypes.CDLL(str(target))
    library.emulated_statics.restype = ctypes.c_void_p
    library.emulated_static_bytes.restype = ctypes.c_uint64
    return library


@functools.cache
def static_bytes(library, name):
    """Return the bytes of static shared memory that a kernel declares in its own body."""
    table = subprocess.run(
        ["objdump", "-t", library], capture_output=True, text=True, check=True
    ).stdout
    local = re.compile(rf"\semulated_shared\s+([0-9a-f]+)\s+_ZZ{len(name)}{name}E")
    return sum(int(size, 16) for size in local.findall(table))


def parameters(source, name):
    """Return the parameters of a kernel as written, or None where the file does not show them."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source.read_text(), flags=re.DOTALL)
    match = re.search(rf"__global__[^;{{}}]*\b{re.escape(name)}\s*\(([^)]*)\)\s*\{{", text)
    if match is None:
        return None
    return [" ".join(part.split()) for part in match[1].split(",") if part.strip()]


def _ask(match):
    """Replace a declaration of dynamic shared memory by asking the emulator for it."""
    start, kind, name = match.groups()
    ask = f"static_cast<{kind}*>(emulated_dynamic_shared())"
    at_file_scope = start == ""  # where nothing can be asked for yet
    return f"#define {name} ({ask})" if at_file_scope else f"{start}{kind}* const {name} = {ask};"


def _rewritten(file):
    """Return a source with dynamic shared memory asked for; lines keep their numbers."""
    text = _DYNAMIC.sub(_ask, file.read_text())
    return f'#line 1 "{file}"\n{text}'


def _compile(source, target, flags, link=()):
    sanitize = os.environ.get("TERAEDGE_EMULATOR_SANITIZE")  # as "undefined"
    extra = [f"-fsanitize={sanitize}"] if sanitize else []
    sources = ["-x", "c++", str(source), "-o", str(target)]
    command = [COMPILER, *_FLAGS, *extra, *flags, *sources, *link]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"{source.name} does not compile for the CPU:\n{done.stderr}")
