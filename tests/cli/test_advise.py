"""``teraedge advise``: measured advice, in a table, as JSON, and drawn."""

import json
import math
import sys

import numpy as np
import pytest

import teraedge
from teraedge.advisor import Advice, advise
from teraedge.advisor.patterns import PATTERNS, n_of_m
from teraedge.cli import main
from teraedge.errors import OptionsError


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)

    def layer(n_in, n_out, density):
        weights = rng.normal(size=(n_in, n_out)) * (rng.random((n_in, n_out)) < density)
        return teraedge.Layer(weights, 0.1, teraedge.ReLU())

    network = teraedge.Network([layer(300, 256, 0.05), layer(256, 40, 0.5), layer(40, 3, 1.0)])
    path = tmp_path / "model.safetensors"
    teraedge.save(network, path)
    return path


@pytest.mark.parametrize("target", ["latency", "throughput"])
def test_json(model, capsys, target):
    assert main(["advise", str(model), "--target", target, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == target
    assert (found["samples"] == 1) == (target == "latency")
    assert sorted(number for one in found["advice"] for number in one["layers"]) == [0, 1, 2]
    assert not found["left_out"]
    first = next(one for one in found["advice"] if one["layers"] == [0])
    assert first["density"] == pytest.approx(0.05, rel=0.1)
    assert first["gain"] == pytest.approx(first["dense_seconds"] / first["seconds"])
    assert set(first["patterns"]) == set(PATTERNS)
    densities = [density for density, _ in first["curve"]]
    assert densities == sorted(densities)
    assert len(densities) > 5
    assert first["gains_below"] > 0


def test_table_and_plot(model, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    for kind, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / f"advice.{kind}"
        assert main(["advise", str(model), "--plot", str(path)]) == 0
        assert path.read_bytes().startswith(begin)
    shown = capsys.readouterr().out
    assert "300x256" in shown
    assert "RadiX" in shown
    assert "together" in shown


def test_time_that_is_over_is_said(model):
    advised = advise(teraedge.load(model), budget=0.0)
    assert (advised.advice, advised.left_out) == ([], [0, 1, 2])


def test_layers_alike_are_measured_once():
    layer = teraedge.Layer(np.eye(64), activation=teraedge.ReLU())
    network = teraedge.Network([layer] * 5 + [teraedge.Layer(np.ones((64, 2)))])
    told = []
    advised = advise(network, target="latency", progress=told.append)
    assert [one.layers for one in advised.advice] == [[5], [0, 1, 2, 3, 4]]
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_layer_without_edges():
    network = teraedge.Network([teraedge.Layer(np.zeros((30, 20)), 1.0)])
    (one,) = advise(network, target="latency").advice
    assert one.curve == []
    assert one.gains_below is None


def test_where_gains_start():
    def advice(curve, dense=1.1):
        return Advice([0], 8, 8, 0.5, 1.0, dense, curve)

    assert advice([(0.1, 0.5), (0.2, 2.0)]).gains_below == pytest.approx(0.1 * math.sqrt(2))
    assert advice([(0.1, 0.5), (0.2, 0.7)]).gains_below == 0.2
    assert advice([(0.1, 1.5)]).gains_below == 0.0
    assert advice([(0.1, 1.5)], None).gains_below is None
    assert advice([(0.1, 1.5)], 2.0).gain == 2.0


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5, 1.0])
def test_patterns_are_what_they_say(density):
    for name, make in PATTERNS.items():
        weights = make(768, 640, density).toarray() != 0
        assert weights.mean() == pytest.approx(density, rel=0.35, abs=0.01), name
    n, m = n_of_m(density, 768)
    chosen = PATTERNS["N:M"](768, 640, density).toarray() != 0
    whole = 768 // m * m
    assert (chosen[:whole].reshape(-1, m, 640).sum(axis=1) == n).all()
    tiles = (PATTERNS["block 16"](768, 640, density).toarray() != 0).reshape(48, 16, 40, 16)
    counts = tiles.sum(axis=(1, 3))
    assert set(counts.ravel()) <= {0, 256}
    groups = (PATTERNS["RadiX-Net"](768, 640, density).toarray() != 0).reshape(768, 40, 16)
    assert (groups == groups[:, :, :1]).all()


BAD = [
    (["--target", "joy"], "joy"),
    (["--plot", "advice.txt"], "ends with .png"),
    (["--plot", "nowhere/advice.png"], "no folder nowhere"),
    (["--device", "tpu"], "tpu"),
    (["--seconds", "0"], "seconds"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[" ".join(one) for one, _ in BAD])
def test_bad_input_is_one_line(model, capsys, monkeypatch, options, message):
    monkeypatch.chdir(model.parent)
    if "--plot" in options:
        pytest.importorskip("matplotlib")
    assert main(["advise", str(model), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_matplotlib(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["advise", str(model), "--plot", "advice.png"]) == 2
    assert "teraedge[viz]" in capsys.readouterr().err


def test_bad_target():
    with pytest.raises(OptionsError, match="'joy'; allowed"):
        advise(teraedge.Network([teraedge.Layer([[1.0]])]), target="joy")
