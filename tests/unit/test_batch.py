"""How a batch on the CPU is divided between tiles and samples that threads share."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp

import teraedge
from teraedge import Layer, Network, Options, ReLU
from teraedge.engines.cpu.batch import Costs, in_tiles, tile_size
from teraedge.engines.cpu.few import MOST
from teraedge.engines.cpu.simd import LANES, TILE


def costs(threads, register=1e-3, call=1e-5):
    """Of layers that threads share as well as they can."""
    return Costs(register, 1.07 * register / threads, call)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_threads_have_as_many_tiles_each(threads):
    for samples in range(1, 6 * threads * TILE, 7):
        size = tile_size(samples, threads)
        tiles = -(-samples // size)
        assert size % LANES == 0
        assert LANES <= size <= TILE
        assert -(-tiles // threads) == -(-samples // (threads * TILE))  # rounds


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_a_few_more_samples_cost_a_few_more(threads):
    """Of a batch one larger than full tiles, the one is shared; else a thread reads all for it."""
    whole = threads * TILE
    assert in_tiles(whole, threads, costs(threads)) == whole
    for more in (1, LANES // 2, LANES):
        assert in_tiles(whole + more, threads, costs(threads)) in (0, whole)


def test_a_batch_too_small_for_equal_tiles_is_shared():
    assert in_tiles(MOST + 1, 2, costs(2)) == 0


def test_in_a_large_batch_it_does_not_matter():
    for samples in (1000 * TILE + 1, 10**6 + 1):
        assert in_tiles(samples, 2, costs(2)) == samples


def test_threads_that_wait_for_each_other_have_tiles():
    small = costs(64, register=1e-6, call=1e-4)
    assert in_tiles(65 * TILE, 64, small) == 65 * TILE


def shallow(neurons=400):
    rng = np.random.default_rng(3)
    sizes = (90, neurons, neurons, 30)
    layers = []
    for n_in, n_out in pairwise(sizes):
        weights = rng.normal(size=(n_in, n_out)) * (rng.random((n_in, n_out)) < 0.2)
        layers.append(Layer(weights, rng.normal(0, 0.1, n_out), ReLU()))
    return Network(layers)


@pytest.mark.parametrize("samples", [MOST + 1, 2 * TILE + 1, 5 * TILE + 17])
@pytest.mark.parametrize("whole", [0, TILE, None], ids=["shared", "both", "tiles"])
def test_a_sample_is_the_same_however_a_batch_is_divided(samples, whole, monkeypatch):
    tiled = samples if whole is None else whole
    monkeypatch.setattr("teraedge.engines.cpu.engine.in_tiles", lambda *_: tiled)
    x = np.random.default_rng(1).random((samples, 90))
    x[::5] = -1
    options = Options(threads=2, merge=False)  # which only happens in tiles
    with teraedge.compile(shallow(), options=options) as engine:
        result = engine.run(x)
        expected = engine.run(sp.csr_array(x))  # which always runs in tiles
        assert len(engine._pools) == 2
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        np.testing.assert_array_equal(result.live, expected.live)
        assert [layer.live for layer in result.trace] == [layer.live for layer in expected.trace]
        assert [layer.edges for layer in result.trace] == [layer.edges for layer in expected.trace]
        assert engine._last().samples == samples


def test_samples_that_are_left_over_run_together():
    """Without tiles of their own where one thread would have a whole tile more than another."""
    with teraedge.compile(shallow(), options=Options(threads=2)) as engine:
        engine.run(np.ones((MOST + 1, 90), np.float32))
        assert not engine._pools


def test_dropped_samples_beside_tiles(monkeypatch):
    """Rows of zeros in what is shared are not stored either."""
    monkeypatch.setattr("teraedge.engines.cpu.engine.in_tiles", lambda *_: TILE)
    network = Network([Layer(np.eye(40), 0.0, ReLU())] * 2)
    x = np.ones((TILE + 9, 40), np.float32)
    x[::3] = 0
    with teraedge.compile(network, options=Options(threads=2, passes=False)) as engine:
        result = engine.run(x)
    np.testing.assert_array_equal(result.outputs, x)
    assert result.live.tolist() == [k for k in range(TILE + 9) if k % 3]
    assert "prune" in result.exact
    assert [layer.live for layer in result.trace] == [len(result.live)] * 2
