"""Layers take the kernel that suits them among their like, and another one among others."""

import numpy as np
import pytest

import teraedge
from teraedge.plan import gpu
from teraedge.plan.neighbours import settled
from teraedge.plan.predict import predicted
from teraedge.plan.rates import Rates
from teraedge.plan.resident import resident_instead

ROOM = 232448


def laid_out(n_in, n_out, fan_in):
    rng = np.random.default_rng(n_in + n_out)
    rows = np.concatenate([rng.choice(n_in, fan_in, replace=False) for _ in range(n_out)])
    weights = np.zeros((n_in, n_out), np.float32)
    weights[rows, np.repeat(np.arange(n_out), fan_in)] = rng.uniform(0.5, 1, len(rows))
    layer = teraedge.Layer(weights, -0.25, teraedge.ReLU())
    return predicted(gpu.lay_out(layer, ROOM, few=True), Rates())


def kernels(*layers):
    return [layer.kernel for layer in settled(layers, Rates(), few=True)]


@pytest.mark.parametrize(
    ("n_in", "n_out", "fan_in", "kernel"),
    [
        (64, 64, 2, "small"),
        (64, 64, 16, "small"),
        (256, 256, 16, "small"),
        (1024, 64, 16, "small"),
        (1024, 1024, 16, "resident"),
        (512, 512, 400, "dense"),
    ],
)
def test_a_layer_takes_the_kernel_that_suits_it(n_in, n_out, fan_in, kernel):
    assert laid_out(n_in, n_out, fan_in).kernel == kernel


def test_small_layers_stay_among_their_like():
    tiny = laid_out(64, 64, 4)
    assert kernels(*[tiny] * 20) == ["small"] * 20


def test_a_lone_small_layer_goes_with_the_resident_ones():
    tiny, large = laid_out(64, 64, 4), laid_out(1024, 1024, 16)
    assert (tiny.kernel, large.kernel) == ("small", "resident")
    assert kernels(large, tiny, large, tiny) == ["resident"] * 4


def test_many_small_layers_are_worth_a_change_of_kernels():
    tiny, large = laid_out(64, 64, 4), laid_out(1024, 1024, 16)
    assert kernels(large, *[tiny] * 40) == ["resident"] + ["small"] * 40


def shared_inputs():
    """Return a layer whose neurons share inputs in groups of 32, of weights of three terms."""
    rng = np.random.default_rng(7)
    weights = np.zeros((1024, 1024), np.float32)
    for group in range(32):
        weights[group::32, group::32] = rng.uniform(0.1, 1, (32, 32))
    return predicted(gpu.lay_out(teraedge.Layer(weights, -0.25, teraedge.ReLU()), ROOM), Rates())


def test_a_few_layers_of_the_block_kernel_go_with_the_resident_ones():
    """Between two others, one saves 3 ns, and a change of kernels takes 2."""
    block, large = shared_inputs(), laid_out(1024, 1024, 16)
    assert (block.kernel, large.kernel) == ("block", "resident")
    assert kernels(large, block, large) == ["resident"] * 3
    assert kernels(large, block) == ["resident", "block"]
    assert kernels(large, block, block, large) == ["resident", "block", "block", "resident"]
    assert kernels(block) == ["block"]
    assert all(layer.instead is None for layer in settled([block], Rates(), few=False))


def test_what_is_resident_instead_computes_the_same():
    tiny = laid_out(64, 64, 4)
    other = resident_instead(tiny)
    assert other.kernel == "resident"
    assert (other.n_in, other.n_out, other.edges) == (tiny.n_in, tiny.n_out, tiny.edges)
    np.testing.assert_array_equal(other.bias, tiny.bias)
    assert resident_instead(other) is other


def test_where_all_samples_stay_a_layer_takes_what_is_the_fastest_with_many():
    rng = np.random.default_rng(0)
    weights = (rng.random((256, 256)) < 1 / 16).astype(np.float32) * rng.random(256, np.float32)
    layer = teraedge.Layer(weights, -0.25, teraedge.ReLU())
    assert gpu.lay_out(layer, ROOM, few=True).kernel == "small"
    assert gpu.lay_out(layer, ROOM).kernel == "resident"
