"""Graphs of linear maps, activations and sums become chains of layers with the same answers."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import GELU, ClippedReLU, Hardtanh, Identity, ReLU, Sigmoid, SiLU, Tanh
from teraedge.errors import ModelError
from teraedge.formats import _chain, _graph
from teraedge.formats._graph import Value

ANY = [ReLU(), GELU(), GELU("tanh"), SiLU()]
ALL = [*ANY, ClippedReLU(2), Hardtanh(-1, 3), Sigmoid(), Tanh(), Identity()]


class Graph:
    """A value beside what it must be for some samples."""

    def __init__(self, features):
        x = Value((features.shape[1],), where="the input")
        self.values = [(x, features)]

    def add(self, value, expected):
        self.values.append((value, expected))
        return value


@st.composite
def graphs(draw, activations):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    graph = Graph(rng.normal(size=(7, draw(st.integers(1, 4)))))
    for number in range(draw(st.integers(1, 9))):
        x, expected = graph.values[draw(st.integers(0, len(graph.values) - 1))]
        kind = draw(st.sampled_from(["linear", "activation", "scale", "sum", "sum"]))
        where = f"{kind} {number}"
        if kind == "linear":
            width = draw(st.integers(1, 4))
            weights = rng.normal(size=(x.size, width)) * (rng.random((x.size, width)) < 0.7)
            bias = draw(st.sampled_from([None, rng.normal(size=width)]))
            value = _graph.linear(x, weights, bias, where)
            graph.add(value, expected @ weights + (0 if bias is None else bias))
        elif kind == "activation":
            f = draw(st.sampled_from(activations))
            graph.add(_graph.activated(x, f, where), f(expected))
        elif kind == "scale":
            scale, shift = rng.normal(size=(2, x.size)) * draw(st.sampled_from([0.0, 1.0]))
            graph.add(_graph.scaled(x, scale, shift, where), expected * scale + shift)
        else:
            fitting = [pair for pair in graph.values if pair[0].shape == x.shape]
            other, theirs = draw(st.sampled_from(fitting))
            factor = draw(st.sampled_from([1.0, -0.5]))
            value = _graph.added((x, other), (1.0, factor), where)
            graph.add(value, expected + factor * theirs)
    return graph


def assert_same(graph):
    (_, features), (output, expected) = graph.values[0], graph.values[-1]
    network = _chain.chain(output, dtype=np.float64)
    ours = teraedge.reference.run(network, features).outputs
    np.testing.assert_allclose(ours, expected, atol=1e-9 * max(1, np.abs(expected).max()))
    return network


@settings(max_examples=300, deadline=None)
@given(graphs(ANY))
def test_any_graph_over_activations_that_halve(graph):
    assert_same(graph)


@settings(max_examples=300, deadline=None)
@given(graphs(ALL))
def test_other_graphs_are_right_or_refused(graph):
    try:
        assert_same(graph)
    except ModelError as error:
        assert "cannot carry it past" in str(error)  # noqa: PT017 (either will do)


@settings(max_examples=200, deadline=None)
@given(graphs([ReLU()]))
def test_what_is_carried_over_relu_is_carried_exactly(graph):
    """Whole numbers stay whole: engines give them to the last bit."""
    (x, features), *_ = graph.values
    y, expected = x, np.rint(3 * features)
    for number in range(3):
        weights = np.sign(np.random.default_rng(number).normal(size=(x.size, x.size)))
        inner = _graph.activated(_graph.linear(y, weights, None, "in"), ReLU(), "f")
        y = _graph.added((y, _graph.linear(inner, weights.T, None, "out")), (1.0, 1.0), "sum")
        expected = expected + np.maximum(expected @ weights, 0) @ weights.T
    network = _chain.chain(y, dtype=np.float32)
    result = teraedge.compile(network).run(np.rint(3 * features))
    np.testing.assert_array_equal(result.outputs, expected)


def test_layers_that_need_nothing_else_come_out_as_they_went_in():
    rng = np.random.default_rng(0)
    x = Value((5,), where="the input")
    weights = [sp.random_array((a, b), density=0.5, rng=rng) for a, b in [(5, 6), (6, 4), (4, 3)]]
    for number, each in enumerate(weights):
        x = _graph.linear(x, each, None, f"linear {number}")
        if number != 1:  # two linear maps in a row stay two layers
            x = _graph.activated(x, Tanh(), f"tanh {number}")
    network = _chain.chain(x, dtype=np.float64)
    assert [layer.activation for layer in network] == [Tanh(), Identity(), Tanh()]
    for layer, each in zip(network, weights, strict=True):
        np.testing.assert_array_equal(layer.weights.toarray(), each.toarray())
        assert layer.bias is None
    assert network.notes == ()


def test_a_value_that_is_only_an_input_is_a_layer():
    network = _chain.chain(Value((3,), where="the input"), dtype=np.float32)
    np.testing.assert_array_equal(network[0].weights.toarray(), np.eye(3))


def test_numbers_that_are_not_finite():
    x = Value((2,), where="the input")
    x = _graph.linear(x, np.eye(2) * 1e300, None, "linear")
    with pytest.raises(ModelError, match="layer 0 has a weight or bias that is not a finite"):
        _chain.chain(x, dtype=np.float32)


def test_two_inputs():
    both = [Value((2,), where="one"), Value((2,), where="two")]
    total = _graph.added(both, (1.0, 1.0), "sum")
    with pytest.raises(ModelError, match="more than one input"):
        _chain.chain(total, dtype=np.float32)
