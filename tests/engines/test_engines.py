"""One suite for every engine: each must equal the float64 reference."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from engine_devices import options_for
from engines_networks import NETWORKS, chain, make_features, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import ClippedReLU, Identity, Layer, Network, Options, PackedFeatures, ReLU
from teraedge.errors import DeviceError, FeatureError, ModelError, OptionsError

SAMPLES = [0, 1, 19, 33, 989]
OPTIONS = {
    "a": Options.mode("a"),
    "b": Options.mode("b"),
    "c": Options.mode("c"),
    "one thread": Options(threads=1),
    "three threads": Options(threads=3),
    "streamed": Options(memory=2000),
    "half resident": Options(memory="20KB"),
}


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_reference(device, name, samples):
    network = NETWORKS[name]
    features = make_features(network, samples)
    expected = teraedge.reference.run(network, features)
    for label, options in options_for(device, OPTIONS).items():
        with teraedge.compile(network, device, options) as engine:
            result = engine.run(features)
        assert result.outputs.dtype == np.float32, label
        np.testing.assert_array_equal(result.outputs, expected.outputs, err_msg=label)
        np.testing.assert_array_equal(result.live, expected.live, err_msg=label)
        np.testing.assert_array_equal(result.live_outputs, expected.live_outputs, err_msg=label)
        np.testing.assert_array_equal(result.labels, expected.labels, err_msg=label)
        assert result.live.dtype == np.int64
        assert len(result.trace) == len(network)


@pytest.mark.parametrize("name", ["rectangular", "most die", "shared inputs", "no bias"])
def test_float_weights(device, name):
    rng = np.random.default_rng(3)
    layers = []
    for layer in NETWORKS[name]:
        noisy = layer.weights.copy()
        noisy.data = noisy.data * rng.uniform(0.5, 1.5, noisy.nnz)
        layers.append(Layer(noisy.astype(np.float32), layer.bias, layer.activation))
    network = Network(layers)
    features = make_features(network, 300) * rng.random((300, 1), dtype=np.float32)
    expected = teraedge.reference.run(network, features).outputs
    result = teraedge.compile(network, device).run(features)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(result.outputs, expected, rtol=1e-5, atol=1e-5 * scale)


FORMS = {
    "bool": lambda x: x.astype(bool),
    "uint8": lambda x: x.astype(np.uint8),
    "int64": lambda x: x.astype(np.int64),
    "float16": lambda x: x.astype(np.float16),
    "float64": lambda x: x.astype(np.float64),
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "read only": lambda x: _frozen(x.copy()),
    "list": lambda x: x.tolist(),
    "csr_array": sp.csr_array,
    "csr int64": lambda x: _int64_csr(x),
    "coo_matrix": sp.coo_matrix,
    "csc bool": lambda x: sp.csc_array(x.astype(bool)),
    "csr with duplicates": lambda x: _with_duplicates(x),
    "subclass": lambda x: x.view(_Subclass),
    "unmasked": np.ma.masked_array,
    "packed": PackedFeatures.from_dense,
    "packed slice": lambda x: PackedFeatures.from_dense(np.vstack([x, x]))[: len(x)],
    "__array__": lambda x: _OnlyArray(x),
    "DLPack": lambda x: _OnlyDlpack(x),
}


class _Subclass(np.ndarray):
    def min(self):
        raise AssertionError("a subclass may redefine anything, as numpy.matrix does")


class _OnlyArray:
    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array.astype(dtype) if dtype else self._array


class _OnlyDlpack:
    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **kwargs):
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def _frozen(array):
    array.flags.writeable = False
    return array


def _int64_csr(x):
    csr = sp.csr_array(x)
    csr.indptr, csr.indices = csr.indptr.astype(np.int64), csr.indices.astype(np.int64)
    return csr


def _with_duplicates(x):
    csr = sp.csr_array(x)
    halves = np.repeat(csr.data / 2, 2)
    return sp.csr_array((halves, np.repeat(csr.indices, 2), csr.indptr * 2), csr.shape)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [1, 33, 150])
def test_forms_of_features(device, form, samples):
    network = NETWORKS["rectangular"]
    features = make_features(network, samples)
    expected = teraedge.reference.run(network, features)
    given = FORMS[form](features)
    result = teraedge.compile(network, device).run(given)
    np.testing.assert_array_equal(result.outputs, expected.outputs)
    np.testing.assert_array_equal(teraedge.reference.run(network, given), expected.outputs)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=2, max_size=6),
    samples=st.integers(0, 200),
    density=st.floats(0, 1),
    bias=st.sampled_from([None, -3, -1, 0, 1]),
    activation=st.sampled_from([Identity(), ReLU(), ClippedReLU(5)]),
    seed=st.integers(0, 2**32),
    prune=st.booleans(),
    memory=st.sampled_from([None, 0, 3000]),
)
def test_any_network(device, sizes, samples, density, bias, activation, seed, prune, memory):
    rng = np.random.default_rng(seed)
    network = chain(rng, sizes, bias, activation, density=density)
    features = make_features(network, samples, seed)
    expected = teraedge.reference.run(network, features)
    if np.abs(expected.outputs).max(initial=0) >= 2**24:
        return  # no longer exact in float32
    with teraedge.compile(network, device, Options(prune=prune, memory=memory)) as engine:
        result = engine.run(features)
    np.testing.assert_array_equal(result.outputs, expected.outputs)
    np.testing.assert_array_equal(result.live, expected.live)


def test_zero_rows_wake_up(device):
    """A positive bias later on makes a zero row nonzero again: nothing may be dropped before it."""
    rng = np.random.default_rng(0)
    quiet = list(chain(rng, [30, 30, 30], -2, ReLU()))
    wakes = Layer(weights(rng, 30, 30), 1, ReLU())
    features = make_features(quiet[0], 200, density=0.1)
    for layers, dropped in ((quiet, [True, True]), ([*quiet, wakes], [False, False, False])):
        network = Network(layers)
        expected = teraedge.reference.run(network, features)
        assert expected.trace[1].live < 150  # the network does silence samples
        result = teraedge.compile(network, device).run(features)
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        for layer, truth, drops in zip(result.trace, expected.trace, dropped, strict=True):
            assert layer.live == (truth.live if drops else 200)
    # After the last layer that wakes rows up, dropping is right again.
    network = Network([wakes, *chain(rng, [30, 30, 30], -9, ReLU())])
    expected = teraedge.reference.run(network, features)
    result = teraedge.compile(network, device).run(features)
    np.testing.assert_array_equal(result.outputs, expected.outputs)
    assert [layer.live for layer in result.trace] == [layer.live for layer in expected.trace]
    assert result.trace[0].live == 200
    assert 0 < result.trace[-1].live < 150


@pytest.mark.parametrize("memory", [None, 5000])
def test_trace(device, memory):
    network = NETWORKS["most die"]
    features = make_features(network, 989)
    expected = teraedge.reference.run(network, features)
    mode_b = replace(Options.mode("b"), memory=memory)
    pruned = teraedge.compile(network, device, mode_b).run(features)
    live = [989, *(layer.live for layer in expected.trace)]
    assert [layer.live for layer in pruned.trace] == live[1:]
    assert live[-1] < 600
    edges = [layer.edges for layer in network]
    assert [layer.edges for layer in pruned.trace] == [
        a * b for a, b in zip(live, edges, strict=False)
    ]
    assert pruned.exact == ("prune",)
    assert pruned.executed_edges < pruned.nominal_edges == 989 * network.edges
    assert all(layer.seconds > 0 for layer in pruned.trace)
    general = teraedge.compile(network, device, Options.mode("a")).run(features)
    assert [layer.live for layer in general.trace] == [989] * len(network)
    assert general.executed_edges == general.nominal_edges
    assert general.exact == ()


@pytest.mark.parametrize("memory", [None, 5000])
@pytest.mark.parametrize("name", ["most die", "positive bias", "rectangular", "two hundred layers"])
def test_equal_samples_run_once(device, name, memory):
    """Samples that are equal from the start, and some that become equal on the way."""
    if device != "cpu":
        pytest.skip("only the CPU engine merges samples")
    network = NETWORKS[name]
    few = make_features(network, 40)
    features = few[np.random.default_rng(1).integers(0, 40, 2000)]
    expected = teraedge.reference.run(network, features)
    runs = {
        merge: teraedge.compile(
            network, device, Options(merge=merge, passes=False, memory=memory)
        ).run(features)
        for merge in (False, True)
    }
    for result in runs.values():
        np.testing.assert_array_equal(result.outputs, expected.outputs)
        np.testing.assert_array_equal(result.live, expected.live)
        np.testing.assert_array_equal(result.live_outputs, expected.live_outputs)
        np.testing.assert_array_equal(result.labels, expected.labels)
    assert [layer.live for layer in runs[True].trace] == [layer.live for layer in runs[False].trace]
    assert ("merge" in runs[True].exact, "merge" in runs[False].exact) == (True, False)
    assert runs[True].executed_edges < 0.8 * runs[False].executed_edges


def test_looking_for_equal_samples_where_none_are(device):
    rng = np.random.default_rng(1)
    network = chain(rng, [60] * 12, None, Identity(), density=0.05)
    features = rng.random((3000, 60), dtype=np.float32)
    result = teraedge.compile(network, device, Options(passes=False)).run(features)
    assert "merge" not in result.exact
    assert result.executed_edges == result.nominal_edges


def test_runs_are_bit_identical(device):
    rng = np.random.default_rng(5)
    network = chain(rng, [60, 60, 60, 60], -1, ClippedReLU(9))
    features = rng.random((500, 60), dtype=np.float32)
    engine = teraedge.compile(network, device)
    first = engine.run(features).outputs
    for _ in range(20):
        np.testing.assert_array_equal(engine.run(features).outputs, first)
    np.testing.assert_array_equal(engine.run(features[100:130]).outputs, first[100:130])
    with ThreadPoolExecutor(4) as pool:  # callers from several threads take turns
        for result in pool.map(lambda _: engine.run(features), range(12)):
            np.testing.assert_array_equal(result.outputs, first)


def test_lazy_network_is_read_two_neighbours_at_a_time(device):
    source = _Counting(NETWORKS["two hundred layers"])
    network = Network(source)
    features = make_features(network, 40)
    expected = teraedge.reference.run(NETWORKS["two hundred layers"], features).outputs
    for memory in (None, "30KB"):
        engine = teraedge.compile(network, device, Options(memory=memory))
        for _ in range(2):
            np.testing.assert_array_equal(engine.run(features).outputs, expected)
    assert source.most <= 2


class _Counting:
    """A source that knows how many of its layers are alive at once."""

    def __init__(self, network):
        self.network, self.alive, self.most = network, [], 0

    def __len__(self):
        return len(self.network)

    def __getitem__(self, index):
        import weakref

        class Tracked(Layer):
            __slots__ = ("__weakref__",)

        self.alive = [ref for ref in self.alive if ref() is not None]
        layer = self.network[index]
        copy = Tracked(layer.weights, layer.bias, layer.activation)
        self.alive.append(weakref.ref(copy))
        # the caller's loop variable still holds the layer before while it asks for the next
        self.most = max(self.most, len(self.alive) - 1)
        return copy


def test_progress(device):
    network = NETWORKS["rectangular"]
    for memory in (None, 2000):
        seen = []
        engine = teraedge.compile(network, device, Options(threads=1, memory=memory))
        engine.run(make_features(network, 500), progress=seen.append)
        assert seen[-1] == pytest.approx(1)
        assert all(a < b for a, b in pairwise(seen))


def test_bad_features(device):
    network = NETWORKS["rectangular"]
    engine = teraedge.compile(network, device)
    good = make_features(network, 5)
    bad = {
        r"shape \(40,\)": good[0],
        r"shape \(5, 39\)": good[:, 1:],
        "NaN or infinity": np.where(good, np.nan, good),
        "NaN or infinity; give": np.where(good, np.inf, good),
        "dtype <U": good.astype(str),
        "dtype complex": good.astype(complex),
        "too large for fp32": good.astype(np.float64) * 1e39,
        r"shape \(5, 10\)": sp.csr_array((5, 10)),
        "None that cannot be read": None,
        "str that cannot be read": "samples.npy",
        "dict that cannot be read": {},
        "masked in places": np.ma.masked_equal(good, 1),
    }
    for message, features in bad.items():
        with pytest.raises(FeatureError, match=message):
            engine.run(features)
    np.testing.assert_array_equal(  # and the engine still works
        engine.run(good).outputs, teraedge.reference.run(network, good).outputs
    )


def test_closed_engine(device):
    engine = teraedge.compile(NETWORKS["rectangular"], device)
    engine.close()
    engine.close()
    with pytest.raises(DeviceError, match="compile the network again"):
        engine.run(make_features(NETWORKS["rectangular"], 2))


def test_weights_beyond_fp32(device):
    with pytest.raises(ModelError, match=r"layer 1: .*too large for fp32"):
        teraedge.compile(Network([Layer([[1.0]]), Layer([[1e300]])]), device)


def test_error_in_a_run_leaves_the_engine_usable(device):
    network = NETWORKS["most die"]
    features = make_features(network, 989)
    engine = teraedge.compile(network, device, Options(threads=2))
    expected = engine.run(features).outputs

    def fail(fraction):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        engine.run(features, progress=fail)
    np.testing.assert_array_equal(engine.run(features).outputs, expected)


def test_what_is_not_a_network(device):
    network = NETWORKS["rectangular"]
    with pytest.raises(ModelError, match=r"network is a list; give a teraedge\.Network"):
        teraedge.compile(list(network), device)
    with pytest.raises(OptionsError, match="options are a str"):
        teraedge.compile(network, device, "c")


def test_exact_names_only_what_happened(device):
    network = NETWORKS["rectangular"]
    everybody_lives = np.ones((30, 40), np.float32)
    result = teraedge.compile(network, device, Options.mode("b")).run(everybody_lives)
    assert result.exact == ()
    assert repr(teraedge.compile(network, device)).endswith(
        f"Engine(40 -> 20, {network.edges:,} edges)"
    )


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cuda:01", "CUDA", 0, None])
def test_unknown_device(name):
    with pytest.raises(OptionsError, match="allowed: 'cpu', 'cuda'"):
        teraedge.compile(NETWORKS["rectangular"], name)
