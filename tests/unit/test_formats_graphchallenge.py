"""The official text files: byte for byte, and every way they can be wrong."""

import hashlib
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import scipy.sparse as sp

import teraedge
from teraedge import ClippedReLU, Layer, Network, ReLU, load, save
from teraedge.datasets import challenge
from teraedge.errors import FormatError, ModelError
from teraedge.formats import _tsv, from_graphchallenge, to_graphchallenge
from teraedge.formats.graphchallenge import (
    categories_from_graphchallenge,
    categories_to_graphchallenge,
    features_from_graphchallenge,
    features_to_graphchallenge,
)

OFFICIAL = {
    1: "48f8c5363f7f6579b4a186b0d03a27b13d5d9e3e41e17af884569d754248903a",
    7: "2c63b12ddca93f266438c44210bc333cdc975f25df2b5886455ef52d6e41331d",
    60: "a88a5667bbdb11f0db3f81041aedf259523d35cac1933d4884b7c69e68adbe1b",
    120: "c37c426fefe34411c1e98352d6d59921cffaf84a2421b8ed2a0576b72d47c73e",
}
SHARED = Path(__file__).parents[3] / "shared" / "challenge"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "neuron1024"
    save(challenge.network(1024, 120), folder)
    return folder


@pytest.mark.parametrize("layer", OFFICIAL)
def test_layers_are_the_official_files(official, layer):
    text = (official / f"n1024-l{layer}.tsv").read_bytes()
    assert hashlib.sha256(text).hexdigest() == OFFICIAL[layer]


def test_official_network_round_trips(official):
    expected = challenge.network(1024, 120)
    for folder in (official, official.parent):
        got = load(folder)
        assert got.name == "neuron1024"
        for index in (0, 6, 119):
            one, two = got[index], expected[index]
            assert (one.weights != two.weights).nnz == 0
            assert one.weights.dtype == np.float32
            np.testing.assert_array_equal(one.bias, two.bias)
            assert one.activation == two.activation


def test_categories_are_the_official_list(tmp_path):
    source = SHARED / "categories-1024.txt"
    if not source.exists():
        pytest.skip("../shared/challenge is absent")
    ids = categories_from_graphchallenge(source)
    np.testing.assert_array_equal(ids, challenge.categories(1024))
    categories_to_graphchallenge(ids[::-1], tmp_path / "c.tsv")
    assert (tmp_path / "c.tsv").read_bytes() == source.read_bytes()


def test_features_text(tmp_path):
    dense = np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]])
    features_to_graphchallenge(dense, tmp_path / "sparse-images-3.tsv")
    text = (tmp_path / "sparse-images-3.tsv").read_bytes()
    assert text == b"1\t2\t1\n3\t1\t1\n3\t2\t1\n"
    (tmp_path / "sparse-images-3.tsv").write_bytes(b"3\t2\t1\r\n1\t2\t1.0\r\n3\t1\t1e0\r\n")
    got = features_from_graphchallenge(tmp_path / "sparse-images-3.tsv")
    np.testing.assert_array_equal(np.asarray(got), dense)


def test_official_features_round_trip_in_blocks(tmp_path):
    features = challenge.features(1024, 3000)
    path = tmp_path / "sparse-images-1024.tsv"
    features_to_graphchallenge(features, path)
    assert path.stat().st_size > 2 * _tsv.BLOCK
    got = features_from_graphchallenge(path)
    np.testing.assert_array_equal(got.bits, features.bits)


@pytest.mark.parametrize("value", [1 / 3, 0.1, 1e-45, 3.4028235e38, -0.0, 16777217, -5e-7])
def test_number_reads_back(value):
    value = np.float32(value)
    text = _tsv.number_texts(np.array([value, value, 0.5], np.float32))[0]
    assert np.float32(float(text)).tobytes() == value.tobytes()


def test_numbers_that_all_differ():
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    for some in (values, np.repeat(values[:300], 9)):
        texts = _tsv.number_texts(some)
        np.testing.assert_array_equal(texts.astype(np.float64).astype(np.float32), some)


def write_layer(folder, text, layer=1, n=4):
    folder.mkdir(exist_ok=True)
    (folder / f"n{n}-l{layer}.tsv").write_bytes(text)


GOOD = b"1\t2\t6.250000e-02\n3\t2\t-1.5\n"

BAD_LAYERS = {
    "truncated in a line": (GOOD[:-3], "line 2 has no end"),
    "empty": (b"", "the file is empty"),
    "two columns": (GOOD + b"1\t3\n", "line 3: 2 columns in '1\\t3'"),
    "four columns": (GOOD + b"1\t3\t1\t1\n", "line 3: 4 columns"),
    "spaces": (b"1 2 1\n", "line 1: 1 column in"),
    "blank line": (GOOD + b"\n" + GOOD, "line 3: 1 column in ''"),
    "not a number": (GOOD + b"1\t3\tx\n", "line 3: weight 'x' is not a finite number"),
    "half a number": (GOOD + b"1\t3\t1.5.2\n", "weight '1.5.2' is not a finite number"),
    "no exponent": (GOOD + b"1\t3\t1e\n", "weight '1e' is not a finite number"),
    "no value": (GOOD + b"1\t3\t\n", "weight '' is not a finite number"),
    "NaN": (GOOD + b"1\t3\tnan\n", "weight 'nan' is not a finite number"),
    "infinity": (GOOD + b"1\t3\t-inf\n", "weight '-inf' is not a finite number"),
    "above float64": (GOOD + b"1\t3\t1e999\n", "weight '1e999' is not a finite number"),
    "above float32": (GOOD + b"1\t3\t1e39\n", "line 3: the weight is above the largest float32"),
    "zero source": (b"0\t1\t1\n", "line 1: source '0' is out of range; ids are 1-based"),
    "zero destination": (b"1\t0\t1\n", "destination '0' is out of range; ids are 1-based"),
    "negative": (b"-1\t1\t1\n", "source '-1' is not a whole number from 1 to 4"),
    "fraction": (b"1.5\t1\t1\n", "source '1.5' is not a whole number"),
    "fractional destination": (b"1\t1.5\t1\n", "destination '1.5' is not a whole number"),
    "source above N": (GOOD + b"5\t1\t1\n", "line 3: source '5' is out of range"),
    "destination above N": (GOOD + b"1\t5\t1\n", "line 3: destination '5' is out of range"),
    "huge id": (b"9" * 30 + b"\t1\t1\n", "is out of range"),
    "edge twice": (
        GOOD + b"1\t1\t1\n1\t2\t5\n",
        "line 4: the edge 1 -> 2 is listed twice, first on line 1",
    ),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", "line 1: 1 column in '\\x89PNG'"),
    "binary line": (b"\x00\xff\x9b\n", "line 1: 1 column in '\\x00\\xff\\x9b'"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_malformed_layer(tmp_path, case):
    text, message = BAD_LAYERS[case]
    write_layer(tmp_path / "net", GOOD, 1)
    write_layer(tmp_path / "net", text, 2)
    network = from_graphchallenge(tmp_path / "net", bias=0)  # lazy: only listed so far
    assert network[0].edges == 2
    with pytest.raises(FormatError) as caught:
        network[1]
    assert message in str(caught.value)
    assert "n4-l2.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_in_a_later_block_names_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(_tsv, "BLOCK", 64)
    lines = [b"%d\t%d\t1\n" % (1 + k % 30, 1 + k // 30) for k in range(600)]
    write_layer(tmp_path, b"".join(lines), n=30)
    assert from_graphchallenge(tmp_path, bias=0)[0].edges == 600
    lines[444] = b"1\tx\t1\n"
    write_layer(tmp_path, b"".join(lines), n=30)
    with pytest.raises(FormatError, match="line 445: destination 'x'"):
        from_graphchallenge(tmp_path, bias=0)[0]
    lines[444] = lines[0]
    write_layer(tmp_path, b"".join(lines), n=30)
    with pytest.raises(FormatError, match=r"line 445: the edge 1 -> 1 .* first on line 1"):
        from_graphchallenge(tmp_path, bias=0)[0]


def test_malformed_folder(tmp_path):
    def refused(folder, message, **options):
        with pytest.raises(FormatError, match=message):
            from_graphchallenge(folder, **options)

    refused(tmp_path / "absent", "is not a folder")
    refused(tmp_path, "holds no layer file")
    for layer in (1, 2, 4):
        write_layer(tmp_path / "gap", GOOD, layer)
    refused(tmp_path / "gap", "n4-l3.tsv is missing; the layers go to l4", bias=0)
    write_layer(tmp_path / "net", GOOD)
    refused(tmp_path / "net", "4 neurons is not an official size.*give bias=")
    refused(tmp_path / "net", "has 1 layers; 2 were asked for", bias=0, layers=2)
    refused(tmp_path / "net", "not of 8", bias=0, neurons=8)
    write_layer(tmp_path / "net", GOOD, n=8)
    refused(tmp_path / "net", r"holds layers of \[4, 8\] neurons; give neurons=", bias=0)
    assert from_graphchallenge(tmp_path / "net", bias=0, neurons=8).n_in == 8
    write_layer(tmp_path / "neuron9", GOOD)
    refused(tmp_path / "neuron9", "cannot be right", bias=0)
    with pytest.raises(ModelError, match="bias has shape"):
        from_graphchallenge(tmp_path / "net", bias=[1, 2], neurons=8)


def test_speed(tmp_path, record_property):
    """Record the rates of one 16384-neuron layer; the limit is the machine's."""
    network = Network([challenge.network(16384, 1)[0]])
    begin = perf_counter()
    save(network, tmp_path / "neuron16384")
    middle = perf_counter()
    assert load(tmp_path / "neuron16384")[0].edges == 16384 * 32
    size = (tmp_path / "neuron16384" / "n16384-l1.tsv").stat().st_size / 1e6
    record_property("write_mb_per_s", size / (middle - begin))
    record_property("read_mb_per_s", size / (perf_counter() - middle))


def layer(n=4, m=4, bias=-1.0, activation=None, value=1.0):
    dense = np.full((n, m), value)
    return Layer(dense, bias, ClippedReLU(32) if activation is None else activation)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([layer(4, 3)], "layer 0 is 4 -> 3"),
        ([layer(1024, 1024, -0.3), layer(1024, 3)], "layer 1 is 1024 -> 3"),
        ([layer(value=0.0)], "layer 0 has no edges"),
        ([layer(value=0.1)], "layer 0 has weights that are not exact in float32"),
        ([layer()], r"another bias or activation than .* \(None at 4"),
        ([layer(1024, 1024)], r"\(-0.3 at 1024 neurons, ClippedReLU"),
        ([layer(1024, 1024, -0.3, ReLU())], "another bias or activation"),
        ([layer(1024, 1024, None)], "another bias or activation"),
    ],
)
def test_refuses_what_text_cannot_hold(tmp_path, layers, message):
    with pytest.raises(FormatError, match=message):
        to_graphchallenge(Network(layers), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_float32_official_bias_is_official(tmp_path):
    eye = sp.eye_array(1024, dtype=np.float32)
    network = Network([Layer(eye, np.float32(-0.3), ClippedReLU(32))])
    to_graphchallenge(network, tmp_path / "neuron1024")
    assert load(tmp_path).n_in == 1024


def test_folder_with_files_is_not_touched(tmp_path):
    write_layer(tmp_path, GOOD)
    with pytest.raises(FormatError, match="exists and is not an empty folder"):
        to_graphchallenge(Network([layer()]), tmp_path, weights_only=True)
    assert (tmp_path / "n4-l1.tsv").read_bytes() == GOOD


def test_failure_of_a_later_layer_leaves_nothing(tmp_path):
    def fail():
        yield layer()
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        to_graphchallenge(Network(fail), tmp_path / "net", weights_only=True)
    assert list(tmp_path.iterdir()) == []


BAD_FEATURES = {
    "value": (b"1\t1\t1\n1\t2\t0.5\n", "line 2: the value must be 1"),
    "zero": (b"0\t1\t1\n", "line 1: sample '0' is out of range"),
    "neuron": (b"1\t5\t1\n", "line 1: neuron '5' is out of range; ids are 1-based, from 1 to 4"),
    "twice": (b"1\t1\t1\n2\t1\t1\n1\t1\t1\n", "listed twice"),
    "truncated": (b"1\t1\t1\n2\t1", "line 2 has no end"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_malformed_features(tmp_path, case):
    text, message = BAD_FEATURES[case]
    path = tmp_path / "sparse-images-4.tsv"
    path.write_bytes(text)
    with pytest.raises(FormatError) as caught:
        features_from_graphchallenge(path)
    assert message in str(caught.value)


def test_features_twice_in_two_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(_tsv, "BLOCK", 32)
    path = tmp_path / "sparse-images-4.tsv"
    lines = [b"%d\t%d\t1\n" % (1 + k // 4, 1 + k % 4) for k in range(200)]
    path.write_bytes(b"".join(lines))
    assert features_from_graphchallenge(path).count_ones().sum() == 200
    path.write_bytes(b"".join([*lines, lines[3]]))
    with pytest.raises(FormatError, match="listed twice"):
        features_from_graphchallenge(path)


def test_features_names_and_sizes(tmp_path):
    path = tmp_path / "sparse-images-4.tsv"
    with pytest.raises(FormatError, match="the features have 3 neurons"):
        features_to_graphchallenge(np.eye(3), path)
    with pytest.raises(FormatError, match="other than 0 and 1"):
        features_to_graphchallenge(2 * np.eye(4), path)
    with pytest.raises(FormatError, match="no feature is 1"):
        features_to_graphchallenge(np.zeros((2, 4)), path)
    with pytest.raises(teraedge.errors.FeatureError):
        features_to_graphchallenge(np.ones(4), path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"2\t4\t1\n")
    with pytest.raises(FormatError, match="is named for 4 neurons; 8"):
        features_from_graphchallenge(path, neurons=8)
    with pytest.raises(FormatError, match="sample '2' is out of range"):
        features_from_graphchallenge(path, samples=1)
    assert features_from_graphchallenge(path, samples=9).shape == (9, 4)
    path.rename(tmp_path / "f.tsv")
    with pytest.raises(FormatError, match="give neurons="):
        features_from_graphchallenge(tmp_path / "f.tsv")
    assert features_from_graphchallenge(tmp_path / "f.tsv", neurons=5).shape == (2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1\n0\n", "line 2: sample '0' is out of range"),
        (b"1\n-3\n", "line 2: sample '-3' is not a whole number"),
        (b"1\nx\n", "line 2: sample 'x' is not a whole number"),
        (b"1\n\n", "line 2: sample '' is not a whole number"),
        (b"1\n2", "line 2 has no end"),
        (b"7\n1\n7\n", "sample 7 is listed twice"),
    ],
)
def test_malformed_categories(tmp_path, text, message):
    (tmp_path / "c.tsv").write_bytes(text)
    with pytest.raises(FormatError, match=message):
        categories_from_graphchallenge(tmp_path / "c.tsv")


def test_categories_arguments(tmp_path):
    with pytest.raises(FormatError, match="there is no such file"):
        categories_from_graphchallenge(tmp_path / "c.tsv")
    for ids in ([1, 1], [-1], [0.5], [[1]]):
        with pytest.raises(ModelError):
            categories_to_graphchallenge(ids, tmp_path / "c.tsv")
    assert list(tmp_path.iterdir()) == []
