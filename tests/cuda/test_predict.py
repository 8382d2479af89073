"""Predicted times of layers on a GPU, against what was measured on one H200."""

import numpy as np
import pytest
import scipy.sparse as sp

from teraedge import ClippedReLU, Layer
from teraedge.plan import gpu
from teraedge.plan.predict import predicted
from teraedge.plan.rates import Rates

SHARED = 227 * 1024
# Neurons, inputs a neuron, nanoseconds a sample of a layer, kernel.
MEASURED = [
    (1024, 32, 5.1, "resident"),
    (4096, 32, 24.3, "resident"),
    (8192, 32, 82.0, "staged"),
    (16384, 32, 198.0, "staged"),
    (65536, 32, 1130.0, "wide"),
]


def random_layer(neurons, fan_in):
    rng = np.random.default_rng(1)
    indices = rng.integers(0, neurons, neurons * fan_in)
    data = rng.random(neurons * fan_in, dtype=np.float32)
    starts = np.arange(neurons + 1) * fan_in
    matrix = sp.csc_array((data, indices, starts), shape=(neurons, neurons))
    return Layer(matrix.tocsr(), -0.1, ClippedReLU(32))


@pytest.mark.parametrize(("neurons", "fan_in", "nanos", "kernel"), MEASURED)
def test_within_a_quarter_of_what_was_measured(neurons, fan_in, nanos, kernel):
    layer = predicted(gpu.lay_out(random_layer(neurons, fan_in), SHARED), Rates())
    assert layer.kernel == kernel
    assert layer.choice.kernel == kernel
    assert layer.choice.seconds == pytest.approx(nanos * 1e-9, rel=0.25)
    assert layer.choice.limit.seconds <= layer.choice.seconds


@pytest.mark.parametrize(("multiprocessors", "clock"), [(66, 1.98e9), (132, 0.99e9)])
def test_a_gpu_of_half_the_speed_takes_twice_as_long(multiprocessors, clock):
    laid_out = gpu.lay_out(random_layer(1024, 8), SHARED)
    fast = predicted(laid_out, Rates()).choice
    slow = predicted(laid_out, Rates().scaled(multiprocessors, clock)).choice
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert slow.limit.seconds == pytest.approx(2 * fast.limit.seconds)
