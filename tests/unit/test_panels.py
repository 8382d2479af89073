"""The panel layout holds exactly the layer, and finds the shapes it is for."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from engines_networks import shared_inputs, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from teraedge import Layer
from teraedge.engines.cpu.calibrate import TYPICAL
from teraedge.errors import ModelError
from teraedge.plan.panels import panel_layer


def lay_out(matrix, height=4):
    return panel_layer(Layer(matrix), replace(TYPICAL, tile=64, height=height))


def dense_of(layout):
    """Rebuild the weight matrix, and check that every neuron is in one panel."""
    dense = np.zeros((layout.n_in, layout.n_out), np.float32)
    seen = []
    for panels in (layout.tall, layout.single):
        for panel, (first, last) in enumerate(zip(panels.starts, panels.starts[1:], strict=False)):
            neurons = panels.outputs[panel * panels.height : (panel + 1) * panels.height]
            seen += neurons.tolist()
            inputs = panels.indices[first:last]
            assert len(set(inputs.tolist())) == len(inputs)
            block = np.full((len(inputs), panels.height), layout.value, np.float32)
            if layout.value is None:
                block = panels.weights.reshape(-1, panels.height)[first:last]
            dense[np.ix_(inputs, neurons)] = block
    assert sorted(seen) == list(range(layout.n_out))
    return dense


@settings(max_examples=150, deadline=None)
@given(
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 60),
    kinds=st.integers(1, 8),
    density=st.floats(0, 1),
    missing=st.floats(0, 0.4),
    equal=st.booleans(),
    height=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_holds_the_layer(n_in, n_out, kinds, density, missing, equal, height, seed):
    """Columns of few kinds, some of their edges missing."""
    rng = np.random.default_rng(seed)
    pattern = (rng.random((n_in, kinds)) < density)[:, rng.integers(0, kinds, n_out)]
    pattern &= rng.random((n_in, n_out)) >= missing
    values = np.ones((n_in, n_out)) if equal else rng.integers(1, 5, (n_in, n_out))
    dense = (pattern * values).astype(np.float32)
    layout = lay_out(dense, height)
    np.testing.assert_array_equal(dense_of(layout), dense)
    assert layout.edges == pattern.sum()


def test_neurons_with_the_same_inputs_share_panels():
    rng = np.random.default_rng(0)
    layout = lay_out(shared_inputs(rng, 10, 7, 5, 40, equal=False))
    # 4 of each 7 as they are; those left over may still share a panel with a little padding
    assert 40 <= len(layout.tall.outputs) <= 68


def test_equal_weights_need_no_values():
    rng = np.random.default_rng(0)
    layout = lay_out(shared_inputs(rng, 10, 8, 5, 40, equal=True))
    assert layout.value == 1.0
    assert layout.tall.weights.size == 0
    assert layout.tall.indices.dtype == np.uint16


def test_a_few_missing_edges_are_padded():
    rng = np.random.default_rng(0)
    full = shared_inputs(rng, 20, 8, 20, 200, equal=False).tocsr()
    holes = full.copy()
    holes.data[rng.random(holes.nnz) < 0.1] = 0
    holes.eliminate_zeros()
    layout = lay_out(holes)
    assert len(layout.tall.outputs) > 0.8 * 160
    np.testing.assert_array_equal(dense_of(layout), holes.toarray())


@pytest.mark.parametrize(("density", "padded"), [(0.03, False), (0.1, False), (0.7, True)])
def test_scattered_edges_are_padded_only_where_dense(density, padded):
    rng = np.random.default_rng(0)
    layout = lay_out(weights(rng, 200, 400, density=density))
    assert len(layout.tall.outputs) == (400 if padded else 0)


def test_wide_layers_take_four_byte_indices():
    wide = sp.csr_array(([1.0, 2.0], ([0, 70_000], [0, 1])), shape=(70_001, 2))
    layout = lay_out(wide)
    assert layout.single.indices.dtype == np.uint32
    assert sorted(layout.single.indices.tolist()) == [0, 70_000]


def test_too_large_for_fp32():
    with pytest.raises(ModelError, match="weight is too large for fp32"):
        lay_out(np.array([[1e39]]))
    with pytest.raises(ModelError, match="bias is too large for fp32"):
        panel_layer(Layer([[1.0]], 1e39), TYPICAL)


def test_an_index_lies_behind_the_last():
    """Kernels read four bytes at an index of two."""
    layout = lay_out(weights(np.random.default_rng(0), 40, 30))
    for panels in (layout.tall, layout.single):
        assert panels.indices.base.size == len(panels.indices) + 1
