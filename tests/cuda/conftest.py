"""The devices that tests of what is under the CUDA engine run on."""

import cuda_compile
import gpus
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

from teraedge.engines.cuda import driver, nvrtc

COMPILING = pytest.StashKey[cuda_compile.Compiling]()


@pytest.fixture(params=["emulated", "deferred", pytest.param("cuda", marks=gpus.NEEDS_GPU)])
def device(request, monkeypatch):
    """A device whose kernels are those of samples.cu."""
    if request.param == "cuda":
        real = nvrtc.cubin
        monkeypatch.setattr(nvrtc, "cubin", lambda *given: real(*given, build.HERE))
        device = driver.open_device("cuda")
    else:
        if not build.available():
            pytest.skip(build.REASON)
        device = EmulatedDevice(folder=build.HERE, deferred=request.param == "deferred")
    yield device
    device.close()


def pytest_collection_modifyitems(items):
    """Put what waits for compilations last, so that they run beside all other tests."""
    items.sort(key=_waits)


def pytest_collection_finish(session):
    """Begin to compile what the selected tests ask for."""
    wanted = [item.callspec.params for item in session.items if _waits(item)]
    if wanted and not session.config.option.collectonly:
        specialisations = cuda_compile.specialisations()
        pairs = [(specialisations[given["number"]], given["arch"]) for given in wanted]
        session.config.stash[COMPILING] = cuda_compile.Compiling(pairs)


def pytest_sessionfinish(session):
    if COMPILING in session.config.stash:
        session.config.stash[COMPILING].stop()


def _waits(item):
    return "compiled" in getattr(item, "fixturenames", ())


@pytest.fixture
def compiled(request):
    """A function of a specialisation and an architecture that returns what its kernels take."""
    return request.config.stash[COMPILING].usage
