"""Every format gives back what it was given."""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import ClippedReLU, Identity, Layer, Network, ReLU
from teraedge.formats import (
    from_graphchallenge,
    from_native,
    load,
    load_features,
    save,
    save_features,
    to_graphchallenge,
    to_native,
)
from teraedge.formats.graphchallenge import (
    categories_from_graphchallenge,
    categories_to_graphchallenge,
    features_from_graphchallenge,
    features_to_graphchallenge,
)

few = settings(max_examples=60, deadline=None)


def numbers(dtype):
    width = 8 * np.dtype(dtype).itemsize
    return st.floats(allow_nan=False, allow_infinity=False, width=width)


activations = st.one_of(
    st.just(Identity()),
    st.just(ReLU()),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False).map(ClippedReLU),
)


@st.composite
def weights(draw, n_in, n_out, dtype, fewest=0):
    """Sparse weights with empty rows and columns, explicit zeros and often equal values."""
    cells = st.integers(0, n_in * n_out - 1)
    where = sorted(draw(st.sets(cells, min_size=fewest)))
    if draw(st.booleans()):
        values = [draw(numbers(dtype))] * len(where)
    else:
        values = [draw(numbers(dtype)) for _ in where]
    rows, columns = np.divmod(np.array(where, np.int64), n_out)
    return sp.coo_array((np.array(values, dtype), (rows, columns)), shape=(n_in, n_out))


@st.composite
def layers(draw, n_in, n_out):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    bias = draw(
        st.none()
        | numbers(dtype).map(dtype)
        | st.lists(numbers(dtype), min_size=n_out, max_size=n_out).map(lambda b: np.array(b, dtype))
    )
    return Layer(draw(weights(n_in, n_out, dtype)), bias, draw(activations))


@st.composite
def networks(draw):
    widths = draw(st.lists(st.integers(1, 7), min_size=2, max_size=5))
    return Network([draw(layers(a, b)) for a, b in pairwise(widths)])


def assert_same_layer(got, expected):
    assert got.weights.shape == expected.weights.shape
    assert got.weights.dtype == expected.weights.dtype
    np.testing.assert_array_equal(got.weights.indptr, expected.weights.indptr)
    np.testing.assert_array_equal(got.weights.indices, expected.weights.indices)
    np.testing.assert_array_equal(got.weights.data, expected.weights.data)
    assert got.activation == expected.activation
    assert (got.bias is None) == (expected.bias is None)
    if got.bias is not None:
        assert got.bias.dtype == expected.bias.dtype
        np.testing.assert_array_equal(got.bias, expected.bias)


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, two in zip(got, expected, strict=True):
        assert_same_layer(one, two)


@few
@given(networks(), st.sampled_from(["1", "200B", "4GB"]))
def test_native(network, shard_size):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        to_native(network, path, shard_size=shard_size)
        got = from_native(path)
        assert got.edges == network.edges
        assert_same(got, network)
        shards = {p.name for p in Path(folder).iterdir()}
        sharded = len(network) > 1 and shard_size == "1"
        assert ("model.safetensors.index.json" in shards) == (len(shards) > 1)
        assert len(shards) > 1 or not sharded


@few
@given(networks())
def test_matrixmarket(network):
    with tempfile.TemporaryDirectory() as folder:
        save(network, f"{folder}/model")
        assert_same(load(f"{folder}/model"), network)


@few
@given(st.data())
def test_matrixmarket_of_one_layer(data):
    n_in, n_out = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    layer = Layer(data.draw(weights(n_in, n_out, dtype)), None, data.draw(activations))
    with tempfile.TemporaryDirectory() as folder:
        save(Network([layer]), f"{folder}/w.mtx")
        assert_same(load(f"{folder}/w.mtx"), Network([layer]))


@few
@given(st.data())
def test_graphchallenge(data):
    n = data.draw(st.integers(1, 12))
    bias, activation = data.draw(numbers(np.float32)), data.draw(activations)
    matrices = data.draw(st.lists(weights(n, n, np.float32, fewest=1), min_size=1, max_size=4))
    network = Network([Layer(w, bias, activation) for w in matrices])
    with tempfile.TemporaryDirectory() as folder:
        to_graphchallenge(network, f"{folder}/net", weights_only=True)
        got = from_graphchallenge(f"{folder}/net", bias=bias, activation=activation)
        assert_same(got, network)


@st.composite
def binary(draw):
    samples, neurons = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    bits = draw(st.binary(min_size=samples * neurons, max_size=samples * neurons))
    return (np.frombuffer(bits, np.uint8) & 1).reshape(samples, neurons)


@few
@given(binary(), st.sampled_from([np.asarray, sp.csr_array, teraedge.PackedFeatures.from_dense]))
def test_features_as_text(dense, kind):
    dense[0, 0] = 1
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/sparse-images-{dense.shape[1]}.tsv"
        features_to_graphchallenge(kind(dense), path)
        got = features_from_graphchallenge(path, samples=len(dense))
        np.testing.assert_array_equal(np.asarray(got), dense)
        short = load_features(path)
        assert dense[len(short) :].sum() == 0
        np.testing.assert_array_equal(np.asarray(short), dense[: len(short)])


@few
@given(binary(), st.sampled_from(["npy", "npz", "mtx"]))
def test_packed_features(dense, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/f.{suffix}"
        save_features(teraedge.PackedFeatures.from_dense(dense), path)
        got = load_features(path, *dense.shape[::-1])
        assert isinstance(got, teraedge.PackedFeatures) == (suffix == "npz")
        np.testing.assert_array_equal(np.asarray(got), dense)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("suffix", ["npy", "npz", "mtx"])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_other_features(tmp_path, dtype, suffix, kind):
    dense = np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]]).astype(dtype)
    if np.dtype(dtype).kind == "f":
        dense *= dtype(1 / 3)
    save_features(kind(dense), tmp_path / f"f.{suffix}")
    got = load_features(tmp_path / f"f.{suffix}", 3, 4)
    assert sp.issparse(got) == (kind is sp.csr_array and suffix != "npy")
    assert suffix == "mtx" or got.dtype == dtype
    np.testing.assert_array_equal(got.toarray() if sp.issparse(got) else got, dense)


@few
@given(st.sets(st.integers(0, 10**6)))
def test_categories(ids):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/neuron1024-l120-categories.tsv"
        categories_to_graphchallenge(np.array(list(ids)), path)
        np.testing.assert_array_equal(categories_from_graphchallenge(path), sorted(ids))
