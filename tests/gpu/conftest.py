"""Everything here needs a GPU; the rest of the CUDA engine's tests run on the emulator too."""

from pathlib import Path

import engine_devices
import gpus

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for mark in [*gpus.NEEDS_GPU, engine_devices.NO_ENGINE]:
                item.add_marker(mark)
