"""``teraedge verify``: right answers pass, wrong ones are found."""

import json

import numpy as np
import pytest

import teraedge as package


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(30, 40)) * (rng.random((30, 40)) < 0.2)
    layers = [package.Layer(first, -0.1, package.ReLU()), package.Layer(rng.normal(size=(40, 5)))]
    package.save(package.Network(layers), tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", rng.random((150, 30)))
    return "m.safetensors", "x.npy"


def test_passes(teraedge, files):
    done = teraedge("verify", *files)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "PASSED, all errors are within their bounds"
    assert "largest error" in done.stdout


def test_json(teraedge, files):
    done = teraedge("verify", *files, "--samples", 30, "--json")
    found = json.loads(done.stdout)
    assert (found["passed"], found["samples"], found["beyond_bound"]) == (True, 30, 0)
    assert 0 < found["largest_error"] <= found["its_bound"] < 1e-3


def test_a_wrong_answer_fails(files, tmp_path, monkeypatch, capsys):
    from teraedge.cli import main
    from teraedge.engines.cpu import CpuEngine

    right = CpuEngine.run

    def wrong(self, features, **more):
        result = right(self, features, **more)
        result.outputs[3, 2] += 0.01
        return result

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CpuEngine, "run", wrong)
    assert main(["verify", *files]) == 1
    printed = capsys.readouterr().out
    assert "FAILED, 1 outputs are beyond their bounds" in printed
    assert "sample 3, neuron 2" in printed


def test_a_bound_that_says_nothing_is_called_so(teraedge, tmp_path):
    layers = [package.Layer(np.ones((9, 9)), -0.3, package.ClippedReLU(32))] * 60
    package.save(package.Network(layers), tmp_path / "deep.safetensors")
    np.save(tmp_path / "x.npy", np.ones((4, 9)))
    done = teraedge("verify", "deep.safetensors", "x.npy")
    assert done.returncode == 0, done
    assert "as wide as the values" in done.stdout


def test_refusals(refused, files):
    assert "no such file" in refused("verify", "other", files[1])
    assert "--samples" in refused("verify", *files, "--samples", 0)
