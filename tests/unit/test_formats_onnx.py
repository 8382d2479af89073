"""ONNX files become networks with the same answers, and networks ONNX files.

The answers are those of onnx's own reference evaluator, and of onnxruntime where it is installed.
"""

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import (
    GELU,
    ClippedReLU,
    Hardtanh,
    Identity,
    Layer,
    Network,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.errors import FormatError, ModelError

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

FLOAT = TensorProto.FLOAT


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def model(nodes, constants, shape, opset=17, outputs=("y",), batch="n", sparse=(), kind=FLOAT):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        sparse_initializer=sparse,
    )
    opsets = [helper.make_opsetid("", opset)]
    version = max(4, helper.find_min_ir_version_for(opsets))  # before, constants were inputs
    return helper.make_model(graph, opset_imports=opsets, ir_version=version)


def saved(tmp_path, *arguments, **keywords):
    path = tmp_path / "model.onnx"
    onnx.save(model(*arguments, **keywords), path)
    return path


def assert_same(path, shape, samples=13, tolerance=1e-6, output=None, **keywords):
    """Compare with the evaluators; returns the network."""
    network = teraedge.from_onnx(path, output=output, **keywords)
    dtype = np.float64 if network[0].weights.dtype == np.float64 else np.float32
    x = np.random.default_rng(1).normal(size=(samples, *shape)).astype(dtype)
    wanted = [output] if output else None
    expected = ReferenceEvaluator(str(path)).run(wanted, {"x": x})[0]
    ours = teraedge.reference.run(network, x.reshape(samples, -1)).outputs
    expected = expected.reshape(samples, -1)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, atol=tolerance * scale)
    if find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        theirs = session.run(wanted, {"x": x})[0].reshape(samples, -1)
        np.testing.assert_allclose(ours, theirs, atol=3 * tolerance * scale)
    return network


DENSE = {"w": normal(6, 5), "b": normal(5), "v": normal(5, 4)}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), ()])
def test_gemm(tmp_path, transposed, bias):
    constants = {"w": normal(5, 6) if transposed else normal(6, 5)}
    inputs = ["x", "w"]
    if bias is not None:
        constants["b"] = normal(*bias) if bias else np.float32(0.7).reshape(())
        inputs.append("b")
    nodes = [node("Gemm", inputs, "y", transB=transposed, alpha=0.5, beta=-2.0)]
    network = assert_same(saved(tmp_path, nodes, constants, [6]), (6,))
    assert (network.name, network.n_in, network.n_out) == ("graph", 6, 5)


def test_matmul_and_add(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Add", ["b", "a"], "c"),
        node("Relu", ["c"], "d"),
        node("MatMul", ["d", "v"], "y"),
    ]
    assert len(assert_same(saved(tmp_path, nodes, DENSE, [6]), (6,))) == 2


ACTIVATIONS = {
    "Relu": (13, {}, [], ReLU()),
    "Sigmoid": (13, {}, [], Sigmoid()),
    "Tanh": (13, {}, [], Tanh()),
    "Clip": (13, {}, [0.0, 6.0], ClippedReLU(6)),
    "Clip ": (13, {}, [-0.5, 0.25], Hardtanh(-0.5, 0.25)),
    "Clip  ": (13, {}, [None, 0.25], Hardtanh(None, 0.25)),
    "Clip   ": (6, {"min": 0.0, "max": 1.5}, [], ClippedReLU(1.5)),
    "Clip    ": (6, {"min": 0.0}, [], ReLU()),
    "Max": (13, {}, [0.0], ReLU()),
    "Min": (13, {}, [0.5], Hardtanh(None, 0.5)),
    "Gelu": (20, {}, [], GELU()),
    "Gelu ": (20, {"approximate": "tanh"}, [], GELU("tanh")),
    "HardSigmoid": (13, {"alpha": 0.3, "beta": 0.4}, [], ClippedReLU(1)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(tmp_path, name):
    opset, attributes, bounds, activation = ACTIVATIONS[name]
    constants = {f"c{k}": np.float32(value) for k, value in enumerate(bounds) if value is not None}
    names = ["" if value is None else f"c{k}" for k, value in enumerate(bounds)]
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node(name.strip(), ["a", *names], "f", **attributes),
        node("Identity", ["f"], "i"),
        node("Dropout", ["i"], "d"),
        node("MatMul", ["d", "v"], "y"),
    ]
    if opset < 7:
        del nodes[3]
        nodes[3].input[0] = "i"
    network = assert_same(saved(tmp_path, nodes, {**DENSE, **constants}, [6], opset), (6,))
    assert [layer.activation for layer in network] == [activation, Identity()]
    assert network.notes == ()


@pytest.mark.parametrize("half_first", [False, True])
def test_gelu_made_of_erf(tmp_path, half_first):
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    halved = ["h", "g"] if half_first else ["a", "g"]
    nodes = [
        node("Gemm", ["x", "w", "b"], "a"),
        node("Div", ["a", "root"], "d"),
        node("Erf", ["d"], "e"),
        node("Add", ["e", "one"], "g"),
        *([node("Mul", ["a", "half"], "h")] if half_first else []),
        node("Mul", halved, "m"),
        node("Mul", ["m", "half"], "z"),
        node("MatMul", ["m" if half_first else "z", "v"], "y"),
    ]
    if half_first:
        del nodes[-2]
    network = assert_same(saved(tmp_path, nodes, {**DENSE, **constants}, [6]), (6,))
    assert [layer.activation for layer in network] == [GELU(), Identity()]
    assert network.edges == 30 + 20


@pytest.mark.parametrize("order", [["a", "s"], ["s", "a"]])
def test_silu_is_x_times_sigmoid(tmp_path, order):
    nodes = [
        node("Gemm", ["x", "w", "b"], "a"),
        node("Sigmoid", ["a"], "s"),
        node("Mul", order, "y"),
    ]
    network = assert_same(saved(tmp_path, nodes, DENSE, [6]), (6,))
    assert network[0].activation == SiLU()


def test_batch_normalisation_and_constants_fold(tmp_path):
    constants = {
        **DENSE,
        "scale": normal(5) + 2,
        "shift": normal(1, 5),
        "mean": normal(5),
        "var": np.abs(normal(5)) + 0.1,
        "three": np.float32(3),
    }
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("BatchNormalization", ["a", "scale", "b", "mean", "var"], "c", epsilon=0.01),
        node("Relu", ["c"], "d"),
        node("Sub", ["shift", "d"], "e"),
        node("Div", ["e", "three"], "f"),
        node("Neg", ["f"], "g"),
        node("MatMul", ["g", "v"], "y"),
    ]
    network = assert_same(saved(tmp_path, nodes, constants, [6]), (6,))
    assert [layer.edges for layer in network] == [30, 20]
    assert network.notes == ()


def test_residual_sums(tmp_path):
    constants = {"w": normal(6, 6), "v": normal(6, 6)}
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("Relu", ["a"], "b"),
        node("MatMul", ["b", "v"], "c"),
        node("Sum", ["c", "x", "b"], "d"),
        node("Relu", ["d"], "e"),
        node("Sub", ["e", "d"], "y"),
    ]
    network = assert_same(saved(tmp_path, nodes, constants, [6]), (6,))
    assert "edges were added" in network.notes[0]


@pytest.mark.parametrize("shape", [[0, -1], [-1, 24], "batch", "fixed"])
def test_flattening(tmp_path, shape):
    constants = {"w": normal(24, 5), "zero": np.int64(0), "axes": np.array([0])}
    constants["rest"] = np.array([-1])
    if shape == "batch":  # as x.view(x.size(0), -1) becomes
        nodes = [
            node("Shape", ["x"], "sizes"),
            node("Gather", ["sizes", "zero"], "size"),
            node("Unsqueeze", ["size", "axes"], "first"),
            node("Concat", ["first", "rest"], "shape", axis=0),
        ]
    else:
        nodes = []
        constants["shape"] = np.array([13, -1] if shape == "fixed" else shape)
    nodes += [node("Reshape", ["x", "shape"], "f"), node("MatMul", ["f", "w"], "y")]
    batch = 13 if shape == "fixed" else "n"
    assert_same(saved(tmp_path, nodes, constants, [2, 3, 4], batch=batch), (2, 3, 4))
    nodes = [node("Flatten", ["x"], "f"), node("MatMul", ["f", "w"], "y")]
    assert_same(saved(tmp_path, nodes, constants, [2, 3, 4]), (2, 3, 4))


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
def test_heads(tmp_path, kind, opset):
    nodes = [node("Gemm", ["x", "w", "b"], "a"), node(kind, ["a"], "y")]
    network = assert_same(saved(tmp_path, nodes, DENSE, [6], opset), (6,))
    assert network.head == {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[kind]


def test_argmax_is_left_out(tmp_path):
    nodes = [
        node("Gemm", ["x", "w", "b"], "a"),
        node("Softmax", ["a"], "p"),
        node("ArgMax", ["p"], "y", axis=-1, keepdims=0),
    ]
    path = saved(tmp_path, nodes, DENSE, [6])
    network = teraedge.from_onnx(path)
    assert network.notes == ("argmax at the end is left out: Result.labels is it",)
    x = normal(9, 6)
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(network.predict(x), expected)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_initialisers(tmp_path, linear, as_node):
    dense = normal(6, 5) * (np.random.default_rng(0).random((6, 5)) < 0.3)
    rows, columns = np.nonzero(dense)
    places = rows * 5 + columns if linear else np.stack([rows, columns], axis=1)
    tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(dense[rows, columns], "w"),
        numpy_helper.from_array(places.astype(np.int64), "places"),
        [6, 5],
    )
    nodes = [node("Gemm", ["x", "w"], "y")]
    if as_node:
        nodes.insert(0, node("Constant", [], "w", sparse_value=tensor))
    path = saved(tmp_path, nodes, {}, [6], sparse=() if as_node else [tensor])
    network = teraedge.from_onnx(path)
    np.testing.assert_array_equal(network[0].weights.toarray(), dense)
    assert network.edges == len(rows)


def test_constants_are_computed(tmp_path):
    constants = {"w": normal(5, 6).astype(np.float16), "b": normal(5)}
    nodes = [
        node("Cast", ["w"], "wide", to=FLOAT),
        node("Transpose", ["wide"], "turned"),
        node("Constant", [], "two", value_float=2.0),
        node("Mul", ["turned", "two"], "twice"),
        node("Gemm", ["x", "twice", "b"], "y"),
    ]
    network = assert_same(saved(tmp_path, nodes, constants, [6]), (6,))
    np.testing.assert_array_equal(
        network[0].weights.toarray(), 2 * constants["w"].T.astype(np.float32)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(tmp_path, dtype):
    constants = {"w": normal(6, 5, dtype=dtype), "b": normal(5, dtype=dtype)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    path = saved(tmp_path, [node("Gemm", ["x", "w", "b"], "y")], constants, [6], kind=kind)
    layer = teraedge.from_onnx(path)[0]
    assert layer.weights.dtype == (np.float64 if dtype is np.float64 else np.float32)
    np.testing.assert_array_equal(layer.weights.toarray(), constants["w"])
    np.testing.assert_array_equal(layer.bias, constants["b"])


def test_one_of_several_outputs(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["a", "v"], "y"),
        node("Softplus", ["a"], "z"),
    ]
    path = saved(tmp_path, nodes, DENSE, [6], outputs=("a", "y", "z"))
    assert assert_same(path, (6,), output="a").n_out == 5
    assert assert_same(path, (6,), output="y").n_out == 4
    with pytest.raises(ModelError, match=r"has the outputs a, y, z; give output="):
        teraedge.from_onnx(path)
    with pytest.raises(ModelError, match=r"has no output 'q'; allowed: a, y, z"):
        teraedge.from_onnx(path, output="q")
    with pytest.raises(ModelError, match=r"Softplus \(node z\) is not supported"):
        teraedge.from_onnx(path, output="z")


CONVOLUTIONS = {
    "plain": ({}, (2, 3, 3, 3), (3, 6, 7)),
    "pads": ({"pads": [1, 0, 2, 1], "strides": [2, 3]}, (2, 3, 3, 2), (3, 6, 7)),
    "groups": ({"group": 2, "dilations": [2, 1]}, (4, 2, 3, 3), (4, 8, 7)),
    "upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (2, 1, 3, 4), (1, 7, 8)),
    "lower": ({"auto_pad": "SAME_LOWER"}, (2, 1, 2, 4), (1, 7, 8)),
    "one size": ({"pads": [2, 1]}, (3, 2, 4), (2, 9)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(tmp_path, name):
    attributes, kernel, shape = CONVOLUTIONS[name]
    constants = {"k": normal(*kernel), "b": normal(kernel[0])}
    nodes = [node("Conv", ["x", "k", "b"], "a", **attributes), node("Relu", ["a"], "y")]
    path = saved(tmp_path, nodes, constants, shape)
    network = assert_same(path, shape, lower_conv=True)
    assert "multiply-adds" in network.notes[0]
    with pytest.raises(ModelError, match="is a convolution; give lower_conv=True"):
        teraedge.from_onnx(path)


def refused(*nodes, shape=(6,), **constants):
    return list(nodes), {**DENSE, **constants}, shape


REFUSED = {
    r"MaxPool \(node y\) .* give the layers after it": refused(
        node("MaxPool", ["x"], "y", kernel_shape=[2]), shape=(3, 8)
    ),
    r"LayerNormalization .* train with BatchNorm": refused(
        node("LayerNormalization", ["x", "w"], "y")
    ),
    r"com.example.Gemm \(node y\) is not supported": refused(
        node("Gemm", ["x", "w"], "y", domain="com.example")
    ),
    r"transposes the samples \(transA\)": refused(node("Gemm", ["x", "w"], "y", transA=1)),
    r"Softmax \(node a\) is followed by MatMul": refused(
        node("Softmax", ["x"], "a"), node("MatMul", ["a", "w"], "y")
    ),
    r"reads 5 numbers a sample and is given 6": refused(node("MatMul", ["x", "v"], "y")),
    r"a product of two values": refused(node("Mul", ["x", "x"], "y")),
    r"outside of a GELU": refused(node("Erf", ["x"], "y")),
    r"must have a constant as input 1": refused(node("Clip", ["x", "x"], "y")),
    r"reads 'nowhere', which nothing before it writes": refused(
        node("MatMul", ["x", "nowhere"], "y")
    ),
    r"does not depend on the input": refused(node("Neg", ["w"], "y")),
    r"flattens the axis of samples": refused(node("Flatten", ["x"], "y", axis=0)),
    r"the axis of samples must stay": refused(
        node("Reshape", ["x", "s"], "y"), s=np.array([2, -1])
    ),
    r"goes over axis 0": refused(node("Softmax", ["x"], "y", axis=0)),
    r"one a sample": refused(node("Add", ["x", "big"], "y"), big=normal(3, 6)),
    r"used in a way that is not supported": refused(
        node("Mul", ["x", "root"], "a"),
        node("Erf", ["a"], "b"),
        node("Relu", ["b"], "y"),
        root=np.float32(0.5**0.5),
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path, message):
    nodes, constants, shape = REFUSED[message]
    path = tmp_path / "bad.onnx"
    made = model(nodes, constants, shape)
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=message) as caught:
        teraedge.from_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_not_onnx(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FormatError, match="there is no such file"):
        teraedge.from_onnx(path)
    for content in (b"", b"bogus", b"\x08\x07\x12\x00" * 9):
        path.write_bytes(content)
        with pytest.raises((FormatError, ModelError)) as caught:
            teraedge.from_onnx(path)
        assert "\n" not in str(caught.value)
    good = model([node("Gemm", ["x", "w"], "y")], DENSE, [6]).SerializeToString()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises((FormatError, ModelError)):
        teraedge.from_onnx(path)


OURS = [
    Identity(),
    ReLU(),
    ClippedReLU(2),
    Hardtanh(-1, 2),
    Hardtanh(None, 1),
    Sigmoid(),
    Tanh(),
    GELU(),
    GELU("tanh"),
    SiLU(),
]


@st.composite
def networks(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    layers = []
    for a, b in pairwise(sizes):
        weights = rng.normal(size=(a, b)) * (rng.random((a, b)) < 0.5)
        bias = draw(st.sampled_from([None, 0.5, rng.normal(size=b)]))
        dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
        layers.append(Layer(weights.astype(dtype), bias, draw(st.sampled_from(OURS))))
    return Network(layers, head=draw(st.sampled_from([None, "softmax", "log_softmax"])))


@settings(max_examples=60, deadline=None)
@given(network=networks(), sparse=st.booleans())
def test_round_trip(tmp_path_factory, network, sparse):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    teraedge.to_onnx(network, path, sparse=sparse)
    onnx.checker.check_model(onnx.load(path))
    again = teraedge.load(path)
    assert again.head == network.head
    x = np.random.default_rng(1).normal(size=(11, network.n_in))
    expected = teraedge.reference.run(network, x).outputs
    np.testing.assert_allclose(teraedge.reference.run(again, x).outputs, expected, atol=1e-6)
    if not sparse:
        dtype = np.result_type(np.float32, *(layer.weights.dtype for layer in network))
        (theirs,) = ReferenceEvaluator(str(path)).run(None, {"input": x.astype(dtype)})
        np.testing.assert_allclose(theirs, expected, atol=2e-5)


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="onnxruntime is not installed")
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("activation", OURS, ids=repr)
def test_onnxruntime_reads_what_we_write(tmp_path, activation, sparse):
    import onnxruntime

    layers = [Layer(normal(6, 8) * (normal(8, 6).T > 0), -0.1, activation), Layer(normal(8, 3))]
    network = Network(layers, head="softmax")
    path = tmp_path / "model.onnx"
    teraedge.save(network, path) if not sparse else teraedge.to_onnx(network, path, sparse=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = normal(9, 6)
    (theirs,) = session.run(None, {"input": x})
    np.testing.assert_allclose(theirs, teraedge.reference.run(network, x).outputs, atol=1e-5)


def test_sparse_files_are_small(tmp_path):
    weights = normal(400, 400) * (np.random.default_rng(0).random((400, 400)) < 0.02)
    network = Network([Layer(weights)])
    for sparse in (False, True):
        teraedge.to_onnx(network, tmp_path / f"{sparse}.onnx", sparse=sparse)
    dense_size = (tmp_path / "False.onnx").stat().st_size
    assert (tmp_path / "True.onnx").stat().st_size < dense_size / 8


def test_too_large_for_the_format(tmp_path):
    class Source:
        n_in = n_out = 40_000

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Layer(sp.eye_array(40_000, dtype=np.float32))

    with pytest.raises(FormatError, match=r"more than the 2 GB .* give sparse=True"):
        teraedge.to_onnx(Network(Source()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    teraedge.to_onnx(Network(Source()), tmp_path / "model.onnx", sparse=True)
    with pytest.raises(FormatError, match=r"ends with \.onnx"):
        teraedge.to_onnx(Network([Layer([[1.0]])]), tmp_path / "model.txt")
