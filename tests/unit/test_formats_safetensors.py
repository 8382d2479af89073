"""Plain weights and biases in safetensors files."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

import teraedge
from teraedge import Identity, Layer, Network, ReLU, Tanh
from teraedge.errors import FormatError, ModelError


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "names", [("0", "2", "10"), ("fc2", "fc10", "out"), ("net.1.a", "net.1.b", "net.12.a")]
)
def test_layers_come_in_natural_order(path, names):
    sizes = [6, 5, 4, 3]
    tensors = {}
    for name, a, b in zip(names, sizes, sizes[1:], strict=False):
        tensors |= {f"{name}.weight": normal(b, a), f"{name}.bias": normal(b)}
    del tensors[f"{names[1]}.bias"]
    save_file(dict(reversed(tensors.items())), path)
    network = teraedge.from_safetensors(path, ReLU(), head="softmax")
    assert (network.name, network.head) == ("model", "softmax")
    assert [layer.activation for layer in network] == [ReLU(), ReLU(), Identity()]
    for layer, name in zip(network, names, strict=True):
        np.testing.assert_array_equal(layer.weights.toarray(), tensors[f"{name}.weight"].T)
    np.testing.assert_array_equal(network[0].bias, tensors[f"{names[0]}.bias"])
    assert network[1].bias is None


def test_an_activation_for_every_layer(path):
    save_file({"weight": normal(3, 4), "bias": normal(3)}, path)
    network = teraedge.from_safetensors(path, [Tanh()])
    assert network[0].activation == Tanh()
    assert teraedge.from_safetensors(path, Tanh())[0].activation == Identity()
    with pytest.raises(ModelError, match="1 layers and 2 activations"):
        teraedge.from_safetensors(path, [Tanh(), Tanh()])
    for wrong in ("relu", None, [1]):
        with pytest.raises(ModelError, match=r"give one of teraedge's, such as"):
            teraedge.from_safetensors(path, wrong)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(path, dtype):
    save_file({"0.weight": normal(3, 4, dtype=dtype)}, path)
    weights = teraedge.from_safetensors(path, ReLU())[0].weights
    assert weights.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(weights.toarray(), normal(3, 4, dtype=dtype).T)


def write_bfloat16(path, name, array):
    """Write a file by hand: NumPy has no bfloat16."""
    data = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    about = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({name: about})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


def test_bfloat16(path):
    exact = (normal(3, 4).view(np.uint32) & 0xFFFF0000).view(np.float32)
    write_bfloat16(path, "0.weight", exact)
    network = teraedge.from_safetensors(path, ReLU())
    np.testing.assert_array_equal(network[0].weights.toarray(), exact.T)


def test_what_is_refused(path, tmp_path):
    cases = {
        r"1\.running_mean' is neither a weight nor a bias": {
            "0.weight": normal(3, 4),
            "1.running_mean": normal(3),
        },
        r"'1' has a bias and no weight": {"0.weight": normal(3, 4), "1.bias": normal(3)},
        r"weight of 0 has shape \(3,\)": {"0.weight": normal(3)},
        r"bias of 0 has shape \(4,\); it must be \(3,\)": {
            "0.weight": normal(3, 4),
            "0.bias": normal(4),
        },
        r"0\.weight is I32; allowed": {"0.weight": np.ones((3, 4), np.int32)},
        r"reads 5 numbers a sample and is given 3": {
            "0.weight": normal(3, 4),
            "1.weight": normal(2, 5),
        },
    }
    for message, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises((FormatError, ModelError), match=message) as caught:
            teraedge.from_safetensors(path, ReLU())
        assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="there is no such file"):
        teraedge.from_safetensors(tmp_path / "other.safetensors", ReLU())


def test_models_of_ours_and_of_others_are_told_apart(path):
    teraedge.save(Network([Layer([[1.0]])]), path)
    with pytest.raises(FormatError, match=r"of teraedge's own; use teraedge\.load"):
        teraedge.from_safetensors(path, ReLU())
    save_file({"0.weight": normal(3, 4)}, path)
    with pytest.raises(FormatError, match=r"from_safetensors"):
        teraedge.load(path)
