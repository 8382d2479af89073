"""The native model file: lazy, sharded, replaced whole, and every way it can lie."""

import json
import pickle
import struct
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from safetensors import safe_open
from safetensors.numpy import save_file

from teraedge import ClippedReLU, Layer, Network, ReLU
from teraedge.errors import FormatError, ModelError
from teraedge.formats import load, save, to_native


def network(seed=0, layers=3):
    rng = np.random.default_rng(seed)
    made = []
    for index in range(layers):
        dense = rng.standard_normal((5 + index, 6 + index)).astype(np.float32)
        dense[rng.random(dense.shape) < 0.5] = 0
        made.append(Layer(dense, rng.standard_normal(6 + index).astype(np.float32), ReLU()))
    return Network(made, name="small")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    save(network(), path)
    return path


def contents(path):
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def change(path, tensors=None, drop=(), layer=None, **metadata):
    """Write a model again with some things changed; `layer` changes what is said of layer 1."""
    old, said = contents(path)
    old |= tensors or {}
    if layer is not None:
        about = json.loads(said["layers"])
        about[1] |= layer
        said["layers"] = json.dumps(about)
    said |= metadata
    save_file(
        {key: value for key, value in old.items() if key not in drop},
        path,
        {key: value for key, value in said.items() if value is not None},
    )


def rounded(values, bits):
    """Numbers of float32 with so many bits of fraction."""
    return (values.view(np.uint32) & np.uint32(2**32 - 2 ** (23 - bits))).view(np.float32)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([1.5, -0.25, 2**-24, 65504, 0]), np.float16),
        (np.array([1.5, 1e30, -2.0, 1e-30, 0]), np.uint16),
        (np.array([1.5, -2.0, 0.0, -0.0, 3]), np.uint16),
        (np.array([1.5, 0.1, -2.0, 3, 7]), np.float32),
        (np.array([1.0009765625, 1e30, -2.0, 3, 7]), np.float32),  # neither of the two
        (np.array([1.5, np.pi, -2.0, 3, 7]), np.float64),
    ],
)
def test_weights_are_stored_in_two_bytes_where_nothing_is_lost(tmp_path, values, stored):
    path = tmp_path / "model.safetensors"
    if stored is np.uint16:
        values = rounded(values.astype(np.float32), 7)
    if stored is not np.float64:
        values = values.astype(np.float32)
    weights = sp.csr_array((values, np.arange(5), np.array([0, 5])), shape=(1, 5))
    save(Network([Layer(weights)]), path)
    assert contents(path)[0]["layers.0.data"].dtype == stored
    again = load(path)[0].weights
    assert again.dtype == values.dtype
    assert again.data.tobytes() == values.tobytes()


@pytest.mark.parametrize("half", [False, True])
def test_a_sparse_perceptron_is_small(tmp_path, half):
    """At 95 % zeros, less than an eighth of the dense float32 file; half as much in halves."""
    rng = np.random.default_rng(0)
    sizes = [784, 2048, 2048, 10]
    layers, dense = [], 0
    for a, b in pairwise(sizes):
        weights = sp.random_array((a, b), density=0.05, rng=rng, dtype=np.float32)
        if half:
            weights.data = weights.data.astype(np.float16).astype(np.float32)
        layers.append(Layer(weights, rng.normal(size=b).astype(np.float32), ReLU()))
        dense += 4 * (a * b + b)
    save(Network(layers), tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < dense / (16 if half else 8)


@pytest.mark.parametrize("head", [None, "softmax", "log_softmax"])
def test_heads(tmp_path, head):
    path = tmp_path / "model.safetensors"
    save(Network(list(network()), head=head), path)
    assert load(path).head == head
    change(path, head="hardmax")
    with pytest.raises(FormatError, match="head is 'hardmax'; allowed"):
        load(path)


def test_formats_without_a_place_for_a_head(tmp_path):
    square = Network([Layer(np.eye(4), -0.3, ClippedReLU(32))], head="softmax")
    for path in (tmp_path / "model.mtx", tmp_path / "folder", tmp_path / "neuron4"):
        with pytest.raises(FormatError, match="ends with softmax, for which this format has no"):
            save(square, path)
    assert not list(tmp_path.iterdir())


def test_tensors_are_as_documented(model):
    tensors, metadata = contents(model)
    assert set(tensors) == {
        f"layers.{i}.{part}" for i in range(3) for part in ("indptr", "indices", "data", "bias")
    }
    assert tensors["layers.0.indices"].dtype == np.uint16
    assert tensors["layers.0.indptr"].shape == (6,)
    assert metadata["format"] == "teraedge"
    assert metadata["format_version"] == "1"
    assert load(model).name == "small"


def test_wide_layers_have_wide_indices(tmp_path):
    for n_out, dtype in ((65536, np.uint16), (65537, np.int32)):
        dense = np.zeros((1, n_out))
        dense[0, -2:] = 1, 2
        save(Network([Layer(dense)]), tmp_path / "m.safetensors")
        assert contents(tmp_path / "m.safetensors")[0]["layers.0.indices"].dtype == dtype
        got = load(tmp_path / "m.safetensors")[0].weights
        np.testing.assert_array_equal(got.indices, [n_out - 2, n_out - 1])


def test_equal_weights_and_scalar_bias_are_stored_once(tmp_path):
    layer = Layer(np.full((4, 4), 0.5, np.float32), np.float32(-0.25), ClippedReLU(6))
    save(Network([layer]), tmp_path / "m.safetensors")
    tensors, _ = contents(tmp_path / "m.safetensors")
    assert tensors["layers.0.data"].shape == tensors["layers.0.bias"].shape == (1,)
    got = load(tmp_path / "m.safetensors")[0]
    np.testing.assert_array_equal(got.weights.toarray(), layer.weights.toarray())
    assert got.bias.strides == (0,)


def test_layers_are_read_when_asked_for(model):
    data = bytearray(model.read_bytes())
    tensors, _ = contents(model)
    last = tensors["layers.2.data"].tobytes()
    at = bytes(data).index(last)
    data[at : at + 4] = struct.pack("<f", np.nan)
    model.write_bytes(data)
    got = load(model)
    assert got.edges == network().edges
    assert got[1].edges == network()[1].edges
    with pytest.raises(FormatError, match=r"model.safetensors: layer 2: weights hold NaN"):
        got[2]


def test_a_loaded_model_can_go_to_another_process(model):
    got = pickle.loads(pickle.dumps(load(model)))
    assert got[1].edges == network()[1].edges


NAN = np.full(0, np.nan, np.float32)

LIES = {
    "missing tensor": ({"drop": ["layers.1.data"]}, "the tensor layers.1.data is missing"),
    "extra tensor": ({"tensors": {"x": NAN}}, "no place for the tensor 'x'"),
    "bias dropped": ({"drop": ["layers.1.bias"]}, "the tensor layers.1.bias is missing"),
    "unsaid bias": ({"layer": {"bias": False}}, "no place for the tensor 'layers.1.bias'"),
    "dtype": (
        {"tensors": {"layers.1.data": np.zeros(3, np.int32)}},
        "layers.1.data is I32 of shape [3]; it must be 1-D and F32 or F64",
    ),
    "two dimensions": (
        {"tensors": {"layers.1.bias": np.zeros((1, 7), np.float32)}},
        "layers.1.bias is F32 of shape [1, 7]; it must be 1-D",
    ),
    "short indptr": (
        {"tensors": {"layers.1.indptr": np.zeros(3, np.int32)}},
        "layers.1.indptr has 3 numbers; it must have 7",
    ),
    "short data": ({"tensors": {"layers.1.data": np.ones(2, np.float32)}}, "has 2 numbers"),
    "bias size": (
        {"tensors": {"layers.1.bias": np.ones(3, np.float32)}},
        "layers.1.bias has 3 numbers; it must have 1 or 7",
    ),
    "equal": ({"layer": {"equal": True}}, "numbers; it must have 1"),
    "equal not bool": ({"layer": {"equal": 1}}, "layer 1: the metadata must say equal and bias"),
    "shape between layers": (
        {"layer": {"shape": [6, 9]}, "tensors": {"layers.1.bias": np.ones(9, np.float32)}},
        "layer 2 reads 7 neurons but layer 1 writes 9",
    ),
    "shape and tensors": ({"layer": {"shape": [5, 7]}}, "layers.1.indptr has 7 numbers"),
    "shape": ({"layer": {"shape": [6, -7]}}, "layer 1: the shape is [6, -7]"),
    "shape of text": ({"layer": {"shape": "67"}}, "layer 1: the shape is '67'"),
    "shape of bool": ({"layer": {"shape": [True, 7]}}, "layer 1: the shape is [True, 7]"),
    "huge shape": ({"layer": {"shape": [10**30, 7]}}, "layer 1: the shape is [1000"),
    "activation": (
        {"layer": {"activation": {"name": "eval"}}},
        "layer 1: activation {'name': 'eval'} is not known",
    ),
    "activation parameter": (
        {"layer": {"activation": {"name": "clipped_relu", "upper": -1}}},
        "layer 1: ClippedReLU upper is -1",
    ),
    "activation overflow": (
        {"layer": {"activation": {"name": "clipped_relu", "upper": 10**400}}},
        "layer 1: ",
    ),
    "no activation": ({"layer": {"activation": None}}, "layer 1: activation None is not known"),
    "version": ({"format_version": "2"}, "has format version '2'; this teraedge reads 1"),
    "no version": ({"format_version": None}, "has format version None"),
    "format": ({"format": "pt"}, "is not a teraedge model"),
    "too few layers": ({"layers": "[]"}, "the metadata has no layers"),
    "layers not JSON": ({"layers": "[{]"}, "the metadata is not JSON"),
    "layers deep": ({"layers": "[" * 10**5}, "the metadata is not JSON"),
    "layers missing": ({"layers": None}, "the metadata is not JSON"),
    "layers a number": ({"layers": "3"}, "the metadata is an int; it must be a list"),
    "layer a number": ({"layers": "[3]"}, "layer 0: the shape is None"),
}


@pytest.mark.parametrize("case", LIES)
def test_lies_are_caught_when_opened(model, case):
    changes, message = LIES[case]
    change(model, **changes)
    with pytest.raises(FormatError) as caught:
        load(model)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(model))
    assert "\n" not in str(caught.value)


def test_fewer_layers_than_tensors(model):
    about = json.loads(contents(model)[1]["layers"])
    change(model, layers=json.dumps(about[:2]))
    with pytest.raises(FormatError, match=r"2 layers and no place for the tensor 'layers.2.bias'"):
        load(model)
    change(model, layers=json.dumps(about + about[:1]))
    with pytest.raises(FormatError, match=r"the tensor layers.3.indptr is missing"):
        load(model)


def indptr(*values):
    return np.array(values, np.int32)


VALUES = {
    "first": (indptr(1, 1, 2, 4), None, None, "indptr must ascend from 0 to the 4 edges"),
    "last": (indptr(0, 1, 2, 3), None, None, "indptr must ascend from 0 to the 4 edges"),
    "falling": (indptr(0, 3, 2, 4), None, None, "indptr must ascend from 0 to the 4 edges"),
    "range": (None, [0, 1, 0, 3], None, "an index is out of range; they go from 0 to 2"),
    "negative": (None, [0, 1, 0, -1], None, "an index is out of range"),
    "twice": (None, [0, 1, 1, 1], None, "the indices of a row must ascend, each at most once"),
    "unsorted": (None, [0, 1, 2, 0], None, "the indices of a row must ascend, each at most once"),
    "NaN": (None, None, [1, 2, np.nan, 4], "weights hold NaN or infinity"),
    "infinity": (None, None, [1, 2, np.inf, 4], "weights hold NaN or infinity"),
}


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_are_caught_when_read(tmp_path, case):
    pointers, indices, data, message = VALUES[case]
    path = tmp_path / "m.safetensors"
    save(Network([Layer([[1, 2, 0], [0, 0, 0], [3, 0, 4]])]), path)
    tensors = {}
    if pointers is not None:
        tensors["layers.0.indptr"] = pointers
    if indices is not None:
        tensors["layers.0.indices"] = np.array(indices, np.int32)
    if data is not None:
        tensors["layers.0.data"] = np.array(data, np.float32)
    change(path, tensors)
    network = load(path)
    with pytest.raises(FormatError) as caught:
        network[0]
    assert str(caught.value).startswith(f"{path}: layer 0: {message}")


def test_bias_not_finite(model):
    change(model, {"layers.1.bias": np.full(7, np.inf, np.float32)})
    with pytest.raises(FormatError, match="layer 1: bias holds NaN or infinity"):
        load(model)[1]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated(model, keep):
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model.safetensors: is truncated or not safetensors"):
        load(model)


@pytest.mark.parametrize("text", [b"\xff" * 100, b"PK\3\4" + b"\0" * 50, b"\2" + b"\0" * 7 + b"[]"])
def test_not_safetensors(model, text):
    model.write_bytes(text)
    with pytest.raises(FormatError, match="is truncated or not safetensors"):
        load(model)


def test_absent(tmp_path):
    with pytest.raises(FormatError, match="there is no such file"):
        load(tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match="cannot be read"):
        load(tmp_path / "m.safetensors.index.json")


@pytest.fixture
def sharded(tmp_path):
    to_native(network(), tmp_path / "model.safetensors", shard_size="1")
    return tmp_path / "model.safetensors.index.json"


def test_shards(sharded):
    names = sorted(path.name for path in sharded.parent.iterdir())
    assert names == [*(f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3)), sharded.name]
    for path in (sharded, sharded.with_name("model.safetensors")):
        got = load(path)
        assert got.edges == network().edges
        for one, two in zip(got, network(), strict=True):
            np.testing.assert_array_equal(one.weights.toarray(), two.weights.toarray())


def rewrite(index, **changes):
    value = json.loads(index.read_text())
    index.write_text(json.dumps(value | changes))


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/x.safetensors",
        "..",
        "a\\b.safetensors",
        "C:x.safetensors",
        3,
        "model.bin",
        None,
        ["x"],
    ],
)
def test_shards_stay_in_their_folder(sharded, shard):
    rewrite(sharded, weight_map={"layers.0.data": shard})
    with pytest.raises(FormatError, match=r"weight_map names .* shards are .safetensors files"):
        load(sharded)


def test_wrong_index(sharded):
    value = json.loads(sharded.read_text())
    weight_map = value["weight_map"]
    moved = dict(weight_map) | {"layers.0.data": weight_map["layers.1.data"]}
    for text, message in (
        ("{", "the metadata is not JSON"),
        ("[]", "the metadata is a list; it must be a dict"),
        ("\udc80", "the metadata is not JSON"),
        ("{}", "must have the objects metadata and weight_map"),
        (json.dumps(value | {"weight_map": 3}), "must have the objects metadata and weight_map"),
        (json.dumps(value | {"weight_map": {}}), "layers.0.indptr is missing"),
        (json.dumps(value | {"weight_map": moved}), "its tensors are not those of the index"),
        (json.dumps(value | {"metadata": {}}), "belongs to another save"),
    ):
        sharded.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(FormatError, match=message):
            load(sharded)


def test_missing_shard_and_shard_of_another_save(sharded):
    shard = sharded.with_name("model-00002-of-00003.safetensors")
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00003.safetensors: there is no such"):
        load(sharded)
    shard.write_bytes(kept[:-1])
    with pytest.raises(FormatError, match=r"00002-of-00003.safetensors: is truncated"):
        load(sharded)
    to_native(network(1), sharded.with_name("model.safetensors"), shard_size=1)
    shard.write_bytes(kept)
    with pytest.raises(FormatError, match="belongs to another save"):
        load(sharded)


def test_a_new_model_replaces_every_file_of_the_old(tmp_path):
    path = tmp_path / "model.safetensors"
    others = [tmp_path / "model-big.safetensors", tmp_path / "model-00001-of-00009.safetensors"]
    for other in others:
        save_file({"x": np.zeros(3)}, other)
    for shard_size, files in ((1, 4), ("4GB", 1), (400, 3), (1, 4)):
        to_native(network(), path, shard_size=shard_size)
        assert len(set(tmp_path.iterdir()) - set(others)) == files
        assert load(path).edges == network().edges
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("shard_size", [1, "4GB"])
def test_failure_leaves_the_old_model(tmp_path, shard_size):
    path = tmp_path / "model.safetensors"
    to_native(network(), path, shard_size=shard_size)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def broken():
        yield from network(1, layers=2)
        raise ModelError("no third layer")

    with pytest.raises(ModelError, match="no third layer"):
        to_native(Network(broken), path, shard_size=shard_size)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_wrong_targets(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        save(network(), tmp_path / "absent" / "m.safetensors")
    with pytest.raises(FormatError, match=r"ends with .safetensors"):
        to_native(network(), tmp_path / "m.bin")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(FormatError, match="cannot be written"):
        to_native(network(), tmp_path / "d.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_index_is_no_name_to_save_to(tmp_path):
    with pytest.raises(FormatError, match=r"allowed: .safetensors, .mtx"):
        save(network(), tmp_path / "m.safetensors.index.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shard_size", ["4GB", 1])
def test_files_have_the_permissions_of_any_new_file(tmp_path, shard_size):
    (tmp_path / "plain").touch()
    to_native(network(), tmp_path / "m.safetensors", shard_size=shard_size)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
