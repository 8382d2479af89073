from itertools import pairwise

import numpy as np
import pytest
from engines_networks import weights
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import ClippedReLU, Layer, Network, Options, ReLU, reference, rounding
from teraedge.errors import ModelError
from teraedge.passes import PASSES
from teraedge.rounding import error_bound


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    density=st.floats(0.05, 1),
    activation=st.sampled_from([None, ReLU(), ClippedReLU(3)]),
    mode=st.sampled_from("abc"),
    repeats=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_engines_keep_to_the_bound(sizes, density, activation, mode, repeats, seed):
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        matrix = weights(rng, n_in, n_out, density=density).astype(np.float64)
        matrix.data = matrix.data * (1 if repeats else rng.normal(size=matrix.nnz)) / 3
        layers.append(Layer(matrix, rng.normal(size=n_out), activation))
    network = Network(layers)
    features = rng.normal(size=(40, sizes[0]))
    expected = reference.run(network, features).outputs
    errors = np.abs(
        teraedge.compile(network, options=Options.mode(mode)).run(features).outputs - expected
    )
    bound = error_bound(network, features)
    assert bound.shape == errors.shape
    assert (errors <= bound).all()


def test_the_bound_is_not_vacuous():
    """A weight that is wrong in the fourth digit is found."""
    rng = np.random.default_rng(0)
    matrix = weights(rng, 50, 40).astype(np.float64)
    features = rng.random((20, 50))
    wrong = matrix.copy()
    wrong.data[7] *= 1.0002
    bound = error_bound(Network([Layer(matrix)]), features)
    expected = reference.run(Network([Layer(matrix)]), features).outputs
    result = teraedge.compile(Network([Layer(wrong)])).run(features).outputs
    assert (np.abs(result - expected) > bound).any()
    assert bound.max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("upper", [0.5, 32])
def test_a_bounded_activation_bounds_the_error(upper):
    layer = Layer(np.full((4, 4), 1e6), 0, ClippedReLU(upper))
    bound = error_bound(Network([layer] * 3), np.ones((2, 4)))
    assert (bound <= upper).all()


def test_a_result_says_what_made_it_differ():
    rng = np.random.default_rng(0)
    column = rng.normal(size=(30, 1))
    layers = [Layer(np.repeat(column, 8, axis=1)), Layer(rng.normal(size=(8, 5)))]
    network, features = Network(layers), rng.normal(size=(20, 30))
    merged = teraedge.compile(network).run(features)
    plain = teraedge.compile(network, options=Options(passes=False)).run(features)
    assert merged.passes == {"merge_neurons": 30 * 7 + 7 * 5}
    assert plain.passes == {}
    assert any("merged neurons are added" in line for line in merged.rounding)
    assert not any("merged" in line for line in plain.rounding)
    assert any("fp32" in line for line in plain.rounding)
    bound = merged.error_bound(network, features)
    np.testing.assert_array_equal(bound, error_bound(network, features))
    assert (np.abs(merged.outputs - reference.run(network, features).outputs) <= bound).all()
    with pytest.raises(ModelError, match="give those of the run"):
        merged.error_bound(network, features[:3])


def test_every_pass_that_reassociates_says_so():
    assert set(rounding.PASSES) <= set(PASSES)
    assert len(rounding.statements(PASSES, False, None)) == 1 + len(rounding.PASSES)
    assert len(rounding.statements((), True, "softmax")) == 3
