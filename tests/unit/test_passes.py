"""Every pass keeps the network's function, finds what it is for, and leaves the rest alone.

Small whole numbers throughout: sums are exact in any order, so outputs must be equal to the bit.
"""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from engines_networks import make_features, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from teraedge import ClippedReLU, Layer, Network, Options, ReLU, reference
from teraedge.engines.cpu import calibrate
from teraedge.errors import ModelError, OptionsError
from teraedge.grouping import equal_columns, pick_columns
from teraedge.passes import PASSES
from teraedge.passes.draft import Draft, Wiring
from teraedge.passes.rewriter import Rewriter
from teraedge.plan import plan
from teraedge.plan.packing import pack_panels
from teraedge.plan.panels import panel_layer
from teraedge.plan.plan import Plan, _windows


def rewrite(network, passes=PASSES):
    """Return the rewritten network and the edges each pass saved."""
    rewriter = Rewriter(passes, Wiring.identity(network.n_in))
    layers = [part for window in _windows(network) for part in rewriter.rewrite(*window)]
    return Network(layers), +rewriter.saved


def with_zeros(rng):
    first = weights(rng, 20, 30)
    first.data[::3] = 0
    return [Layer(first, -1, ReLU()), Layer(weights(rng, 30, 8))]


def with_unread(rng):
    second = weights(rng, 30, 8, density=0.3).tolil()
    second[[0, 7, 29], :] = 0
    return [Layer(weights(rng, 20, 30), -1, ReLU()), Layer(second, 1, ReLU())]


def with_constants(rng):
    """Neurons without inputs: some are f(b) = 0, some 3, some clipped."""
    first = weights(rng, 20, 30, density=0.3).tolil()
    first[:, [2, 3, 11]] = 0
    bias = rng.integers(-2, 2, 30)
    bias[[2, 3, 11]] = -1, 3, 90
    last = Layer(weights(rng, 12, 8, density=0.4), 1, ReLU())
    middle = Layer(weights(rng, 30, 12, density=0.3), -1, ClippedReLU(20))
    return [Layer(first, bias, ClippedReLU(20)), middle, last]


def with_equal_neurons(rng):
    columns = rng.integers(0, 10, 40)
    first = weights(rng, 20, 10, density=0.3).tocsc()[:, columns]
    bias = rng.integers(-2, 2, 10)[columns]
    return [Layer(first, bias, ReLU()), Layer(weights(rng, 40, 8, density=0.4), -1, ReLU())]


def with_equal_rows(rng):
    """Inputs that many neurons read with the same weights."""
    rows = rng.integers(0, 6, 40)
    first = weights(rng, 6, 30, density=0.6).tocsr()[rows]
    return [Layer(first, -2, ReLU()), Layer(weights(rng, 30, 8, density=0.4))]


TRIGGERS = {
    "drop_zeros": with_zeros,
    "drop_unread": with_unread,
    "fold_constants": with_constants,
    "merge_neurons": with_equal_neurons,
    "factor": with_equal_rows,
}


def plain(rng):
    """All weights differ: nothing for any pass to find."""
    layers = []
    for n_in, n_out in ((20, 30), (30, 25), (25, 8)):
        dense = np.where(rng.random((n_in, n_out)) < 0.3, 1, 0)
        dense[0], dense[:, 0] = 1, 1
        dense = dense * rng.permutation(np.arange(1, n_in * n_out + 1)).reshape(n_in, n_out)
        layers.append(Layer(dense.astype(np.float32), -1, ReLU()))
    return layers


def check_same(network, passes, seed=0):
    features = make_features(network, 60, seed)
    rewritten, saved = rewrite(network, passes)
    expected = reference.run(network, features)
    np.testing.assert_array_equal(reference.run(rewritten, features).outputs, expected.outputs)
    assert rewritten.edges == network.edges - sum(saved.values())
    return rewritten, saved


@pytest.mark.parametrize("name", TRIGGERS)
def test_each_pass_alone_finds_what_it_is_for(name):
    network = Network(TRIGGERS[name](np.random.default_rng(4)))
    rewritten, saved = check_same(network, (name,))
    assert set(saved) == {name}
    assert saved[name] > 0
    assert rewritten.n_out == network.n_out
    together, all_saved = check_same(network, PASSES)
    assert together.edges <= rewritten.edges
    assert all_saved[name] > 0


@pytest.mark.parametrize("name", TRIGGERS)
def test_each_pass_can_be_switched_off(name):
    network = Network(TRIGGERS[name](np.random.default_rng(4)))
    others = tuple(other for other in PASSES if other != name)
    assert name not in check_same(network, others)[1]


@pytest.mark.parametrize("passes", [(), PASSES, *((name,) for name in PASSES)], ids=str)
def test_nothing_to_find_leaves_the_layers_as_they_are(passes):
    network = Network(plain(np.random.default_rng(0)))
    rewritten, saved = rewrite(network, passes)
    assert not saved
    assert all(ours is given for ours, given in zip(rewritten, network, strict=True))


def test_merging_goes_on_from_layer_to_layer():
    """Each layer's neurons are equal only once those before are joined."""
    first = Layer(np.repeat(np.eye(4, 6), 2, axis=1), -1, ReLU())  # 12 neurons in pairs
    swap = np.zeros((12, 12))  # neuron j reads the other one of its pair: no two columns equal
    swap[np.arange(12) ^ 1, np.arange(12)] = 1
    network = Network([first, *[Layer(swap, None, ReLU())] * 3, Layer(np.ones((12, 3)))])
    rewritten, _ = check_same(network, ("merge_neurons",))
    assert [layer.n_out for layer in rewritten][:4] == [5, 5, 5, 5]


def test_all_neurons_of_a_layer_constant():
    rng = np.random.default_rng(1)
    nothing = sp.csr_array((20, 30))
    network = Network(
        [Layer(nothing, rng.integers(-2, 3, 30), ReLU()), Layer(weights(rng, 30, 9), -1, ReLU())]
    )
    rewritten, _ = check_same(network, PASSES)
    assert rewritten[0].edges == 0


def test_merged_outputs_are_given_back():
    rng = np.random.default_rng(2)
    dense = np.repeat(weights(rng, 30, 4, density=0.8).toarray(), 10, axis=1)
    network = Network([Layer(dense, 1, ReLU())])
    rewritten, saved = check_same(network, PASSES)
    assert rewritten.n_out == 40
    assert saved["merge_neurons"] > 0.5 * network.edges


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    kinds=st.integers(1, 12),
    density=st.floats(0, 0.7),
    zeros=st.floats(0, 0.5),
    passes=st.sets(st.sampled_from(PASSES)),
    activation=st.sampled_from([None, ReLU(), ClippedReLU(5)]),
    seed=st.integers(0, 2**32),
)
def test_any_network(sizes, kinds, density, zeros, passes, activation, seed):
    """Networks of few kinds of rows and columns, with zeros, empty columns and any bias."""
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        block = weights(rng, kinds, kinds, density=density, low=-1, high=2).toarray()
        dense = block[np.ix_(rng.integers(0, kinds, n_in), rng.integers(0, kinds, n_out))]
        matrix = sp.csr_array(dense)
        matrix.data[rng.random(matrix.nnz) < zeros] = 0
        bias = rng.integers(-1, 2, kinds)[rng.integers(0, kinds, n_out)]
        layers.append(Layer(matrix, bias, activation))
    check_same(Network(layers), tuple(name for name in PASSES if name in passes), seed)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 60),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    values=st.booleans(),
    labelled=st.booleans(),
)
def test_equal_columns(rows, columns, density, seed, values, labelled):
    rng = np.random.default_rng(seed)
    matrix = weights(rng, rows, columns, density=density, low=-1, high=2).tocsc()
    matrix.sort_indices()
    labels = rng.integers(0, 2, columns) if labelled else None
    found = equal_columns(
        matrix.indptr, matrix.indices, matrix.data if values else None, labels=labels
    )
    dense = matrix.toarray() if values else (matrix != 0).toarray()
    keys = [
        (column.tobytes(), labels is not None and labels[j]) for j, column in enumerate(dense.T)
    ]
    assert found.tolist() == [keys.index(key) for key in keys]


def test_equal_hashes_are_only_a_hint(monkeypatch):
    """With a hash that is the same for all columns, different ones must still be told apart."""
    from teraedge import grouping

    monkeypatch.setattr(grouping, "_MIX", np.uint64(0))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: _SameKeys())
    matrix = sp.csc_array(np.array([[1, 1, 1, 0], [0, 0, 0, 1]]))
    assert equal_columns(matrix.indptr, matrix.indices, matrix.data).tolist() == [0, 0, 0, 3]


class _SameKeys:
    def integers(self, low, high, size, dtype):
        return np.ones(size, dtype)


def test_options_name_passes():
    assert Options().chosen_passes == PASSES
    assert Options(passes=False).chosen_passes == ()
    assert Options(passes=("factor", "drop_zeros")).chosen_passes == ("drop_zeros", "factor")
    with pytest.raises(OptionsError, match="'fold'"):
        Options(passes=("fold",))


def test_columns_are_picked_as_scipy_does():
    rng = np.random.default_rng(0)
    matrix = sp.csc_array(weights(rng, 30, 40, density=0.1))
    for columns in (rng.integers(0, 40, 70), np.arange(40), np.empty(0, np.int64)):
        picked = pick_columns(matrix, columns)
        expected = matrix[:, columns]
        assert picked.shape == expected.shape
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(picked, part), getattr(expected, part))


@pytest.mark.parametrize("constants", [False, True])
def test_absorbing_leaves_the_given_weights_as_they_were(constants):
    """Inputs that run as one, and inputs that are constant."""
    rng = np.random.default_rng(0)
    layer = Layer(weights(rng, 12, 9, density=0.5), 1.0)
    before = layer.weights.toarray()
    source = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, -1 if constants else 3, 3, 3])
    constant = np.where(source < 0, 2.5, 0.0)
    draft = Draft.of(layer)
    draft.inputs = Wiring(source, constant, 4)
    draft.absorb()
    np.testing.assert_array_equal(draft.given.toarray(), before)
    np.testing.assert_array_equal(layer.weights.toarray(), before)
    running = rng.normal(size=(5, 4))
    whole = np.where(source < 0, constant, running[:, source])
    expected = whole @ before + 1.0
    np.testing.assert_allclose(running @ draft.weights.toarray() + draft.bias, expected)


def test_layers_begun_in_threads_give_the_same_plan(monkeypatch):
    """Several layers ahead, or one after the other; errors name the layer all the same."""
    rng = np.random.default_rng(0)
    layers = [*with_equal_neurons(rng), *with_constants(rng)]
    layers.insert(2, Layer(weights(rng, 8, 20, density=0.5), -1, ReLU()))
    network = Network(layers)

    def laid_out(network):
        speeds = calibrate.TYPICAL
        made = Plan(network, Options(), lambda layer: panel_layer(layer, speeds), 10**9)
        arrays = [pack_panels(layer)[0] for layer in made.resident]
        return made.parts, made.saved, made.droppable.tolist(), made.fingerprint, arrays

    alone = laid_out(network)
    monkeypatch.setattr(plan, "LARGE", 0)
    monkeypatch.setattr(plan, "usable_cores", lambda: 3)
    together = laid_out(network)
    assert together[:4] == alone[:4]
    for one, other in zip(alone[4], together[4], strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name])
    layers[3] = Layer(layers[3].weights.astype(np.float64) * 1e39, -1, ReLU())
    with pytest.raises(ModelError, match="layer 3: a weight is too large"):
        laid_out(Network(layers))
