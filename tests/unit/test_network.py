import numpy as np
import pytest
import scipy.sparse as sp

from teraedge import Identity, Layer, Network, ReLU
from teraedge.errors import ModelError, TeraedgeError


def test_dense_and_sparse_weights_become_csr():
    dense = np.array([[0, 2.5, 0], [1, 0, 0]], np.float32)
    for given in (
        dense,
        sp.csr_array(dense),
        sp.csc_matrix(dense),
        sp.coo_array(dense),
        dense.tolist(),
    ):
        layer = Layer(given)
        assert isinstance(layer.weights, sp.csr_array)
        np.testing.assert_array_equal(layer.weights.toarray(), dense)
        assert (layer.n_in, layer.n_out, layer.edges) == (2, 3, 2)
        assert layer.bias is None
        assert layer.activation == Identity()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("f4", "f4"),
        ("f8", "f8"),
        ("f2", "f4"),
        ("i1", "f4"),
        ("i8", "f8"),
        ("?", "f4"),
        ("u2", "f4"),
    ],
)
def test_dtypes(given, kept):
    layer = Layer(np.eye(3).astype(given), np.ones(3).astype(given))
    assert layer.weights.dtype == kept
    assert layer.bias.dtype == kept


def test_duplicates_are_summed_and_indices_sorted_on_a_copy():
    data, indices, indptr = (
        np.array([1.0, 2.0, 4.0, 8.0]),
        np.array([2, 0, 2, 1]),
        np.array([0, 3, 4]),
    )
    given = sp.csr_array((data, indices, indptr), shape=(2, 3))
    layer = Layer(given)
    np.testing.assert_array_equal(layer.weights.indices, [0, 2, 1])
    np.testing.assert_array_equal(layer.weights.data, [2, 5, 8])
    np.testing.assert_array_equal(given.indices, [2, 0, 2, 1])
    np.testing.assert_array_equal(given.data, [1, 2, 4, 8])


def test_canonical_weights_are_not_copied():
    given = sp.csr_array(np.eye(4, dtype=np.float32))
    assert np.shares_memory(Layer(given).weights.data, given.data)


def test_explicit_zeros_are_edges():
    given = sp.csr_array((np.zeros(2), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert Layer(given).edges == 2


def test_scalar_bias_is_broadcast():
    layer = Layer(np.eye(3), -0.3)
    np.testing.assert_array_equal(layer.bias, [-0.3] * 3)
    assert layer.bias.strides == (0,)


BAD_LAYERS = {
    r"shape \(3,\)": {"weights": np.zeros(3)},
    r"shape \(0, 3\)": {"weights": np.zeros((0, 3))},
    "dtype complex128": {"weights": np.eye(3) * 1j},
    "dtype <U1": {"weights": np.full((2, 2), "a")},
    "weights hold NaN": {"weights": [[np.nan]]},
    "weights hold NaN or inf": {"weights": [[np.inf]]},
    r"bias has shape \(2,\)": {"weights": np.eye(3), "bias": [1.0, 2.0]},
    "bias holds NaN": {"weights": np.eye(3), "bias": np.nan},
    "bias values have dtype": {"weights": np.eye(3), "bias": "x"},
    "activation is 'relu'": {"weights": np.eye(3), "activation": "relu"},
}


@pytest.mark.parametrize("message", BAD_LAYERS)
def test_bad_layers(message):
    with pytest.raises(ModelError, match=message) as caught:
        Layer(**BAD_LAYERS[message])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TeraedgeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("part", ["indices", "indptr"])
def test_corrupt_csr_is_refused(part):
    given = sp.csr_array(np.eye(3))
    getattr(given, part)[-1] = 77
    with pytest.raises(ModelError, match="not a valid sparse array"):
        Layer(given)


def make_layers():
    return [Layer(np.eye(2, 3)), Layer(np.eye(3, 5), -1, ReLU()), Layer(np.eye(5, 4))]


class Lazy:
    def __init__(self):
        self.reads = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.reads.append(index)
        return make_layers()[index]


class Endless:
    """Iterable again and again, without a length."""

    def __iter__(self):
        return iter(make_layers())


@pytest.mark.parametrize(
    "make",
    [
        make_layers,
        lambda: tuple(make_layers()),
        Lazy,
        lambda: make_layers,
        Endless,
        lambda: iter(make_layers()),
    ],
    ids=["list", "tuple", "source", "function", "iterable", "iterator"],
)
def test_sources(make):
    network = Network(make(), name="three")
    for _ in range(2):
        assert [layer.n_out for layer in network] == [3, 5, 4]
    assert (len(network), network.n_in, network.n_out, network.edges) == (3, 2, 4, 2 + 3 + 4)
    assert network[-1].n_out == 4
    assert network[1].activation == ReLU()
    with pytest.raises(IndexError):
        network[3]
    tail = network[1:]
    assert (len(tail), tail.n_in, tail.n_out) == (2, 3, 4)
    assert len(Network(network)) == 3
    assert repr(network) == "Network('three', 3 layers, 2 -> 4, 9 edges)"


def test_lazy_source_is_not_read_before_it_is_needed():
    source = Lazy()
    network = Network(source)
    assert source.reads == []
    assert network.n_in == 2
    assert source.reads == [0]


def test_source_may_know_its_edges_and_ends():
    source = Lazy()
    source.edges, source.n_in, source.n_out = 9, 2, 4
    assert repr(Network(source)) == "Network(3 layers, 2 -> 4, 9 edges)"
    assert source.reads == []


BAD_NETWORKS = {
    "no layers": [],
    "layer 1 is an int": [Layer(np.eye(2)), 3],
    "layer 1 reads 4 neurons but layer 0 writes 3": [Layer(np.eye(2, 3)), Layer(np.eye(4))],
    "layers is an int": 5,
    "function of layers returned an int": lambda: 5,
}


@pytest.mark.parametrize("message", BAD_NETWORKS)
def test_bad_networks(message):
    with pytest.raises(ModelError, match=message):
        Network(BAD_NETWORKS[message])


def test_lazy_networks_are_checked_while_they_are_read():
    network = Network(lambda: iter([Layer(np.eye(2, 3)), Layer(np.eye(4))]))
    with pytest.raises(ModelError, match="layer 1 reads 4"):
        list(network)


def test_predict():
    rng = np.random.default_rng(0)
    network = Network([Layer(rng.normal(size=(6, 9)), 0.1, ReLU()), Layer(rng.normal(size=(9, 4)))])
    features = rng.random((50, 6))
    from teraedge import reference

    expected = reference.run(network, features).outputs.argmax(axis=1)
    labels = network.predict(features)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, expected)


def test_heads():
    layers = [Layer(np.eye(3), 1.0, ReLU())] * 3
    network = Network(layers, head="softmax")
    assert repr(network) == "Network(3 layers, 3 -> 3, 9 edges, softmax)"
    assert network[1:].head == "softmax"
    assert network[:2].head is None
    assert Network(lambda: iter(layers), head="log_softmax")[1:].head == "log_softmax"
    assert Network(layers).head is None
    for wrong in ("Softmax", "argmax", 3, ""):
        with pytest.raises(ModelError, match=r"allowed: None, 'softmax', 'log_softmax'"):
            Network(layers, head=wrong)
