"""Reading native model files and catching every way in which one can lie; see `native`."""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.activations import Activation
from teraedge.errors import FormatError, ModelError
from teraedge.formats._shards import File, check_format, open_files
from teraedge.formats._spec import read_activation, read_json
from teraedge.formats.native import FORMAT
from teraedge.head import check_head
from teraedge.network import Layer, Network

_DTYPES = {
    "indptr": ("I32", "I64"),
    "indices": ("U16", "I32", "I64"),
    "data": ("F32", "F64", "F16", "U16"),
    "bias": ("F32", "F64"),
}


class _About(NamedTuple):
    """What the metadata says of a layer."""

    n_in: int
    n_out: int
    activation: Activation
    equal: bool
    bias: bool


def open_model(path: Path) -> Network:
    """Open a model and check all but the values."""
    path, metadata, tensors = open_files(path)
    about = _read_about(metadata, path)
    name = metadata.get("name")
    try:
        head = check_head(metadata.get("head"))
    except ModelError as error:
        raise FormatError(f"{path}: {error}") from None
    name = name if isinstance(name, str) else None
    return Network(_Model(path, about, tensors), name=name, head=head)


def _read_about(metadata: dict[str, Any], path: Path) -> list[_About]:
    """Check the metadata and return what it says of each layer."""
    check_format(metadata, FORMAT, path)
    layers = read_json(metadata.get("layers", ""), f"{path}: layers", list)
    if not layers:
        raise FormatError(f"{path}: the metadata has no layers")
    return [_read_layer_about(item, f"{path}: layer {i}") for i, item in enumerate(layers)]


def _read_layer_about(item: Any, where: str) -> _About:
    item = item if isinstance(item, dict) else {}
    shape, equal, bias = item.get("shape"), item.get("equal"), item.get("bias")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(size) is int and 1 <= size < 2**63 for size in shape)
    ):
        raise FormatError(f"{where}: the shape is {ascii(shape)[:80]}; it must be [n_in, n_out]")
    if not isinstance(equal, bool) or not isinstance(bias, bool):
        raise FormatError(f"{where}: the metadata must say equal and bias, each true or false")
    return _About(shape[0], shape[1], read_activation(item.get("activation"), where), equal, bias)


class _Model:
    """Layers read from mapped files when asked for."""

    def __init__(self, path: Path, about: list[_About], tensors: dict[str, File]) -> None:
        self._path, self._about, self._tensors = path, about, tensors
        self.n_in, self.n_out = about[0].n_in, about[-1].n_out
        self.edges = sum(self._check_tensors(index) for index in range(len(about)))
        known = sum(len(self._keys(index)) for index in range(len(about)))
        if known != len(tensors):
            expected = {key for index in range(len(about)) for key in self._keys(index)}
            raise FormatError(
                f"{path}: the metadata has {len(about)} layers and no place for the tensor "
                f"{ascii(min(set(tensors) - expected))[:80]}"
            )
        for index, (one, two) in enumerate(pairwise(about)):
            if one.n_out != two.n_in:
                raise FormatError(
                    f"{path}: layer {index + 1} reads {two.n_in} neurons but layer {index} writes "
                    f"{one.n_out}"
                )

    def __len__(self) -> int:
        return len(self._about)

    def __getitem__(self, index: int) -> Layer:
        about, where = self._about[index], f"{self._path}: layer {index}"
        keys = self._keys(index)
        parts = {key.rpartition(".")[2]: self._tensors[key].read(key) for key in keys}
        indptr, indices, data = parts["indptr"], parts["indices"], _widened(parts["data"])
        _check_indices(indptr, indices, about.n_out, where)
        if about.equal:
            data = np.full(len(indices), data[0])
        bias = parts.get("bias")
        if bias is not None and len(bias) == 1:
            bias = bias[0]
        try:
            weights = sp.csr_array((data, indices, indptr), shape=(about.n_in, about.n_out))
            return Layer(weights, bias, about.activation)
        except ModelError as error:
            raise FormatError(f"{where}: {error}") from None

    def _keys(self, index: int) -> list[str]:
        """Return the names of the tensors of a layer."""
        names = ["indptr", "indices", "data"] + ["bias"] * self._about[index].bias
        return [f"layers.{index}.{name}" for name in names]

    def _check_tensors(self, index: int) -> int:
        """Check dtypes and sizes of a layer's tensors, unread, and return its edges."""
        about, sizes = self._about[index], {}
        for key in self._keys(index):
            if key not in self._tensors:
                raise FormatError(f"{self._path}: the tensor {key} is missing")
            dtype, shape = self._tensors[key].describe(key)
            name = key.rpartition(".")[2]
            if dtype not in _DTYPES[name] or len(shape) != 1:
                raise FormatError(
                    f"{self._path}: {key} is {dtype} of shape {shape}; it must be 1-D and "
                    f"{' or '.join(_DTYPES[name])}"
                )
            sizes[name] = shape[0]
        edges = sizes["indices"]
        allowed = {
            "indptr": {about.n_in + 1},
            "indices": {edges},
            "data": {1 if about.equal else edges},
            "bias": {about.n_out, 1},
        }
        for name, size in sizes.items():
            if size not in allowed[name]:
                raise FormatError(
                    f"{self._path}: layers.{index}.{name} has {size} numbers; it must have "
                    f"{' or '.join(map(str, sorted(allowed[name])))}"
                )
        return edges


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    """Return values that were stored in two bytes as the float32 that they are."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _check_indices(indptr: NDArray[Any], indices: NDArray[Any], n_out: int, where: str) -> None:
    """Refuse what csr_array would misread or Layer would mend."""
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise FormatError(f"{where}: indptr must ascend from 0 to the {len(indices)} edges")
    if len(indices) and (indices.min() < 0 or indices.max() >= n_out):
        raise FormatError(f"{where}: an index is out of range; they go from 0 to {n_out - 1}")
    falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    if (indptr[np.searchsorted(indptr, falls)] != falls).any():
        raise FormatError(f"{where}: the indices of a row must ascend, each at most once")
