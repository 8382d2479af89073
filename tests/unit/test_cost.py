"""The cost model and the measured constants it stands on."""

import json
import math
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from engines_networks import shared_inputs, weights

from teraedge import Layer
from teraedge.engines.cpu import calibrate
from teraedge.engines.cpu.calibrate import TYPICAL, VARIABLE
from teraedge.errors import OptionsError
from teraedge.plan.cost import Constants, Reads, Work, reads
from teraedge.plan.panels import UNSURE, panel_layer

NEAR = Reads((1.0, 0.0, 0.0), 0.0)
C = replace(TYPICAL, tile=64, height=4, caches=(32 * 2**10, 2**20))


def work(**values):
    usual = {"edges": 100, "tall_inputs": 0, "single_inputs": 100, "tall_neurons": 0}
    usual |= {"single_neurons": 10, "nbytes": 600, "rows": 20}
    return Work(**(usual | {"tall_reads": NEAR, "single_reads": NEAR} | values))


def test_seconds_add_up():
    expected = 100 * C.single_edge[0] + 10 * C.single_neuron
    assert work().seconds(C) == pytest.approx(1e-9 * expected)
    tall = work(tall_inputs=30, tall_neurons=8)
    expected += 30 * C.tall_edge[0] + 8 * C.tall_neuron
    assert tall.seconds(C) == pytest.approx(1e-9 * expected)


def test_inputs_from_far_away_cost_more():
    shares = [Reads(tuple(np.eye(3)[level]), 0.0) for level in range(3)]
    times = [work(single_reads=one, tall_inputs=9, tall_reads=one).seconds(C) for one in shares]
    assert times == sorted(times)
    assert times[0] < times[2]


def test_layers_beyond_l2_are_streamed():
    """A layer of many bytes and little work takes as long as it takes to read it."""
    far = work(nbytes=10**9)
    assert far.seconds(C) == pytest.approx(1e-9 * 10**9 * C.byte / C.tile)
    assert far.limit(C).name == "memory"
    assert far.limit(C).seconds == pytest.approx(far.seconds(C))


def test_limits():
    assert work().limit(C).name == "load"
    dense = work(edges=400, tall_inputs=100, single_inputs=0)
    assert dense.limit(C) == ("fma", pytest.approx(1e-9 * 400 * C.multiply_add))
    assert dense.limit(C).seconds < dense.seconds(C)


def test_where_reads_come_from():
    rng = np.random.default_rng(0)
    assert reads(rng.integers(0, 50, 5000), 100, C).shares == (1, 0, 0)  # all fit L1
    # L1 has room for 128 rows, L2 for 4096
    scattered = reads(rng.integers(0, 2000, 50_000), 3000, C)
    assert scattered.shares[0] < 0.1
    assert scattered.shares[2] == 0
    assert reads(rng.integers(0, 10**6, 50_000), 2 * 10**6, C).shares[2] > 0.9
    # the same few rows again and again, though there are many
    local = reads(np.repeat(np.arange(1000), 32), 10**5, C)
    assert local.shares[0] > 0.9
    assert reads(np.arange(10**5) % 5000, 10**5, C).following > 0.9
    assert sum(scattered.shares) == pytest.approx(1)
    assert reads(np.empty(0, np.int64), 10**6, C).shares == (1, 0, 0)


def test_the_cheapest_layout_is_chosen():
    rng = np.random.default_rng(0)
    layouts = {
        "single": weights(rng, 300, 400, density=0.02),
        "panels": shared_inputs(rng, 20, 8, 20, 200, equal=False),
        "dense": weights(rng, 200, 400, density=0.9),
    }
    for layout, matrix in layouts.items():
        choice = panel_layer(Layer(matrix), C).choice
        assert choice.layout in (layout, "padded" if layout == "dense" else layout)
        assert choice.seconds <= UNSURE * min(choice.candidates.values())
        assert choice.candidates[choice.layout] == choice.seconds
        assert 0 < choice.limit.seconds <= choice.seconds


@pytest.mark.parametrize("sizes", [(64, 48), (2048, 10), (784, 300)])
def test_full_layers_are_dense(sizes):
    """All inputs are shared, so that panels are the inner loop of a dense product."""
    layer = Layer(np.random.default_rng(0).random(sizes, np.float32))
    layout = panel_layer(layer, C)
    assert layout.choice.layout == "dense"
    assert "share all inputs" in layout.choice.why
    assert len(layout.tall.outputs) == sizes[1] // C.height * C.height
    assert len(layout.tall.indices) + len(layout.single.indices) == sizes[0] * (
        sizes[1] // C.height + sizes[1] % C.height
    )


def test_constants_decide():
    """The same layer, on a machine where panels are dear and on one where they cost nothing."""
    matrix = weights(np.random.default_rng(0), 200, 400, density=0.3)
    dear = replace(C, tall_edge=(9.0, 9.0, 9.0), tall_run=9.0)
    cheap = replace(C, tall_edge=(1e-3, 1e-3, 1e-3), tall_run=1e-3, tall_neuron=1e-3)
    assert panel_layer(Layer(matrix), dear).choice.layout == "single"
    assert panel_layer(Layer(matrix), cheap).choice.layout in ("padded", "dense")


def test_shared_inputs_are_not_put_together_where_that_is_dearer():
    matrix = shared_inputs(np.random.default_rng(0), 20, 8, 20, 200, equal=False)
    dear = replace(C, tall_edge=(9.0, 9.0, 9.0), tall_run=9.0)
    layout = panel_layer(Layer(matrix), dear)
    assert layout.choice.layout == "single"
    assert len(layout.tall.outputs) == 0


def test_constants_through_json():
    text = json.dumps(C.to_json())
    assert Constants.from_json(json.loads(text)) == C


@pytest.mark.parametrize(
    "change",
    [
        {"tall_edge": [1, 2]},
        {"tall_edge": 1.0},
        {"byte": -1},
        {"byte": 0},
        {"byte": math.nan},
        {"byte": math.inf},
        {"byte": "1"},
        {"byte": None},
        {"byte": True},
        {"tile": 16.5},
        {"caches": [1, 2.5]},
        {"unknown": 1},
    ],
)
def test_constants_that_make_no_sense(change):
    with pytest.raises(ValueError, match="must"):
        Constants.from_json(C.to_json() | change)
    with pytest.raises(ValueError, match="must"):
        Constants.from_json([1])
    with pytest.raises(ValueError, match="must"):
        Constants.from_json({k: v for k, v in C.to_json().items() if k != "byte"})


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Count measurements, which take no time here, and keep them in a folder of their own."""
    calls = []

    def measure():
        calls.append(1)
        return replace(TYPICAL, byte=0.125 * len(calls))

    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE)
    calibrate._constants.cache_clear()
    yield calls
    calibrate._constants.cache_clear()


def again():
    """As another process would."""
    calibrate._constants.cache_clear()
    return calibrate.constants()


def test_measured_once(fake):
    first = calibrate.constants()
    assert again() == again() == first
    assert len(fake) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"tile": 1}', "\x00\xff", "[" * 100_000])
def test_a_damaged_cache_is_measured_again(fake, text):
    calibrate.constants()
    path = calibrate._cache_path()
    path.write_text(text)
    found = again()
    assert len(fake) == 2
    assert json.loads(path.read_text())["byte"] == found.byte  # and mended
    assert again() == found


def test_figures_of_another_kind_of_machine_are_not_used(fake):
    calibrate.constants()
    path = calibrate._cache_path()
    path.write_text(json.dumps(replace(TYPICAL, tile=8 * TYPICAL.tile).to_json()))
    again()
    assert len(fake) == 2


def test_the_key_names_the_machine(fake, monkeypatch):
    before = calibrate._cache_path()
    for name, value in (("cpu_model", lambda: "abacus"), ("LANES", 999), ("__version__", "9.9")):
        with monkeypatch.context() as changed:
            changed.setattr(calibrate, name, value)
            assert calibrate._cache_path() != before
    assert calibrate._cache_path() == before


def test_a_cache_that_cannot_be_written(fake, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert calibrate.constants().byte == 0.125
    assert again().byte == 0.25  # measured again, since it could not be kept


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_cache(fake, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert calibrate.constants().byte == 0.125


def test_no_home(fake, monkeypatch):
    monkeypatch.setattr(calibrate, "cache_dir", _no_home)
    assert calibrate.constants().byte == 0.125


def _no_home():
    from teraedge.errors import DataError

    raise DataError("there is no home folder")


def test_another_process_was_faster(fake, monkeypatch):
    path = calibrate._cache_path()

    def measure():
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(replace(TYPICAL, byte=7.0).to_json()))
        return TYPICAL

    monkeypatch.setattr(calibrate, "measure", measure)
    assert calibrate.constants().byte == 7.0


def test_constants_from_a_file(fake, monkeypatch, tmp_path):
    path = tmp_path / "constants.json"
    path.write_text(json.dumps(replace(TYPICAL, byte=3.0).to_json()))
    monkeypatch.setenv(VARIABLE, str(path))
    assert calibrate.constants().byte == 3.0
    monkeypatch.setenv(VARIABLE, "typical")
    assert calibrate.constants() == TYPICAL
    assert not fake
    for text, message in (("{", "cannot be used"), ("{}", "must be an object"), (None, "No such")):
        path = tmp_path / f"bad-{message[:4]}.json"
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(OptionsError, match=message) as caught:
            calibrate.constants()
        assert "\n" not in str(caught.value)


def test_what_is_measured_makes_sense():
    """The real thing; nothing here depends on how fast or how busy the machine is."""
    found = calibrate.measure()
    assert Constants.from_json(found.to_json()) == found
    for levels in (found.tall_edge, found.single_edge, found.read):
        assert list(levels) == sorted(levels)
    assert found.multiply_add * found.height <= found.tall_edge[0] * 1.2  # rounded to 10 %
    assert found.read[0] <= found.single_edge[0] * 1.2


@pytest.mark.parametrize("value", [1e-9, 0.0123, 1.0, 345.6])
def test_rounding_is_stable(value):
    rounded = calibrate._rounded(value)
    assert rounded == pytest.approx(max(value, 1e-6), rel=0.06)
    assert calibrate._rounded(rounded) == rounded
