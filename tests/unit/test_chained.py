"""Layers laid out for the chained kernel: read the way it reads them, they are the layer."""

import numpy as np
import pytest
import scipy.sparse as sp

import teraedge
from teraedge.datasets import radixnet
from teraedge.plan import gpu
from teraedge.plan.chained import ALIGN, chained, pieces
from teraedge.plan.panels import panel_layer

HOPPER = 227 * 1024


def ring(panels, own=8, equal=False, seed=0):
    """Return a layer of panels that share `own` inputs with each of two others, relabeled."""
    rng = np.random.default_rng(seed)
    pattern = np.zeros((panels * own, panels * 16), np.float32)
    for panel in range(panels):
        rows = (np.arange(2 * own) + panel * own) % len(pattern)
        pattern[rows, panel * 16 : panel * 16 + 16] = 1
    pattern = pattern[rng.permutation(len(pattern))][:, rng.permutation(pattern.shape[1])]
    weights = pattern if equal else pattern * rng.random(pattern.shape, dtype=np.float32)
    return teraedge.Layer(weights, rng.random(pattern.shape[1], dtype=np.float32))


def overlapping(seed):
    """Return a layer of panels whose lists of inputs overlap anyhow; some are empty."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((90, 7 * 16), np.float32)
    for panel in range(7):
        rows = np.flatnonzero(rng.random(90) < [0, 0.9, 0.6, 0.2, 0.7, 0, 0.1][panel])
        weights[np.ix_(rows, np.arange(16) + panel * 16)] = rng.random((len(rows), 16)) + 0.5
    return teraedge.Layer(weights)


def laid_out(layer, monkeypatch):
    monkeypatch.setattr(gpu, "CHAINED", np.inf)
    panels = panel_layer(layer, gpu._relative(16, 1e-3))
    assert not len(panels.single.outputs)
    found = gpu.lay_out_wide(panels)
    assert found.kernel == "chained"
    return found


def dense(found, length, tall=None):
    """Return the weight matrix, and how often each input is read, by runs of so many panels."""
    tall = tall or found.tall
    matrix = np.zeros((found.n_in, found.n_out))
    reads = np.zeros(found.n_in, np.int64)
    weights = np.full((len(tall.indices), 16), found.value or 0)
    if found.value is None:
        weights = tall.weights.reshape(-1, 16)

    def add(panel, index, place):
        matrix[tall.indices[index], tall.targets["output"][panel]] += weights[place]

    def shared(panel, into):
        list_ = tall.lists[panel]
        start = list_["begin"] + -(-list_["length"] // ALIGN) * ALIGN
        assert list_["shared"] % ALIGN == 0
        for k in range(list_["shared"]):
            reads[tall.indices[start + k]] += 1
            for side in into:
                add(panel + side, start + k, start + 2 * k + side)

    for first in range(0, tall.count, length):
        if first:
            shared(first - 1, [1])
        last = min(first + length, tall.count) - 1
        for panel in range(first, last + 1):
            list_ = tall.lists[panel]
            for k in range(list_["begin"], list_["begin"] + list_["length"]):
                reads[tall.indices[k]] += 1
                add(panel, k, k)
            shared(panel, [0, 1] if panel < last else [0])
    return matrix, reads


@pytest.mark.parametrize("length", [1, 3, 16])
@pytest.mark.parametrize("name", ["ring", "equal", "overlapping 0", "overlapping 1", "all shared"])
def test_runs_of_any_length_are_the_layer(name, length, monkeypatch):
    layer = {
        "ring": lambda: ring(12),
        "equal": lambda: ring(9, own=16, equal=True),
        "overlapping 0": lambda: overlapping(0),
        "overlapping 1": lambda: overlapping(1),
        "all shared": lambda: teraedge.Layer(np.random.default_rng(0).random((24, 80)) + 1),
    }[name]()
    found = laid_out(layer, monkeypatch)
    matrix, _ = dense(found, length)
    np.testing.assert_array_equal(matrix, layer.weights.toarray().astype(np.float32))


def test_shared_inputs_are_read_once(monkeypatch):
    found = laid_out(ring(16, own=16), monkeypatch)
    _, reads = dense(found, 16)
    assert np.bincount(reads).tolist() == [0, 15 * 16, 16]  # those that close the ring twice
    _, reads = dense(found, 1)
    assert (reads == 2).all()


def test_rows_between_two_layers_lie_in_the_order_of_reading(monkeypatch):
    first, second = (laid_out(ring(16, own=16, seed=seed), monkeypatch) for seed in (1, 2))
    np.testing.assert_array_equal(np.sort(second.places), np.arange(second.n_in))
    targets = first.arrays_between(None, second)[3]
    indices = second.arrays_between(first, None)[1]
    np.testing.assert_array_equal(
        targets["output"], second.places[first.tall.targets["output"]].reshape(targets.shape)
    )
    for start in range(0, 128, ALIGN):  # whole pieces of rows side by side
        if np.diff(indices[start : start + ALIGN]).any():
            np.testing.assert_array_equal(np.diff(indices[start : start + ALIGN].astype(int)), 1)


def test_which_kernel():
    official = radixnet.uniform(16384, 32, 1, width=16, weights=1 / 16)[0]
    assert gpu.lay_out(official, HOPPER).kernel == "chained"
    blocks = sp.kron(sp.eye_array(1024), np.ones((16, 16), np.float32), format="csr")
    assert gpu.lay_out(teraedge.Layer(blocks), HOPPER).kernel == "wide"  # nothing to share


def test_order_and_pieces():
    panels = panel_layer(ring(10), gpu._relative(16, 1.5)).tall
    found = chained(panels, 80)
    np.testing.assert_array_equal(np.sort(found.order), np.arange(10))
    assert found.pieces == 11
    assert pieces(np.diff(panels.starts)) == 20
