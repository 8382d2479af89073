"""``run``, ``info``, ``convert`` and ``export-challenge``."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import teraedge as package
from teraedge import formats
from teraedge.datasets import challenge


@pytest.fixture
def model(tmp_path):
    """A small network in a file: rectangular, two equal layers in the middle."""
    random = np.random.default_rng(5)
    square = package.Layer(random.normal(size=(7, 7)) * (random.random((7, 7)) < 0.4), bias=-0.25)
    layers = [
        package.Layer(random.normal(size=(5, 7)), activation=package.ReLU()),
        square,
        square,
        package.Layer(np.ones((7, 3)), bias=[1.0, 2.0, 3.0], activation=package.ClippedReLU(6)),
    ]
    path = tmp_path / "model.safetensors"
    package.save(package.Network(layers), path)
    return path


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.random.default_rng(6).normal(size=(33, 5)).astype(np.float32))
    return path


def test_run_writes_the_outputs(teraedge, model, features, tmp_path):
    done = teraedge("run", model, features, "-o", "out.npy")
    assert done.returncode == 0, done
    assert not done.stderr
    expected = package.reference.run(package.load(model), np.load(features))
    outputs = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(outputs, expected.outputs, rtol=1e-5, atol=1e-6)
    assert done.stdout.splitlines()[-1] == f"out.npy: {len(expected.live)} live samples"


def test_run_json(teraedge, model, features, tmp_path):
    done = teraedge("run", model, features, "-o", "ids.tsv", "--mode", "a", "--json")
    row = json.loads(done.stdout)
    assert (row["samples"], row["mode"], row["output"]) == (33, "a", "ids.tsv")
    assert row["nominal_edges"] == 33 * package.load(model).edges
    live = package.reference.run(package.load(model), np.load(features)).live
    assert (tmp_path / "ids.tsv").read_text().split() == [str(i + 1) for i in live]


def test_info_groups_equal_layers(teraedge, model):
    done = teraedge("info", model)
    assert done.returncode == 0, done
    assert "2-3" in done.stdout
    assert "ClippedReLU(6)" in done.stdout
    edges = package.load(model).edges
    assert f"4 layers, 5 -> 3, {edges} edges" in done.stdout.splitlines()[-1]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_info_json(teraedge, model):
    facts = json.loads(teraedge("info", model, "--json").stdout)
    assert [(run["first"], run["last"]) for run in facts["runs"]] == [(1, 1), (2, 3), (4, 4)]
    assert (facts["layers"], facts["n_in"], facts["n_out"]) == (4, 5, 3)
    assert facts["edges"] == package.load(model).edges
    assert [run["bias"] for run in facts["runs"]] == ["none", "-0.25", "1..3"]


def test_convert_there_and_back(teraedge, model, tmp_path):
    assert teraedge("convert", model, "matrices").returncode == 0
    assert teraedge("convert", "matrices", "back.safetensors").returncode == 0
    before, after = package.load(model), package.load(tmp_path / "back.safetensors")
    for one, other in zip(before, after, strict=True):
        assert (one.weights != other.weights).nnz == 0
        assert one.activation == other.activation


def test_export_challenge_reads_back(teraedge, tmp_path):
    done = teraedge("export-challenge", "data", "-l", 120, "--samples", 300)
    assert done.returncode == 0, done
    network = package.load(tmp_path / "data")
    assert (len(network), network.n_in) == (120, 1024)
    packed = formats.load_features(tmp_path / "data/sparse-images-1024.tsv")
    np.testing.assert_array_equal(np.asarray(packed), np.asarray(challenge.features(1024, 300)))
    ids = (tmp_path / "data/neuron1024-l120-categories.tsv").read_text()
    assert ids == "287\n295\n"

    run = teraedge("run", "data", "data/sparse-images-1024.tsv", "-o", "ids.tsv")
    assert run.returncode == 0, run
    assert (tmp_path / "ids.tsv").read_text() == ids


def test_export_without_official_categories_says_so(teraedge, tmp_path):
    done = teraedge("export-challenge", "data", "-l", 2, "--samples", 3)
    assert done.returncode == 0, done
    assert "no official categories for 2 layers" in done.stdout
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "neuron1024",
        "sparse-images-1024.tsv",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_info_plan(teraedge, model, width):
    done = teraedge("info", model, "--plan", COLUMNS=str(width), TERAEDGE_CALIBRATION="typical")
    assert done.returncode == 0, done
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == "model.safetensors, mode c"
    assert "2-3" in done.stdout
    assert ("kernel" in done.stdout) == (width == 120)
    assert any(line.startswith("a: ") for line in lines)


def test_info_plan_json(teraedge, model):
    done = teraedge("info", model, "--plan", "--mode", "a", "--json")
    found = json.loads(done.stdout)
    assert found["mode"] == "a"
    assert sum(row["edges_given"] for row in found["rows"]) == package.load(model).edges
    assert sum(row["edges"] for row in found["rows"]) == package.load(model).edges
    assert all(row["predicted"] > 0 and row["why"] for row in found["rows"])


def test_info_plan_refusals(refused, model):
    assert "abacus" in refused("info", model, "--plan", "--device", "abacus")


@pytest.fixture
def onnx_model(tmp_path):
    """An ONNX file with a softmax, and its network."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    random = np.random.default_rng(5)
    layers = [
        package.Layer(random.normal(size=(5, 7)).astype(np.float32), 0.5, package.GELU()),
        package.Layer(random.normal(size=(7, 3)).astype(np.float32)),
    ]
    network = package.Network(layers, head="softmax")
    package.save(network, tmp_path / "model.onnx")
    return network


def test_onnx_everywhere(teraedge, onnx_model, features, tmp_path):
    done = teraedge("info", "model.onnx")
    assert done.returncode == 0, done
    assert "GELU(none)" in done.stdout
    assert "softmax at the end" in done.stdout
    assert teraedge("convert", "model.onnx", "native.safetensors").returncode == 0
    assert teraedge("convert", "native.safetensors", "again.onnx").returncode == 0
    assert teraedge("verify", "again.onnx", features).returncode == 0
    assert teraedge("run", "again.onnx", features, "-o", "out.npy").returncode == 0
    expected = package.reference.run(onnx_model, np.load(features)).outputs
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_convert_plain_weights(teraedge, tmp_path):
    tensors = {"0.weight": np.ones((4, 3), np.float32), "2.weight": np.ones((2, 4), np.float32)}
    save_file(tensors, tmp_path / "plain.safetensors")
    command = ("convert", "plain.safetensors", "ours.safetensors")
    assert teraedge(*command, "--activation", "gelu").returncode == 0
    network = package.load(tmp_path / "ours.safetensors")
    assert [layer.activation for layer in network] == [package.GELU(), package.Identity()]


def test_options_of_imports_that_do_not_fit(refused, model):
    (model.parent / "plain.safetensors").write_bytes(b"")
    save_file({"0.weight": np.ones((4, 3), np.float32)}, model.parent / "plain.safetensors")
    assert "teraedge convert --activation" in refused("info", "plain.safetensors")
    plain = ("convert", "plain.safetensors", "out.safetensors")
    assert "known names: identity, relu" in refused(*plain, "--activation", "bogus")
    assert "are for .onnx" in refused(*plain, "--lower-conv")
    assert "is for .safetensors" in refused("convert", "x.onnx", "y.mtx", "--activation", "relu")
