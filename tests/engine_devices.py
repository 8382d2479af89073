"""The devices that the suite of engines runs on, and how much of it on each.

"emulated" is the CUDA engine on the CPU, in tests/cuda_emulator: every kernel with its barriers,
but thousands of times slower than a GPU, so it gets fewer cases.
"""

from functools import partial
from importlib.util import find_spec

import gpus
import pytest
from cuda_emulator import build

_HAS_ENGINE = find_spec("teraedge.engines.cuda.engine") is not None
NO_ENGINE = pytest.mark.skipif(not _HAS_ENGINE, reason="the CUDA engine is not written yet")

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[NO_ENGINE, *gpus.NEEDS_GPU]),
    pytest.param(
        "emulated",
        marks=[NO_ENGINE, pytest.mark.skipif(not build.available(), reason=build.REASON)],
    ),
]
EMULATED_SAMPLES = (0, 1, 33, 150)
EMULATED_OPTIONS = ("a", "c", "half resident")


class EmulatedName(str):
    """The name "cuda", for the engine; tests can tell that it is emulated."""

    __slots__ = ()


def is_emulated(device):
    return isinstance(device, EmulatedName)


def filling(device):
    """Return samples enough for every multiprocessor to have one of the largest tiles."""
    if is_emulated(device):
        return 150
    from teraedge.engines.cuda import driver

    with_tiles = driver.open_device(device)
    try:
        return with_tiles.multiprocessors * 33
    finally:
        with_tiles.close()


def options_for(device, options):
    """Return those of the named options that a test should try."""
    if not is_emulated(device):
        return options
    return {name: options[name] for name in EMULATED_OPTIONS if name in options}


def opened(name):
    """Return the device for a parameter of the suite, and a function that ends its use."""
    patch = pytest.MonkeyPatch()
    if name != "emulated":
        return name, patch.undo
    from cuda_emulator.device import EmulatedDevice

    # As late as events allow, so that a wait that is missing shows.
    device = partial(EmulatedDevice, deferred=True)
    patch.setattr("teraedge.engines.cuda.driver.open_device", device)
    return EmulatedName("cuda"), patch.undo


def keep(item):
    """Tell whether a collected test is worth its time on its device."""
    parameters = getattr(item, "callspec", None) and item.callspec.params
    if not parameters or parameters.get("device") != "emulated":
        return True
    return parameters.get("samples", 0) in EMULATED_SAMPLES


@pytest.fixture(name="device", params=DEVICES[1:])
def gpu_device(request):
    """For files whose cases are the CUDA engine's alone: ``device = engine_devices.gpu_device``."""
    name, undo = opened(request.param)
    yield name
    undo()
