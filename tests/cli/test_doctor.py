"""``teraedge doctor``: what it finds, and that it finds a broken engine."""

import json

from teraedge.cli import doctor


def test_healthy(teraedge):
    done = teraedge("doctor")
    assert done.returncode == 0, done
    assert not done.stderr
    verdicts = ("The CPU engine works.", "The CPU and CUDA engines work.")
    assert done.stdout.splitlines()[-1] in verdicts
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_json(teraedge, tmp_path):
    done = teraedge("doctor", "--json", TERAEDGE_CACHE=str(tmp_path / "cache"), TERAEDGE_DATA="")
    found = json.loads(done.stdout)
    assert (found["healthy"], found["cpu_engine"]) == (True, True)
    assert {"gpu", "cuda-core", "NVRTC", "NVIDIA_driver"} <= set(found)
    assert found["cores"] >= 1
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert found["cache"]["writable"] is True
    assert found["MNIST"] is None


def test_wrong_files_named_like_mnist_are_not_found(teraedge, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"fashion")
    done = teraedge("doctor", "--json", TERAEDGE_DATA=str(tmp_path))
    assert json.loads(done.stdout)["MNIST"] is None
    assert done.returncode == 0


def test_broken_engine_is_a_finding(monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("teraedge.compile", fail, raising=False)
    finding = doctor._self_test()
    assert finding.ok is False
    assert "no such instruction" in finding.text
