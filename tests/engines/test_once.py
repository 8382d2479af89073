"""Equal samples of a whole run, found on the device and run once."""

import engine_devices
import numpy as np
import pytest
from test_small import chain

import teraedge
from teraedge import Options
from teraedge.engines.cuda import once as once_module
from teraedge.engines.cuda import specialisations
from teraedge.plan import few, small
from teraedge.plan.rates import Rates

SAMPLES = (1, 19, 33, 150, 989)


device = engine_devices.gpu_device


@pytest.fixture(autouse=True)
def _sooner(monkeypatch):
    monkeypatch.setattr(few, "FROM", 2)
    monkeypatch.setattr(Rates, "wave_seconds", lambda *_: 1.0)
    monkeypatch.setattr(Rates, "block_at_best", lambda *_: np.inf)
    monkeypatch.setattr(Rates, "dense_seconds", lambda *_: np.inf)


def run_both(network, device, features, prune):
    runs = []
    for merge in (False, True):
        options = Options(prune=prune, merge=merge, passes=False)
        with teraedge.compile(network, device, options) as engine:
            for _ in range(2):
                result = engine.run(features)
            runs.append((result.outputs, result.live, result.trace, result.exact))
            if merge:
                assert any(segment.few for segment in engine._ran)
                distinct = engine._state.counters.distinct
    return (*runs, distinct)


def some_rows(width, count):
    rows = (np.random.default_rng(width).random((count, width)) < 0.5).astype(np.float32)
    rows[3] = 0
    return rows


def assert_same(alone, once):
    np.testing.assert_allclose(alone[0], once[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(alone[1], once[1])
    assert [layer.live for layer in alone[2]] == [layer.live for layer in once[2]]


@pytest.mark.parametrize(
    ("kernel", "prune", "width"),
    [
        *(("small", prune, width) for prune in (False, True) for width in (64, 150)),
        *(("resident", True, width) for width in (64, 150, 600)),
    ],
)
def test_every_sample_comes_out(device, kernel, prune, width, monkeypatch):
    """Rows are those of samples that run alone, and every sample is counted."""
    monkeypatch.setattr(small, "LAYERS", 6)
    seconds = -1.0 if kernel == "small" else np.inf
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: seconds)
    network = chain([width] * 24, 5)
    rows = some_rows(width, 7)
    for samples in SAMPLES:
        features = rows[np.random.default_rng(samples).integers(0, 7, samples)]
        alone, once, distinct = run_both(network, device, features, prune)
        assert_same(alone, once)
        assert min(len(once[1]), 1) <= distinct.max() <= 7
        if samples > 100:
            executed = [sum(layer.edges for layer in run[2]) for run in (alone, once)]
            assert executed[1] < executed[0] * 0.9
            assert "merge" in once[3]
        assert "merge" not in alone[3]


def test_many_distinct_samples_run_as_ever(device, monkeypatch):
    def many(rates, *_):
        return rates.multiprocessors * few.GROUP / 20  # so that up to 20 samples are few

    monkeypatch.setattr(Rates, "few_seconds", many)
    network, features = chain([64] * 24, 5), some_rows(64, 150)
    alone, once, distinct = run_both(network, device, features, True)
    assert_same(alone, once)
    assert distinct.max() == 0


def test_equal_hashes_of_distinct_samples(device, monkeypatch):
    """A hash that is the same by chance makes nobody equal."""
    file, defines, names = specialisations.merge()
    weak = {**defines, "HASH_MASK": "1ull"}
    monkeypatch.setattr(once_module, "merge", lambda: (file, weak, names))
    network, rows = chain([64] * 24, 5), some_rows(64, 60)
    features = rows[np.random.default_rng(0).integers(0, 60, 150)]
    alone, once, distinct = run_both(network, device, features, True)
    assert_same(alone, once)
    assert distinct.max() > 2


def test_layers_between_wide_and_narrow_ones(device):
    """Segments whose layers have other numbers of neurons than the first and the last."""
    network = chain([300, 40, 130, 33, 700, 64, 1, 90] * 3, 6)
    rows = some_rows(300, 9)
    features = rows[np.random.default_rng(0).integers(0, 9, 150)]
    assert_same(*run_both(network, device, features, True)[:2])


def saturating(width, layers, last_upper=None):
    """Return layers that drive most samples to the bound, with sums that have none in between."""
    rng = np.random.default_rng(width)
    found = []
    for number in range(layers):
        weights = np.where(rng.random((width, width)) < 6 / width, 0.5, 0)
        weights[np.arange(width), np.arange(width)] = 1
        linear = number % 4 == 2
        bias = 0 if linear else -1
        activation = teraedge.Identity() if linear else teraedge.ClippedReLU(4)
        found.append(teraedge.Layer(weights.astype(np.float32), bias, activation))
    if last_upper:
        found.append(teraedge.Layer(0.3 * np.eye(width, 5, dtype=np.float32), 0.1, last_upper))
    return teraedge.Network(found)


@pytest.mark.parametrize("width", [40, 64, 600])
@pytest.mark.parametrize("count", [1, 40])
def test_saturated_samples_need_not_run(device, width, count, monkeypatch):
    """All neurons at the bound: what becomes of such a sample is known, and it lives on."""
    monkeypatch.setattr(small, "LAYERS", 12)
    network, rows = saturating(width, 40), some_rows(width, 50)[:count]
    rows[0] = 1
    features = rows[np.random.default_rng(0).integers(0, count, 150)]
    alone, once, _ = run_both(network, device, features, True)
    assert_same(alone, once)
    assert len(once[1]) > 0
    assert once[2][-1].live == len(once[1])
    assert alone[2][-1].edges > 0
    assert once[2][-1].edges == 0  # known before the segment
    assert sum(layer.edges > 0 for layer in once[2]) < 30


def test_what_becomes_of_saturated_samples_is_not_known(device, monkeypatch):
    """A last layer that leaves saturated samples between its bounds has to run for each."""
    monkeypatch.setattr(small, "LAYERS", 12)
    network, rows = saturating(64, 40, teraedge.ClippedReLU(4)), some_rows(64, 5)
    features = rows[np.random.default_rng(0).integers(0, 5, 150)]
    alone, once, _ = run_both(network, device, features, True)
    assert_same(alone, once)
    assert once[2][-1].edges > 0


def test_a_curve_ends_what_is_known(device, monkeypatch):
    monkeypatch.setattr(small, "LAYERS", 12)
    network, rows = saturating(64, 40, teraedge.Sigmoid()), some_rows(64, 5)
    features = rows[np.random.default_rng(0).integers(0, 5, 150)]
    assert_same(*run_both(network, device, features, True)[:2])


def test_segments_are_no_longer_than_there_is_room_for(device, monkeypatch):
    """Of however many layers: what the kernel knows of each lies in shared memory."""
    monkeypatch.setattr(few, "most_layers", lambda width, room: 7)
    monkeypatch.setattr(Rates, "small_seconds", lambda *_: np.inf)
    network, rows = chain([64] * 40, 5), some_rows(64, 9)
    features = rows[np.random.default_rng(0).integers(0, 9, 150)]
    assert_same(*run_both(network, device, features, False)[:2])
    options = Options(prune=False, passes=False)
    with teraedge.compile(network, device, options) as engine:
        counts = [segment.count for segment in engine._chunk.segments]
        assert counts == [7, 7, 7, 7, 7, 4]
        assert all(segment.few for segment in engine._chunk.segments[1:])
