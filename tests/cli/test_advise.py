"""``teraedge advise``: measured advice, in a table, as JSON, and drawn."""

import json
import math
import sys

import numpy as np
import pytest

import teraedge
from teraedge.advisor import Advice, advise, rounds
from teraedge.advisor.advice import threshold
from teraedge.advisor.patterns import PATTERNS, n_of_m
from teraedge.cli import main
from teraedge.errors import OptionsError


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(rounds, "ROUNDS", 2)
    monkeypatch.setattr(rounds, "TURN", (0.001, 1))
    monkeypatch.setattr(rounds, "SETTLE", 0.0)


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
    assert [one["layers"] for one in found["advice"]] == [[0], [1], [2]]
    assert not found["left_out"]
    first = next(one for one in found["advice"] if one["layers"] == [0])
    assert first["density"] == pytest.approx(0.05, rel=0.1)
    assert first["gain"] == pytest.approx(first["dense_seconds"] / first["seconds"])
    assert set(first["patterns"]) == set(PATTERNS)
    densities = [density for density, _ in first["curve"]]
    assert densities == sorted(densities)
    assert len(densities) > 5
    assert first["gains_below"] > 0
    assert first["gains_below_at_least"] == (first["gains_below"] == densities[-1])
    assert found["rounds"] == 2


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
    assert [one.layers for one in advised.advice] == [[0, 1, 2, 3, 4], [5]]
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


def test_layers_are_listed_and_drawn_in_the_order_of_the_network(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    network = teraedge.Network([teraedge.Layer(np.ones(shape)) for shape in ((4, 9), (9, 30))])
    model, drawn = tmp_path / "small.safetensors", tmp_path / "advice.svg"
    teraedge.save(network, model)
    assert main(["advise", str(model), "--target", "latency", "--plot", str(drawn)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("small.safetensors\n")
    assert shown.index("4x9") < shown.index("9x30")
    text = drawn.read_text()
    assert text.index("layer 1: 4 x 9") < text.index("layer 2: 9 x 30")
    assert "small.safetensors: latency" in text


def test_one_loss_at_the_lowest_density_is_no_never():
    one = Advice([0], 8, 8, 0.1, 1.0, 1.1, [(0.02, 1.5), (0.1, 0.4), (0.2, 0.6), (0.4, 2.4)])
    assert one.gains_below == pytest.approx(0.2 * 2 ** (math.log(1 / 0.6) / math.log(4)))
    assert 0.02 < one.gains_from < 0.1
    assert threshold(one) == "3.3-26%"
    assert not one.at_least


def test_the_longest_stretch_of_gains_counts():
    times = [0.5, 2.0, 0.5, 0.6, 0.7, 2.0, 0.9]
    one = Advice([0], 8, 8, 0.1, 1.0, 1.1, list(zip((1, 2, 3, 4, 5, 6, 7), times, strict=True)))
    assert 2 < one.gains_from < 3
    assert 5 < one.gains_below < 6


def test_gains_at_all_densities_tried_end_somewhere_above_them():
    def words(*times):
        curve = list(zip((0.02, 0.1, 0.6), times, strict=True))
        return threshold(Advice([0], 8, 8, 0.1, 1.0, 1.1, curve))

    assert words(0.1, 0.2, 0.5) == ">= 60%"
    assert words(1.5, 0.5, 0.9) == "3.6 to >= 60%"
    assert words(2.0, 2.0, 2.0) == "never"
    assert threshold(Advice([0], 8, 8, 0.1, 1.0, None)) == "-"


def test_what_is_the_same_matrix_is_measured_once():
    network = teraedge.Network([teraedge.Layer(np.full((70, 50), 0.5), activation=teraedge.ReLU())])
    (one,) = advise(network, target="latency").advice
    assert one.patterns["N:M"] == one.patterns["RadiX-Net"] == (1.0, one.seconds)
    assert one.curve[-1] == (1.0, one.seconds)
    assert one.dense_seconds <= one.seconds


def test_programs_take_turns_and_the_best_run_counts(monkeypatch):
    order = []

    def program(name, times, spins=False):
        runs = iter([9.0, *times])

        def run():
            order.append(name)
            return next(runs)

        return rounds.Program(lambda: rounds.Ready(run, lambda: order.append(f"-{name}")), 1, spins)

    def same():
        return b

    a, b = program("a", (5.0, 3.0), spins=True), program("b", (2.0, 4.0))
    c, d = rounds.Program(same, 1), rounds.Program(lambda: None, 1)
    monkeypatch.setattr(rounds, "TURN", (0.0, 1))  # a run a turn
    told = []
    rounds.measure([a, b, c, d], 100.0, told.append)
    assert "".join(order) == "abbaba-a-b"  # what spins on comes last in each round
    assert [one.seconds for one in (a, b, c, d)] == [3.0, 2.0, 2.0, math.inf]
    assert [one.spread for one in (a, b, c)] == [4 / 3, 1.5, 1.0]
    assert told == sorted(told)


@pytest.mark.parametrize(("spread", "said"), [(1.1, False), (1.9, True)])
def test_a_busy_machine_is_said(model, capsys, monkeypatch, spread, said):
    monkeypatch.setattr(rounds.Program, "spread", spread)
    assert main(["advise", str(model), "--target", "latency"]) == 0
    assert ("took 1.9 times as long" in capsys.readouterr().out.replace("\n", " ")) == said


def test_what_is_too_large_to_be_kept_is_made_ready_for_every_turn(monkeypatch):
    monkeypatch.setattr(rounds, "LONGEST_TURN", 0.0)
    starts = []

    def start():
        starts.append(1)
        return rounds.Ready(lambda: 1.0, lambda: starts.append(-1))

    rounds.measure([rounds.Program(start, rounds.KEPT[0] + 1)], 100.0, lambda _: None)
    assert starts == [1, -1, 1, -1]


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
