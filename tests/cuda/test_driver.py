"""The driver module's calls, on a stand-in for the NVIDIA driver that notes what it is told.

This shows that NVIDIA's Python libraries take the calls as they are made; what a GPU does with them
is for tests/gpu.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import build

HERE = Path(__file__).parent

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.skipif(not build.available(), reason=build.REASON)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """A folder with a libcuda.so.1, which must be found before a process starts."""
    folder = tmp_path_factory.mktemp("fake")
    flags = ["-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    source, target = HERE / "fake_libcuda.cpp", folder / "libcuda.so.1"
    subprocess.run([build.COMPILER, *flags, source, "-o", target], check=True)
    return folder


def run(command, libraries, cache, **variables):
    paths = {"LD_LIBRARY_PATH": str(libraries), "TERAEDGE_CACHE": str(cache)}
    return subprocess.run(
        command,
        env={**os.environ, **paths, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_calls(libraries, tmp_path):
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run([*pytest_here, HERE / "driver_cases.py"], libraries, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


OPEN = "from teraedge.engines.cuda.driver import open_device as o; print(o({!r}))"


def test_no_gpu(libraries, tmp_path):
    command = [sys.executable, "-c", OPEN.format("cuda")]
    done = run(command, libraries, tmp_path, FAKE_NO_GPU="1")
    assert "DeviceError: the NVIDIA driver shows no GPU" in done.stderr


def test_driver_older_than_the_libraries(libraries, tmp_path):
    done = run([sys.executable, "-c", OPEN.format("cuda")], libraries, tmp_path, FAKE_OLD="1")
    assert "DependencyError: the NVIDIA driver brings CUDA 12 and the installed" in done.stderr
    assert "pip install 'teraedge[cuda12]'" in done.stderr


def test_no_such_gpu(libraries, tmp_path):
    done = run([sys.executable, "-c", OPEN.format("cuda:2")], libraries, tmp_path)
    assert "no device 'cuda:2'; this machine has 'cuda:0' to 'cuda:1'" in done.stderr
    done = run([sys.executable, "-c", OPEN.format("cuda:1")], libraries, tmp_path)
    assert done.stdout == "Device(Fake GPU, sm_90, 132 multiprocessors)\n", done.stderr


def test_doctor_finds_that_kernels_do_not_run(libraries, tmp_path):
    """They do not on the stand-in; all else is well."""
    program = (
        "from teraedge.cli import doctor_cuda\n"
        "for finding in doctor_cuda.findings(): print(finding.name, finding.ok, finding.text)"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = run(command, libraries, tmp_path, FAKE_ARGUMENTS="1")
    lines = done.stdout.splitlines()
    assert lines[2].startswith("NVIDIA driver None "), done
    assert lines[2].endswith("CUDA 13.0") or lines[2].endswith("(CUDA 13.0)")
    assert lines[3] == "gpu None 2"
    wrong = "Fake GPU, sm_90, 1.05 MB of 1.05 MB free; a small kernel gives wrong sums"
    assert lines[4:] == [f"cuda:{i} False {wrong}" for i in (0, 1)]
