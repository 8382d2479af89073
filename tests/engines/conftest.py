"""The devices of the suite; see engine_devices.py."""

import engine_devices
import pytest


@pytest.fixture(scope="module", params=engine_devices.DEVICES)
def device(request):
    """The name of a device, for `teraedge.compile`."""
    name, end = engine_devices.opened(request.param)
    yield name
    end()


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if not engine_devices.keep(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if engine_devices.keep(item)]
