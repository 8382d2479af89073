"""The cache of compiled kernels, and what the compiler says; no GPU needed."""

import subprocess
import sys

import pytest

from teraedge.engines.cuda import nvrtc
from teraedge.errors import DeviceError

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

SOURCE = """#include "scale.cuh"
extern "C" __global__ void scale(float* values) { values[threadIdx.x] *= SCALE + BASE; }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scale.cu").write_text(SOURCE)
    (tmp_path / "scale.cuh").write_text("#define BASE 1\n")
    return tmp_path


def entries(folder):
    return sorted((folder / "cache" / "cuda").glob("*"))


def cubin(folder, scale=2, arch="sm_90"):
    return nvrtc.cubin("scale.cu", {"SCALE": scale}, arch, folder)


def test_compiles_once(folder, monkeypatch):
    code = cubin(folder)
    assert code.startswith(b"\x7fELF")
    (entry,) = entries(folder)
    assert entry.name.startswith("scale-")
    monkeypatch.setattr(nvrtc, "compile_cubin", None)  # not called again
    assert cubin(folder) == code


def test_everything_that_matters_is_in_the_key(folder):
    codes = [cubin(folder), cubin(folder, scale=3), cubin(folder, arch="sm_80")]
    (folder / "scale.cuh").write_text("#define BASE 5\n")
    codes.append(cubin(folder))
    (folder / "scale.cu").write_text(SOURCE.replace("*=", "+="))
    codes.append(cubin(folder))
    assert len(set(codes)) == len(entries(folder)) == 5


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_entry_is_made_again(folder, damage):
    code = cubin(folder)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] if damage is None else damage)
    assert cubin(folder) == code
    assert entry.read_bytes() == whole


def test_cache_that_cannot_be_written(folder):
    (folder / "cache").write_text("a file")
    assert cubin(folder).startswith(b"\x7fELF")


def test_many_processes_at_once(folder):
    program = (
        "import sys; from pathlib import Path; from teraedge.engines.cuda import nvrtc\n"
        "code = nvrtc.cubin('scale.cu', {'SCALE': 2}, 'sm_90', Path(sys.argv[1]))\n"
        "assert code.startswith(b'\\x7fELF')"
    )
    command = [sys.executable, "-c", program, str(folder)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert len(entries(folder)) == 1


@pytest.mark.parametrize(
    ("scale", "arch", "message"),
    [
        ("(", "sm_90", r"scale.cu do not compile for sm_90: scale.cu\(2\): error: expected"),
        ("nothing", "sm_90", r'identifier "nothing" is undefined$'),
        ("2", "sm_1", r"invalid value for --gpu-architecture"),
    ],
)
def test_errors_in_one_line(folder, scale, arch, message):
    with pytest.raises(DeviceError, match=message) as caught:
        cubin(folder, scale, arch)
    assert "\n" not in str(caught.value)
    assert not (folder / "cache").exists()
