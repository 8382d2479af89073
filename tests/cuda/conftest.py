"""The devices that tests of what is under the CUDA engine run on."""

import gpus
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

from teraedge.engines.cuda import driver, nvrtc


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
