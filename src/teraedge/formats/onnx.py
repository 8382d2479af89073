"""ONNX files to and from networks."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import (
    GELU,
    Activation,
    Identity,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.errors import DependencyError, FormatError, ModelError
from teraedge.network import Layer, Network

LIMIT = 2**31 - 2**20
"""Bytes of a file: what Protocol Buffers can hold, less a little."""


def from_onnx(
    path: str | Path,
    *,
    output: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    lower_conv: bool = False,
) -> Network:
    """Make a network of an ONNX file, without changing what it computes.

    Takes a graph of Gemm, MatMul, Add, Sub, Mul and Div with constants, sums of values, Relu, Clip,
    Min and Max with constants, Sigmoid, HardSigmoid, Tanh, Gelu, SiLU (x Sigmoid(x), Swish), GELU
    made of Erf, BatchNormalization, Identity, Dropout, Cast, Flatten and Reshape that keep the axis
    of samples; at the end Softmax or LogSoftmax, which become the network's `head`, and ArgMax,
    which is left out: `Result.labels` is it. Initialisers may be dense or sparse, of 16, 32 or 64
    bits. Weights that are zero do not become edges.

    Parameters
    ----------
    path : path
        ``*.onnx``; weights in files beside it are found.
    output : str, optional
        Which output, where there are several.
    input_shape : tuple of int, optional
        Of the input, without the axis of samples, where the file does not say.
    lower_conv : bool, default False
        Turn Conv of one or two sizes into sparse layers, one edge a multiply-add. `Network.notes`
        says how many edges come of it.

    Returns
    -------
    Network
        Its `notes` say what was added to make it a chain, as for residual sums.

    Raises
    ------
    FormatError
        If the file is missing or not ONNX.
    ModelError
        If it has an operation that is not one of these.
    DependencyError
        If onnx is not installed.
    """
    need_onnx()
    from teraedge.formats._onnx_read import read_file

    return read_file(Path(path), output, input_shape, lower_conv)


def to_onnx(network: Network, path: str | Path, *, sparse: bool = False) -> None:
    """Write a network as an ONNX file: a Gemm a layer and its activation.

    Parameters
    ----------
    network : Network
        Its layers are read one at a time.
    path : path
        ``*.onnx``. The input is called "input", the output "output".
    sparse : bool, default False
        Store weights as sparse initialisers: a file as small as the network is sparse, which fewer
        programs read. Those that do may still compute densely.

    Raises
    ------
    FormatError
        If the file cannot be written, or would be larger than the 2 GB that the format allows.
    DependencyError
        If onnx is not installed.

    Examples
    --------
    >>> import pytest, tempfile; _ = pytest.importorskip("onnx")
    >>> network = Network([Layer([[1.0, 0.0]], activation=Tanh())])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(network, f"{folder}/model.onnx")
    ...     from_onnx(f"{folder}/model.onnx")[0]
    Layer(1 -> 2, 1 edges, Tanh())
    """
    need_onnx()
    from teraedge.formats._atomic import new_file

    path = Path(path)
    if path.suffix != ".onnx":
        raise FormatError(f"{path}: the name of an ONNX file ends with .onnx")
    model = _model(network, sparse)
    with new_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def need_onnx() -> Any:
    """Return the package.

    Raises
    ------
    DependencyError
        If it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise DependencyError("onnx is not installed; pip install 'teraedge[onnx]'") from None
    return onnx


class _Graph:
    """Nodes and initialisers as they come."""

    def __init__(self, dtype: np.dtype[Any], sparse: bool) -> None:
        self.dtype, self.sparse = dtype, sparse
        self.nodes: list[Any] = []
        self.dense: list[Any] = []
        self.sparse_ones: list[Any] = []
        self.opset = 13
        self.nbytes = 0
        self.last = "input"

    def node(self, kind: str, *more: str, **attributes: Any) -> str:
        """Add a node that reads what the last one wrote, and other names."""
        from onnx import helper

        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.last, *more], [name], name, **attributes))
        self.last = name
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an initialiser."""
        from onnx import numpy_helper

        self.dense.append(numpy_helper.from_array(np.array(array, self.dtype), name))
        self._count(self.dense[-1].ByteSize())
        return name

    def weights(self, name: str, layer: Layer) -> str:
        """Add the weights of a layer."""
        from onnx import helper, numpy_helper

        if not self.sparse:
            self._count(layer.n_in * layer.n_out * self.dtype.itemsize, add=False)
            return self.constant(name, layer.weights.toarray())
        coo = layer.weights.tocoo()
        places = np.stack([coo.row, coo.col], axis=1).astype(np.int64)
        values = numpy_helper.from_array(coo.data.astype(self.dtype), name)
        indices = numpy_helper.from_array(places, f"{name}_indices")
        shape = list(layer.weights.shape)
        self.sparse_ones.append(helper.make_sparse_tensor(values, indices, shape))
        self._count(self.sparse_ones[-1].ByteSize())
        return name

    def _count(self, nbytes: int, add: bool = True) -> None:
        if self.nbytes + nbytes > LIMIT:
            raise FormatError(
                f"the network takes more than the 2 GB of an ONNX file "
                f"({'sparse' if self.sparse else 'dense'}); "
                f"{'save it as .safetensors' if self.sparse else 'give sparse=True'}"
            )
        self.nbytes += nbytes if add else 0


def _model(network: Network, sparse: bool) -> Any:
    from onnx import helper

    dtype = np.result_type(np.float32, *(layer.weights.dtype for layer in network))
    graph = _Graph(dtype, sparse)
    for index, layer in enumerate(network):
        names = [graph.weights(f"weight_{index}", layer)]
        if layer.bias is not None:
            names.append(graph.constant(f"bias_{index}", layer.bias))
        graph.node("Gemm", *names)
        _add_activation(graph, layer.activation, index)
    if network.head is not None:
        graph.node("Softmax" if network.head == "softmax" else "LogSoftmax", axis=1)
    graph.nodes[-1].output[0] = "output"
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    ends = [
        helper.make_tensor_value_info(name, kind, ["samples", size])
        for name, size in (("input", network.n_in), ("output", network.n_out))
    ]
    opsets = [helper.make_opsetid("", graph.opset)]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            network.name or "network",
            ends[:1],
            ends[1:],
            graph.dense,
            sparse_initializer=graph.sparse_ones,
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="teraedge",
    )


def _add_activation(graph: _Graph, activation: Activation, index: int) -> None:
    match activation:
        case Identity():
            return
        case Sigmoid() | Tanh():
            graph.node(type(activation).__name__)
        case GELU():
            graph.opset = 20  # the first with Gelu
            graph.node("Gelu", approximate=activation.approximate)
        case SiLU():
            x = graph.last
            graph.node("Sigmoid")
            graph.node("Mul", x)
        case _ if not activation.curve:
            lower, upper = activation.clamp
            if (lower, upper) == (0.0, np.inf):
                graph.node("Relu")
                return
            bounds = ("lower", lower), ("upper", upper)
            names = [
                graph.constant(f"{name}_{index}", np.array(bound)) if np.isfinite(bound) else ""
                for name, bound in bounds
            ]
            graph.node("Clip", *names)
        case _:
            raise ModelError(f"ONNX has no operation for {activation!r}")
