"""A few samples on the CPU, shared by all threads: to the same last bit as in company."""

import gc
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from engines_networks import NETWORKS, chain, make_features

import teraedge
from teraedge import Layer, Network, Options, ReLU
from teraedge.engines.cpu.few import FEW, MOST, SHALLOW, FewSamples
from teraedge.engines.cpu.lookups import LOOKS_UP
from teraedge.engines.cpu.simd import LANES
from teraedge.errors import FeatureError
from teraedge.plan.lookups import lookups
from teraedge.plan.rows import Widths, row_parts


def helpers():
    return {thread for thread in threading.enumerate() if thread.name == "teraedge-few"}


def random_network(density, sizes=(300, 410, 203, 11), seed=0, bias=0.1):
    rng = np.random.default_rng(seed)
    layers = []
    for n_in, n_out in pairwise(sizes):
        weights = rng.normal(size=(n_in, n_out)) * (rng.random((n_in, n_out)) < density)
        layers.append(Layer(weights, rng.normal(0, bias, n_out), ReLU()))
    return Network(layers)


def check(network, options=None):
    """Compare runs of few samples with a run of many, which run in tiles."""
    features = make_features(network, 150)
    with teraedge.compile(network, options=options) as engine:
        many = engine.run(sp.csr_array(features))
        for samples in (1, FEW, FEW + 1, LANES, LANES + 3, MOST):
            few = engine.run(np.asarray(features[7 : 7 + samples], np.float32))
            np.testing.assert_array_equal(few.outputs, many.outputs[7 : 7 + samples])
            assert few.live.tolist() == [k - 7 for k in many.live if 7 <= k < 7 + samples]
            assert len(few.trace) == len(network)
            assert few.trace[-1].live >= len(few.live)
        assert (engine._few.most == MOST) == (len(engine._plan.origin) <= SHALLOW)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["a", "b", "c"])
def test_same_bits_as_in_company(name, mode):
    check(NETWORKS[name], Options.mode(mode))


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_densities_and_threads(density, threads):
    check(random_network(density), Options(threads=threads))


@pytest.mark.parametrize(
    "activation",
    [teraedge.Sigmoid(), teraedge.Tanh(), teraedge.GELU(), teraedge.SiLU(), teraedge.Hardtanh()],
    ids=repr,
)
def test_smooth_activations_and_a_head(activation):
    rng = np.random.default_rng(3)
    layers = [
        Layer(rng.normal(0, 0.2, (n_in, n_out)), rng.normal(size=n_out), activation)
        for n_in, n_out in [(90, 131), (131, 77), (77, 5)]
    ]
    check(Network(layers, head="softmax"))


def test_parts_hold_every_edge_once(monkeypatch):
    monkeypatch.setattr("teraedge.plan.rows.MIN_BYTES", 1)
    for density, dense in ((0.05, False), (0.9, True)):
        network = random_network(density, (500, 300))
        with teraedge.compile(network) as engine:
            (layer,) = engine._plan.resident
        widths = Widths(32, 8)
        parts = row_parts(layer, 3, widths)
        assert [part.first for part in parts] == [0, 104, 208]
        assert any(part.dense.size for part in parts) == dense
        rebuilt = np.zeros((500, 300), np.float32)
        for part in parts:
            width = part.last - part.first
            sums = np.zeros((500, width + 1), np.float32)
            first, begin = 0, 0
            for size in [32] * part.wide + [8] * part.narrow:
                block = part.dense[begin : begin + 500 * size].reshape(500, size)
                begin += block.size
                count = min(size, width - first)
                sums[:, first : first + count] = block[:, :count]
                assert not block[:, count:].any()
                first += size
            assert begin == part.dense.size
            rows = np.repeat(np.arange(500), 4 * np.diff(part.starts))
            np.add.at(sums, (rows, part.targets), part.weights)
            rebuilt[:, part.first : part.last] = sums[:, :width]
        np.testing.assert_array_equal(rebuilt, network[0].weights.toarray().astype(np.float32))


@pytest.mark.parametrize("shape", [(300, 77), (32, 16), (33, 1)])
def test_lookups_hold_every_edge_once_and_in_order(shape):
    n_in, n_out = shape
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape) * (rng.random(shape) < 0.1)
    weights = sp.csr_array(weights.astype(np.float32)).tocoo()
    edges = weights.col.astype(np.int64), weights.row.astype(np.int32), weights.data
    found = lookups(*edges, shape, 16, 100 * len(weights.data))
    rebuilt = np.zeros((n_in, -(-n_out // 16) * 16), np.float32)
    for group, (begin, end) in enumerate(pairwise(found.ends)):
        for lane in range(16):
            picked = found.weights[begin:end, :, lane]
            inputs = (found.bases[begin:end, None] + found.picks[begin:end, :, lane])[picked != 0]
            assert (np.diff(inputs) > 0).all()
            rebuilt[inputs, group * 16 + lane] = picked[picked != 0]
    assert (found.bases <= n_in - 32).all()
    assert (found.picks < 32).all()
    np.testing.assert_array_equal(rebuilt[:, :n_out], weights.toarray())
    assert not rebuilt[:, n_out:].any()
    assert not len(lookups(*edges, shape, 16, found.weights.size - 1).bases)


@pytest.mark.parametrize("density", [0.03, 0.1, 0.3])
def test_lookups_and_sums_anywhere_give_the_same_bits(density):
    network = random_network(density, (300, 810, 403, 11))
    x = np.random.default_rng(1).random((150, 300), dtype=np.float32) + np.float32(0.1)
    x[::2, np.random.default_rng(2).permutation(300)[30:]] = 0
    with teraedge.compile(network) as engine:
        many = engine.run(x).outputs
        for sample in range(4):
            one = engine.run(x[sample : sample + 1]).outputs
            np.testing.assert_array_equal(one, many[sample : sample + 1])
        parts = engine._few._shared.parts
    assert (parts["groups"] > 0).any() == LOOKS_UP


def test_outputs_outlive_the_next_run_and_a_head_is_applied_once():
    network = random_network(0.1)
    x = np.random.default_rng(1).random((2, 1, 300), dtype=np.float32)
    with teraedge.compile(Network(list(network), head="softmax")) as engine:
        first, second = engine.run(x[0]), engine.run(x[1])
        expected = engine.run(np.tile(x[0], (100, 1)))
    np.testing.assert_array_equal(first.outputs, expected.outputs[:1])
    np.testing.assert_array_equal(first.live_outputs, first.outputs)
    np.testing.assert_array_equal(first.top(2).values, expected.top(2).values[:1])
    assert not np.array_equal(first.outputs, second.outputs)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.bool_, np.int32])
def test_dtypes_and_strides(dtype):
    network = random_network(0.1)
    x = (np.random.default_rng(0).random((3, 300)) * 2).astype(dtype)
    with teraedge.compile(network) as engine:
        expected = engine.run(np.vstack([x] * 50)).outputs[:3]
        np.testing.assert_array_equal(engine.run(x).outputs, expected)
        np.testing.assert_array_equal(engine.run(np.asfortranarray(x)).outputs, expected)
        np.testing.assert_array_equal(engine.run(sp.csr_array(x.astype(float))).outputs, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_and_the_next_run_works(value):
    network = random_network(0.1)
    x = np.ones((2, 300))
    with teraedge.compile(network) as engine:
        expected = engine.run(x).outputs
        bad = x.copy()
        bad[1, 299] = value
        for copies in (1, 5):
            with pytest.raises(FeatureError, match=r"NaN|too large"):
                engine.run(np.vstack([bad] * copies))
        np.testing.assert_array_equal(engine.run(x).outputs, expected)


def test_runs_from_several_threads_do_not_meet():
    network = random_network(0.1, (300, 2000, 2000, 10))
    x = np.random.default_rng(0).random((4, 300), dtype=np.float32)
    with teraedge.compile(network, options=Options(threads=3)) as engine:
        expected = engine.run(np.vstack([x] * 50)).outputs[:4]
        wrong = [0] * 4

        def run(sample):
            for _ in range(300):
                outputs = engine.run(x[sample : sample + 1]).outputs
                wrong[sample] += not np.array_equal(outputs[0], expected[sample])

        threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == [0] * 4


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_helpers_sleep_wake_and_end():
    before = helpers()
    network = random_network(0.5, (300, 2000, 10))
    engine = teraedge.compile(network, options=Options(threads=3))
    x = np.ones((1, 300), np.float32)
    expected = engine.run(x).outputs
    mine = helpers() - before
    assert len(mine) == 2
    wait_until(lambda: all(sleeper.sleeps for sleeper in engine._few._sleepers))
    np.testing.assert_array_equal(engine.run(x).outputs, expected)
    engine.close()
    wait_until(lambda: not mine & helpers())


def test_an_engine_that_is_forgotten_ends_its_threads():
    before = helpers()
    engine = teraedge.compile(random_network(0.5, (300, 2000, 10)), options=Options(threads=2))
    result = engine.run(np.ones((1, 300), np.float32))
    mine = helpers() - before
    assert len(mine) == 1
    del engine
    gc.collect()
    wait_until(lambda: not mine & helpers())
    assert len(result.trace) == 2


def test_layers_that_do_not_stay_run_as_ever():
    network = random_network(0.3)
    x = np.ones((1, 300), np.float32)
    with teraedge.compile(network) as engine:
        expected = engine.run(x).outputs
    with teraedge.compile(network, options=Options(memory=100_000)) as engine:
        np.testing.assert_array_equal(engine.run(x).outputs, expected)
        assert engine._few is None


def test_explain_after_a_run_of_one():
    network = random_network(0.1)
    with teraedge.compile(network) as engine:
        engine.run(np.ones((1, 300), np.float32))
        assert "1 sample" in str(engine.explain())


def test_a_dead_sample_is_dropped():
    network = Network([Layer(np.eye(3), -1.0, ReLU()), Layer(np.eye(3), 0.0, ReLU())])
    x = np.array([[0.5, 0, 1], [0, 3, 0], [1, 1, 1]], np.float32)
    with teraedge.compile(network, options=Options(passes=False)) as engine:
        result = engine.run(x)
    assert result.live.tolist() == [1]
    assert "prune" in result.exact
    assert [layer.live for layer in result.trace] == [1, 1]
    assert [layer.edges for layer in result.trace] == [9, 3]
    np.testing.assert_array_equal(result.outputs, [[0, 0, 0], [0, 2, 0], [0, 0, 0]])


def test_many_small_engines():
    rng = np.random.default_rng(0)
    for _ in range(20):
        network = chain(rng, [5, 7, 3], -0.1, ReLU())
        few = teraedge.compile(network)
        assert few.run(np.ones((1, 5), np.float32)).outputs.shape == (1, 3)
        assert isinstance(few._few, FewSamples)
