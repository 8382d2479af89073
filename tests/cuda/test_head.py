"""The head of a network over rows that stay on the device."""

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

from teraedge.engines.cuda.feeding import Loader
from teraedge.head import HEADS, apply_head

pytestmark = pytest.mark.skipif(not build.available(), reason=build.REASON)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 10), (40, 32), (9, 77)])
def test_rows(head, shape):
    rows = np.random.default_rng(0).normal(0, 8, shape).astype(np.float32)
    rows[0] = 0
    device = EmulatedDevice()
    stream = device.stream()
    memory, after = device.allocate(rows.nbytes), device.allocate(rows.nbytes)
    stream.to_device(memory, rows)
    Loader(device, stream, "fp32").apply_head(head, memory, shape, after)
    out = np.empty_like(rows)
    stream.to_host(out, after)
    stream.synchronize()
    expected = apply_head(head, rows.astype(np.float64))
    np.testing.assert_allclose(
        out, expected, rtol=5e-6, atol=1e-6 if head == "log_softmax" else 1e-9
    )
    device.close()
