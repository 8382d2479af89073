"""What becomes of samples whose neurons are all at the upper bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge.plan.gpu import all_single
from teraedge.plan.saturation import saturation


def panels(*layers):
    return [all_single(layer) for layer in layers]


def layer(weights, bias, activation):
    return teraedge.Layer(np.asarray(weights, np.float32), bias, activation)


CLIPPED = teraedge.ClippedReLU(32)


def test_stays_at_the_bound():
    own = layer(np.eye(3), 0.5, CLIPPED)
    found = saturation(32.0, panels(own, own))
    assert found.layers.tolist() == [True, True, True]
    assert found.row.tolist() == [32, 32, 32]


def test_begins_after_the_first_bound_that_there_is():
    own = layer(np.eye(3), 0.5, CLIPPED)
    found = saturation(np.inf, panels(own, own))
    assert found.layers.tolist() == [False, True, True]


def test_within_rounding_of_the_bound_nothing_is_known():
    just = layer(np.full((3, 2), 1 / 3), 0, CLIPPED)
    assert saturation(32.0, panels(layer(np.eye(3), 0, CLIPPED)))  # exact
    found = saturation(32.0, panels(just, layer(np.eye(2), 1, CLIPPED)))
    assert found.layers.tolist() == [False, True, True]
    # After the last layer it is known for who is saturated then.
    assert saturation(32.0, panels(just)).layers.tolist() == [False, True]


def test_exact_sums_are_known_between_the_bounds():
    found = saturation(32.0, panels(layer([[0.25], [0.5]], 0.125, CLIPPED)))
    assert found.layers.tolist() == [True, False]
    assert found.row.tolist() == [24.125]


def test_sums_that_are_not_exact_are_not():
    assert saturation(32.0, panels(layer([[0.1], [0.2]], 0.125, teraedge.ReLU()))) is None
    assert saturation(32.0, panels(layer([[2.0**-20], [0.5]], 0.125, teraedge.ReLU())))
    assert saturation(32.0, panels(layer([[2.0**-26], [0.5]], 0.125, teraedge.ReLU()))) is None


def test_sums_beyond_what_fp32_holds_are_not_known():
    weights = np.float32(3e38) * np.array([[1], [1], [-1]], np.float32)
    assert saturation(32.0, panels(layer(weights, 0, CLIPPED))).layers.tolist() == [False, True]
    tiny = layer(np.full((1, 1), 2.0**-120), 0, teraedge.Hardtanh(0, 2.0**-40))
    assert saturation(2.0**-40, panels(tiny)).layers.tolist() == [False, True]


def test_zero_rows_and_curves_are_left_to_others():
    assert saturation(32.0, panels(layer(np.eye(2), -40, CLIPPED))) is None
    assert saturation(32.0, panels(layer(np.eye(2), 0, teraedge.Sigmoid()))) is None
    assert saturation(np.inf, panels(layer(np.eye(2), 0, teraedge.ReLU()))) is None


def test_neurons_without_inputs():
    found = saturation(32.0, panels(layer([[1, 0], [0, 0]], [0, 2.5], CLIPPED)))
    assert found.layers.tolist() == [True, False]
    assert found.row.tolist() == [32, 2.5]


@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), count=st.integers(1, 8))
@settings(deadline=None, max_examples=150)
def test_is_what_the_reference_says(seed, size, count):
    rng = np.random.default_rng(seed)
    choices = (CLIPPED, teraedge.ReLU(), teraedge.Identity(), teraedge.Hardtanh(-1, 2))
    layers = []
    for _ in range(count):
        weights = rng.choice([0, 0, 0.5, 1, -0.25, 0.3, 3], (size, size))
        bias = rng.choice([0, 0.5, -0.3], size)
        layers.append(layer(weights, bias, choices[rng.integers(len(choices))]))
    before = 32.0
    found = saturation(before, panels(*layers))
    if found is None:
        return
    for start in np.flatnonzero(found.layers):
        bound = before if start == 0 else layers[start - 1].activation.clamp[1]
        row = np.full((1, size), bound)
        if start == count:
            np.testing.assert_array_equal(found.row, row[0])
            continue
        result = teraedge.reference.run(teraedge.Network(layers[start:]), row)
        np.testing.assert_allclose(found.row, result.outputs[0], rtol=1e-7, atol=0)


@pytest.mark.parametrize("before", [np.inf, np.float32(3.4028235e38)])
def test_no_bound(before):
    assert saturation(before, panels(layer(np.eye(2), 0, teraedge.ReLU()))) is None
