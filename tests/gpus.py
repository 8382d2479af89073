"""Whether there is a GPU to test on."""

import ctypes
from functools import cache

import pytest


@cache
def missing():
    """Return why no GPU can be used here, or None if one can."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver"
    from teraedge.engines.cuda import driver
    from teraedge.errors import TeraedgeError

    try:
        driver.device_count()
    except TeraedgeError as error:
        return str(error)
    return None


NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(missing() is not None, reason=f"needs a GPU: {missing()}"),
]
