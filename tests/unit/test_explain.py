"""The table of a plan, for any device, and the fingerprint of a network."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from engines_networks import NETWORKS, chain, make_features

import teraedge
from teraedge import ClippedReLU, Layer, Network, Options
from teraedge.plan import explain as module
from teraedge.plan.choice import Choice, Part
from teraedge.plan.cost import Limit
from teraedge.plan.explain import LastRun, explain
from teraedge.plan.fingerprint import fingerprint


def choice(layout="tiles", why="because", limit="fma"):
    return Choice(layout, "k", 2e-6, Limit(limit, 1e-6), why)


def explained(parts, last=None, given=None):
    origins = parts[-1].origin + 1
    edges = given or [1000] * origins
    return explain(parts, edges, device="abacus", workers=2, transfer=4e-6, last=last)


ALIKE = [Part(index, 8, 8, 100, 50, choice()) for index in range(5)]


def test_neighbours_that_are_alike_share_a_row():
    found = explained(ALIKE)
    (row,) = found.rows
    assert (row.layers, row.widths) == ("1-5", (8, 8))
    assert (row.edges_given, row.edges, row.nbytes) == (5000, 500, 250)
    # 1000 samples on two workers, five layers of 2 us
    assert row.predicted == pytest.approx(5 * 2e-6 * 1000 / 2)
    assert row.share == pytest.approx(0.5)
    assert row.measured is None
    assert found.measured is None
    assert found.transfer == pytest.approx(4e-6 * 1000 / 2)


def test_what_differs_has_a_row_of_its_own():
    parts = [
        *ALIKE[:2],
        Part(2, 8, 8, 100, 50, choice(layout="dense")),
        Part(3, 8, 9, 1, 1, choice()),
    ]
    assert [row.layers for row in explained(parts).rows] == ["1-2", "3", "4"]


def test_parts_of_a_layer_are_one_row():
    parts = [
        Part(0, 8, 4, 8, 10, choice(layout="single", why="one")),
        Part(0, 4, 8, 20, 30, choice(why="two")),
    ]
    (row,) = explained(parts).rows
    assert row.widths == (8, 4, 8)
    assert (row.edges, row.edges_given, row.nbytes) == (28, 1000, 40)
    assert row.layout == "single+tiles"
    assert row.why == "in 2 parts: one; two"


def test_times_of_the_last_run():
    last = LastRun(
        samples=600, entered=[600, 300, 0, 0, 0], seconds=[4e-3, 2e-3, 0, 0, 0], workers=3
    )
    found = explained(ALIKE, last)
    (row,) = found.rows
    assert row.predicted == pytest.approx(2e-6 * 900 / 3)
    assert found.measured == row.measured == pytest.approx(6e-3)
    assert row.share == pytest.approx(1e-6 * 900 / 3 / 6e-3)
    assert "last run, of 600 samples" in str(found)
    assert "measured" in found.table(80)[0]


def test_the_mean_error_counts_every_layer_once():
    """A row of two layers, of which one takes half and one twice what was predicted."""
    assert explained(ALIKE[:2]).error is None
    last = LastRun(samples=10, entered=[10, 10], seconds=[5e-6, 20e-6], workers=2)
    found = explained(ALIKE[:2], last)  # 10 us each
    (row,) = found.rows
    assert (row.predicted, row.measured) == (pytest.approx(20e-6), pytest.approx(25e-6))
    assert found.error == pytest.approx((1.0 + 0.5) / 2)
    assert "mean error of a layer's prediction 75%" in found.summary
    assert found.to_json()["mean_error"] == found.error


def test_layers_that_took_no_time_have_no_error():
    found = explained(
        ALIKE[:2], LastRun(samples=10, entered=[10, 0], seconds=[10e-6, 0.0], workers=2)
    )
    assert found.error == pytest.approx(0.0)


def test_json():
    values = json.loads(json.dumps(explained(ALIKE).to_json(), allow_nan=False))
    assert values["rows"][0]["widths"] == [8, 8]
    assert values["predicted_seconds"] == pytest.approx(5e-3)
    assert values["measured_seconds"] is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_text_is_aligned_and_fits(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    parts = [Part(k, 65536, 65536, 2**21, 10**8, choice(why=f"reason {k}")) for k in range(30)]
    last = LastRun(60000, [60000] * 30, [0.123456] * 30, 2)
    lines = str(explained(parts, last, [2**21] * 30)).splitlines()
    table = lines[2:33]
    assert max(map(len, table)) <= width
    assert {line.index(">65536") for line in table[1:]} == {table[1].index(">65536")}
    assert table[0].endswith("why")
    assert [line.split()[-1] for line in table[1:28]] == [*"abcdefghijklmnopqrstuvwxyz", "aa"]
    assert "a: reason 0" in lines
    assert ("bytes" in table[0]) == (width == 120)


def test_very_long_tables_are_cut_in_the_middle():
    parts = [Part(k, 8, 8 + k % 2, 1, 1, choice()) for k in range(500)]
    found = explained(parts)
    lines = str(found).splitlines()
    assert len(lines) < module.LINES + 10
    assert any(line.split()[0] == f"+{500 - module.LINES}" for line in lines if line)
    assert len(found.to_json()["rows"]) == 500


def test_letters():
    assert [module._letter(k) for k in (0, 25, 26, 51, 52, 701, 702)] == [
        *("a", "z", "aa", "az", "ba", "zz", "aaa"),
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_explains_itself(name):
    network = NETWORKS[name]
    engine = teraedge.compile(network)
    before = engine.explain()
    assert sum(row.edges_given for row in before.rows) == network.edges
    covered = [n for row in before.rows for n in range(row.first, row.last + 1)]
    assert covered == list(range(1, len(network) + 1))
    assert sum(row.edges_given - row.edges for row in before.rows) == sum(
        engine._plan.saved.values()
    )
    result = engine.run(make_features(network, 150))
    after = engine.explain()
    assert (after.ran, after.samples) == (True, 150)
    assert after.measured == pytest.approx(sum(layer.seconds for layer in result.trace))
    assert str(after) != str(before)


def test_streamed_layers_are_explained():
    network = NETWORKS["two hundred layers"]
    engine = teraedge.compile(network, options=Options(memory=2000, passes=False))
    everything = teraedge.compile(network, options=Options(passes=False))
    assert engine.explain().rows == everything.explain().rows


def test_fingerprints():
    rng = np.random.default_rng(0)
    network = chain(rng, [30, 20, 10], -1, ClippedReLU(4))
    first, second = network
    same = Network(lambda: iter([first, second]))
    assert fingerprint(same) == fingerprint(network) == teraedge.compile(network)._plan.fingerprint
    long = first.weights.copy()
    long.indptr, long.indices = long.indptr.astype(np.int64), long.indices.astype(np.int64)
    assert fingerprint(Network([Layer(long, first.bias, first.activation), second])) == fingerprint(
        network
    )
    value, moved, wide = first.weights.copy(), first.weights.copy(), first.weights.copy()
    value.data[3] += 1
    moved.indices[: moved.indptr[1]] = np.arange(moved.indptr[1])
    wide = sp.csr_array((wide.data, wide.indices, wide.indptr), shape=(30, 20))
    others = [
        [second],
        [first, Layer(second.weights, -2, second.activation)],
        [first, Layer(second.weights, None, second.activation)],
        [first, Layer(second.weights, -1, ClippedReLU(5))],
        [Layer(value, first.bias, first.activation), second],
        [Layer(moved, first.bias, first.activation), second],
        [first, second, Layer(np.eye(10))],
    ]
    found = {fingerprint(Network(layers)) for layers in others} | {fingerprint(network)}
    assert len(found) == len(others) + 1
    ones = [Layer(np.ones((3, 4))), Layer(np.full((3, 4), 2.0)), Layer(np.eye(3, 4))]
    assert len({fingerprint(Network([layer])) for layer in ones}) == 3
