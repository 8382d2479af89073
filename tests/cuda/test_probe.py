"""The kernel that `teraedge doctor` runs, on the emulator."""

import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

from teraedge.cli import doctor_cuda
from teraedge.engines.cuda import driver
from teraedge.engines.cuda.probe import probe

pytestmark = pytest.mark.skipif(not build.available(), reason=build.REASON)


def test_probe():
    device = EmulatedDevice(multiprocessors=5)
    assert probe(device) is None
    assert device.used == 0
    assert device.launches == 1


def test_finding(monkeypatch):
    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    finding = doctor_cuda._gpu(1)
    assert (finding.name, finding.ok) == ("cuda:1", True)
    assert finding.text.startswith("emulated GPU, emulated, 1.07 GB of 1.07 GB free; a kernel")
    monkeypatch.setattr(EmulatedDevice, "kernels", lambda *_: 1 / 0)
    finding = doctor_cuda._gpu(0)
    assert finding.ok is False
    assert "ZeroDivisionError" in finding.text
