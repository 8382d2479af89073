"""Reading an ONNX graph, node by node; see `onnx`.

Nodes of constants only are computed by onnx's own reference evaluator. The number of samples, which
a graph may ask for to flatten its input, is a number that no size can be (`BATCH`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.sparse as sp
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from teraedge.errors import FormatError, ModelError
from teraedge.formats import _chain
from teraedge.formats._chain import Value
from teraedge.formats._onnx_nodes import BATCH, NODES
from teraedge.formats._support import unsupported
from teraedge.network import Network


@dataclass
class Node:
    """A node as those that read it see it.

    Attributes
    ----------
    kind, where : str
        The operation, and what it is called, for people.
    inputs : list
        A `Value`, an array (dense or sparse), or None where one is left out.
    attributes : dict
    """

    kind: str
    where: str
    inputs: list[Any]
    attributes: dict[str, Any]

    def input(self, index: int) -> Any:
        """Return an input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Value:
        """Return an input that is computed from the features."""
        found = self.input(index)
        if not isinstance(found, Value):
            raise ModelError(f"{self.where} must have a value of the samples as input {index}")
        return found

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return an input that is the same for every sample, None where it is left out."""
        found = self.input(index)
        if isinstance(found, Value):
            raise ModelError(f"{self.where} must have a constant as input {index}")
        if found is None:
            return None
        return found.toarray() if sp.issparse(found) else np.asarray(found)

    def number(self, index: int, default: float) -> float:
        """Return an input that is one number."""
        found = self.constant(index)
        if found is None:
            return default
        if found.size != 1:
            raise ModelError(f"{self.where} must have one number as input {index}")
        return float(found.ravel()[0])


def read_file(
    path: Path, output: str | None, input_shape: tuple[int, ...] | None, lower_conv: bool
) -> Network:
    """Return the network of a file; see `onnx.from_onnx`."""
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file")
    try:
        model = onnx.load(path)
        reader = Reader(model, input_shape, lower_conv)
        reader.read_initialisers()
    except (ModelError, FormatError):
        raise
    except Exception as error:  # of Protocol Buffers, onnx or the system
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FormatError(f"{path}: is not an ONNX file that can be read: {reason}") from None
    try:
        return reader.read(output, path.stem)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


class Reader:
    """Turns the nodes of a graph into values of a chain.

    Attributes
    ----------
    batch : int or None
        The number of samples, where the file fixes it.
    """

    def __init__(self, model: Any, input_shape: tuple[int, ...] | None, lower_conv: bool) -> None:
        self.graph = model.graph
        self.opsets = {entry.domain or "": entry.version for entry in model.opset_import}
        self.input_shape, self.lower_conv = input_shape, lower_conv
        self.known: dict[str, Any] = {"": None}
        self.batch: int | None = None
        self.notes: list[str] = []
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    @property
    def opset(self) -> int:
        """The version of the standard operations."""
        return int(self.opsets.get("", self.opsets.get("ai.onnx", 1)))

    def read_initialisers(self) -> None:
        """Read the constants of the file."""
        for tensor in self.graph.initializer:
            self.known[tensor.name] = numpy_helper.to_array(tensor)
        for tensor in self.graph.sparse_initializer:
            self.known[tensor.values.name] = _sparse(tensor)

    def read(self, output: str | None, stem: str) -> Network:
        """Read the nodes that an output depends on, in their order."""
        names = [entry.name for entry in self.graph.output]
        if output is None and len(names) != 1:
            raise ModelError(f"has the outputs {', '.join(names)}; give output=... one of them")
        if output is not None and output not in names:
            raise ModelError(f"has no output {output!r}; allowed: {', '.join(names)}")
        wanted = names[0] if output is None else output
        nodes = self._needed(wanted)
        for entry in self.graph.input:
            if entry.name not in self.known:
                self._read_input(entry, nodes)
        for node in nodes:
            self._read_node(node)
        result = self.known.get(wanted)
        if not isinstance(result, Value):
            raise ModelError(f"the output {wanted!r} does not depend on the input")
        return _chain.chain(
            _chain.reshaped(result, (result.size,)),
            dtype=self.dtype,
            name=self.graph.name if self.graph.name not in ("", "main_graph") else stem,
            notes=self.notes,
        )

    def _needed(self, output: str) -> list[Any]:
        wanted, nodes = {output}, []
        for node in reversed(self.graph.node):
            if wanted & set(node.output):
                nodes.append(node)
                wanted |= set(node.input)
        return nodes[::-1]

    def _read_input(self, entry: Any, nodes: list[Any]) -> None:
        if not any(entry.name in node.input for node in nodes):
            return
        sizes = [dim.dim_value or None for dim in entry.type.tensor_type.shape.dim]
        kind = entry.type.tensor_type.elem_type
        dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else self.dtype
        if dtype == np.float64:
            self.dtype = np.dtype(np.float64)
        self.batch = sizes[0] if sizes else None
        shape = self.input_shape
        if shape is None and len(sizes) > 1 and all(sizes[1:]):
            shape = tuple(int(size) for size in sizes[1:] if size)
        if shape is None:
            shape = self._shape_by_weights(nodes)
        self.known[entry.name] = Value(tuple(map(int, shape)), where="the input")

    def _shape_by_weights(self, nodes: list[Any]) -> tuple[int, ...]:
        """Return the shape of the input by the first weights that there are."""
        for node in nodes:
            weights = self.known.get(node.input[1]) if len(node.input) > 1 else None
            if node.op_type == "Conv":
                break
            if node.op_type in ("Gemm", "MatMul") and weights is not None:
                transposed = _attributes(node).get("transB", 0)
                return (int(weights.shape[1 if transposed else 0]),)
        raise ModelError(
            "the shape of the input is not in the file; give input_shape, such as (784,) or "
            "(1, 28, 28)"
        )

    def _read_node(self, node: Any) -> None:
        name = f"{node.op_type} (node {node.name or node.output[0]})"
        missing = [one for one in node.input if one not in self.known]
        if missing:
            raise ModelError(f"{name} reads {missing[0]!r}, which nothing before it writes")
        inputs = [self.known[one] for one in node.input]
        values = [one for one in inputs if isinstance(one, Value)]
        if node.op_type == "Shape" and values:
            sizes = [BATCH, *values[0].shape]
            attributes = _attributes(node)
            span = slice(attributes.get("start", 0), attributes.get("end"))
            self.known[node.output[0]] = np.array(sizes[span], np.int64)
            return
        if not values:
            self._fold(node, name, inputs)
            return
        if node.domain not in ("", "ai.onnx") or node.op_type not in NODES:
            domain = f"{node.domain}." if node.domain else ""
            raise unsupported(f"{domain}{name}")
        read = Node(node.op_type, name, inputs, _attributes(node))
        self.known[node.output[0]] = NODES[node.op_type](self, read)

    def _fold(self, node: Any, name: str, inputs: list[Any]) -> None:
        """Compute a node of constants."""
        dense = [one.toarray() if sp.issparse(one) else one for one in inputs]
        sparse = _attributes(node).get("sparse_value")
        if sparse is not None:
            self.known[node.output[0]] = _sparse(sparse)
            return
        given = {key: one for key, one in zip(node.input, dense, strict=True) if key}
        try:
            answers: Any = ReferenceEvaluator(node, opsets=self.opsets).run(None, given)
        except Exception as error:  # whatever the evaluator cannot do
            reason = " ".join(str(error).split())[:120]
            raise ModelError(f"{name} of constants cannot be computed: {reason}") from None
        self.known.update(zip(node.output, answers, strict=False))

    def numbers(self, array: Any, where: str) -> Any:
        """Return constants as float32 or float64, dense or sparse."""
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "fiu" and dtype.name != "bfloat16":
            raise ModelError(f"{where} has constants of {dtype}; give a model of real numbers")
        if dtype == np.float64:
            self.dtype = np.dtype(np.float64)
            return array
        return array if dtype == np.float32 else array.astype(np.float32)


def _attributes(node: Any) -> dict[str, Any]:
    found = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _sparse(tensor: Any) -> sp.csr_array:
    """Return a sparse tensor of two axes."""
    values = numpy_helper.to_array(tensor.values)
    places = numpy_helper.to_array(tensor.indices)
    shape = tuple(tensor.dims)
    if len(shape) != 2:
        raise ModelError(f"the sparse tensor {tensor.values.name} has shape {shape}; give a matrix")
    rows, columns = places.T if places.ndim == 2 else np.divmod(places, shape[1])
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)  # SciPy has no sparse float16
    return sp.csr_array((values, (rows, columns)), shape=shape)
