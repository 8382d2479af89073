from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge.datasets import radixnet
from teraedge.errors import OptionsError


def _paths(network):
    """Count the paths between every input and every output."""
    total = None
    for layer in network:
        edges = (layer.weights.toarray() != 0).astype(np.int64)
        total = edges if total is None else total @ edges
    return total


@pytest.mark.parametrize("relabel", [False, True])
@pytest.mark.parametrize(
    ("systems", "widths"),
    [
        ([[2, 3]], None),
        ([[3, 3, 4]], 1),
        ([[2, 2, 3], [3, 4]], None),
        ([[2, 2, 3], [3, 4], [2, 2]], None),  # the last product divides the others
        ([[2, 2], [4]], [1, 2, 3, 1]),
        ([[6]], [5, 2]),
    ],
)
def test_equally_many_paths_and_degrees(systems, widths, relabel):
    network = radixnet.network(systems, widths, weights=1.0, relabel=relabel, seed=3)
    radices = [radix for system in systems for radix in system]
    size = prod(systems[0])
    borders = [1] * (len(radices) + 1) if widths in (None, 1) else widths
    for layer, radix, n_in, n_out in zip(network, radices, borders, borders[1:], strict=False):
        assert layer.weights.shape == (size * n_in, size * n_out)
        assert (np.diff(layer.weights.indptr) == radix * n_out).all()
        assert (np.bincount(layer.weights.indices) == radix * n_in).all()
        assert layer.weights.has_canonical_format
    assert network.edges == sum(layer.edges for layer in network)
    # arXiv 1905.00416, theorem 1: all edges on the way, shared by size outputs
    assert (_paths(network) == prod(radices) // size * prod(borders[1:-1])).all()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_system_is_path_connected(radices, repeats, width, relabel, seed):
    systems = [radices] * (repeats - 1) + [radices[::-1]]
    network = radixnet.network(systems, width, relabel=relabel, weights=-2, seed=seed)
    paths = _paths(network)
    assert (paths == paths[0, 0]).all()
    assert paths[0, 0] > 0


def test_edges_follow_the_digits():
    weights = radixnet.network([[3, 2, 4]], weights=1.0)[1].weights.toarray()
    for source in range(24):
        assert set(np.flatnonzero(weights[source])) == {source, (source + 3) % 24}


def test_relabelling_hides_the_structure_and_keeps_the_function():
    plain, relabelled = (
        radixnet.network([[4, 4], [4, 4]], 2, weights=0.5, bias=-0.25, relabel=relabel)
        for relabel in (False, True)
    )
    assert (plain[1].weights != relabelled[1].weights).nnz
    features = np.random.default_rng(0).integers(0, 3, (7, 32))
    np.testing.assert_array_equal(
        teraedge.reference.run(plain, features).outputs,
        teraedge.reference.run(relabelled, features).outputs,
    )


def _same(left, right):
    return left.weights.shape == right.weights.shape and not (left.weights != right.weights).nnz


def test_layers_are_the_same_whenever_they_are_made():
    network = radixnet.network([[4, 8]] * 3, relabel=True, seed=1)
    in_order = list(network)
    assert all(_same(network[index], in_order[index]) for index in (5, 0, 3))
    assert not _same(in_order[0], in_order[2])
    assert not _same(radixnet.network([[4, 8]] * 3, relabel=True, seed=2)[0], in_order[0])
    with pytest.raises(IndexError):
        network[6]


@pytest.mark.parametrize("weights", ["normal", "uniform"])
def test_distributions_keep_the_variance(weights):
    data = radixnet.uniform(4096, 64, 1, weights=weights)[0].weights.data
    assert data.dtype == np.float32
    assert data.mean() == pytest.approx(0, abs=2e-3)
    assert data.var() == pytest.approx(2 / 64, rel=0.02)


def test_weights_from_a_function():
    network = radixnet.network([[2, 3]], weights=lambda generator, edges: np.arange(edges))
    np.testing.assert_array_equal(network[0].weights.data, np.arange(12))
    wrong = radixnet.network([[2, 3]], weights=lambda generator, edges: np.ones(3))
    with pytest.raises(OptionsError, match=r"returned shape \(3,\); return \(12,\) values"):
        wrong[0]


def test_bias_and_activation():
    default = radixnet.network([[2, 3]])[1]
    assert default.bias is None
    assert default.activation == teraedge.ReLU()
    layer = radixnet.network([[2, 3]], bias=-0.5, activation=teraedge.ClippedReLU(6.0))[1]
    assert layer.activation == teraedge.ClippedReLU(6.0)
    assert set(layer.bias) == {-0.5}


@pytest.mark.parametrize(
    ("neurons", "fan_in", "layers", "width"),
    [(1024, 32, 4, None), (1024, 32, 13, 16), (1000, 10, 3, None), (729, 9, 2, 3), (7, 7, 2, None)],
)
def test_uniform(neurons, fan_in, layers, width):
    network = radixnet.uniform(neurons, fan_in, layers, width=width, weights=1.0)
    assert len(network) == layers
    assert network.edges == neurons * fan_in * layers
    for layer in network:
        assert (np.diff(layer.weights.indptr) == fan_in).all()
        assert (np.bincount(layer.weights.indices, minlength=neurons) == fan_in).all()


def test_uniform_connects_everything_in_the_fewest_layers():
    assert (_paths(radixnet.uniform(1000, 10, 3)) == 1).all()
    assert (_paths(radixnet.uniform(256, 32, 4, width=16)) == 16**3).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radixnet.network([]), "give a list of lists"),
        (lambda: radixnet.network([2, 3]), "give a list of lists"),
        (lambda: radixnet.network([[2], []]), "give a list of lists"),
        (lambda: radixnet.network([[2, 1]]), "a radix is 1; give a whole number of 2 or more"),
        (lambda: radixnet.network([[2, 2.0]]), "a radix is 2.0"),
        (lambda: radixnet.network([[2, 2], [3, 2], [4]]), r"products \[4, 6, 4\] for size 4"),
        (lambda: radixnet.network([[2, 2], [3]]), "the last must divide it"),
        (lambda: radixnet.network([[2, 3]], size=8), "for size 8"),
        (lambda: radixnet.network([[2, 3]], [1, 2]), "2 layers have 3 borders"),
        (lambda: radixnet.network([[2, 3]], 0), "widths is 0"),
        (lambda: radixnet.network([[2, 3]], [1, 0, 1]), "a width is 0"),
        (lambda: radixnet.network([[2, 3]], weights="gauss"), "one of 'normal', 'uniform'"),
        (lambda: radixnet.network([[2, 3]], weights=float("nan")), "weights is nan"),
        (lambda: radixnet.network([[2, 3]], seed=-1), "seed is -1"),
        (lambda: radixnet.uniform(1000, 20, 3), "fan-ins that exist.*: 10, 40"),
        (lambda: radixnet.uniform(1024, 32, 3, width=7), "and width 7; choose another"),
        (lambda: radixnet.uniform(1024, 32, 0), "layers is 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(OptionsError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
