"""Matrix Market files: one a layer, of any program; and folders of ours, which keep everything.

A folder of ours holds ``layer-0001.mtx``, ``layer-0002.mtx``, ... and, where a layer has a bias, a
dense ``bias-0001.mtx`` of shape (n_out, 1), or (1, 1) for a scalar. What Matrix Market cannot say
is in a comment under the banner of each, one JSON object::

    %teraedge {"activation": {"name": "relu"}, "bias": true, "dtype": "float32", "layers": 2}

Files of other programs need no comment. They may be real, integer or pattern (every weight 1), and
general, symmetric or skew-symmetric.
"""

import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.io
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from teraedge.activations import Activation
from teraedge.errors import FormatError, ModelError
from teraedge.formats import _tsv
from teraedge.formats._atomic import new_file, new_folder
from teraedge.formats._spec import no_head, read_activation, read_json
from teraedge.network import Layer, Network

_OURS = re.compile(r"(layer|bias)-(\d+)\.mtx").fullmatch
_COMMENT = "teraedge "
_HEADER = 1 << 20  # bytes of banner and comments that are looked at
_DTYPES = ("float32", "float64")


def from_matrixmarket(
    source: str | Path | Iterable[str | Path],
    *,
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Network:
    """Read a network from Matrix Market files, each when its layer is asked for.

    Parameters
    ----------
    source : path or list of paths
        A folder, one file, or the files of the layers in order. The files of a folder are taken in
        the natural order of their names (``w2.mtx`` before ``w10.mtx``).
    bias : scalar or array, shape (n_out,), optional
        Of every layer; by default what the folder says, else none.
    activation : Activation, optional
        Of every layer; by default what the file says, else Identity().

    Returns
    -------
    Network
        Weights of the dtype the file says, else float64.

    Raises
    ------
    FormatError
        If files are missing, or, when a layer is read, its file is malformed.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        files = _layer_files(path) if path.is_dir() else [path]
        name = path.stem
    else:
        files, name = [Path(path) for path in source], None
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FormatError(f"{missing[0]}: there is no such file")
    if not files:
        raise FormatError("the list of Matrix Market files is empty; give at least one")
    return Network(_Files(files, bias, activation), name=name)


class _Files:
    """Layers read from their files when asked for."""

    def __init__(
        self, files: list[Path], bias: ArrayLike | None, activation: Activation | None
    ) -> None:
        self._files, self._bias, self._activation = files, bias, activation

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Layer:
        path = self._files[index]
        said = _read_comment(path)
        weights = read_matrix(path)
        bias, activation = self._bias, self._activation
        if bias is None and said.get("bias"):
            bias = _read_bias(path.with_name(path.name.replace("layer", "bias")))
        if activation is None and "activation" in said:
            activation = read_activation(said["activation"], str(path))
        try:
            return Layer(_cast(weights, said), bias, activation)
        except ModelError as error:
            raise FormatError(f"{path}: {error}") from None


def _layer_files(folder: Path) -> list[Path]:
    """Return the files of the layers of a folder, in order."""
    files = sorted(folder.glob("*.mtx"), key=lambda path: _natural(path.name))
    ours = {path.name: match for path in files if (match := _OURS(path.name))}
    layers = [path for path in files if path.name not in ours or ours[path.name][1] == "layer"]
    if not layers:
        raise FormatError(f"{folder}: holds no Matrix Market file (.mtx) of a layer")
    said = _read_comment(layers[0])
    if "layers" in said:
        expected = [f"layer-{number:04}.mtx" for number in range(1, int(said["layers"]) + 1)]
        names = [path.name for path in layers]
        if names != expected:
            odd = sorted({*names} ^ {*expected}, key=_natural)
            raise FormatError(
                f"{folder}: must hold layer-0001.mtx to {expected[-1]} and no other layer; look at "
                f"{odd[0]}"
            )
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that takes runs of digits as numbers."""
    return [
        (int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)
    ]


def _read_comment(path: Path) -> dict[str, Any]:
    """Return what our comment says, checked but for the activation; {} where there is none."""
    with _reading(path) as file:
        lines = file.read(_HEADER).split(b"\n")[1:]
    prefix = b"%" + _COMMENT.encode()
    for line in lines:
        if line.startswith(prefix):
            _check_end(path)
            said: dict[str, Any] = read_json(line.removeprefix(prefix), str(path))
            if said.get("dtype", "float32") not in list(_DTYPES):
                raise FormatError(f"{path}: dtype is {said['dtype']!r}; allowed: {_DTYPES}")
            layers = said.get("layers", 1)
            if not isinstance(layers, int) or not 1 <= layers < 10**6:
                raise FormatError(f"{path}: layers is {layers!r}; it must be their number")
            return said
        if not line.startswith(b"%"):
            break
    return {}


def _reading(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_matrix(path: Path) -> sp.csr_array | NDArray[Any]:
    """Read one file: a canonical csr_array, or an ndarray where the file is dense.

    Raises
    ------
    FormatError
        If the file is malformed, complex, or lists an entry twice.
    """
    _check_text(path)
    # SciPy is given the path: its reader of Python streams seeks in them when it is collected, and
    # aborts the process where that fails.
    try:
        _, _, stored, kind, field, _ = scipy.io.mminfo(path)
        if field == "complex":
            raise FormatError(f"{path}: the matrix is complex; weights are real")
        # Before memory is taken for them. A stored entry is two bytes of text at the least, and of
        # a symmetric matrix about half of the entries are stored.
        if stored > path.stat().st_size:
            raise FormatError(f"{path}: is too short for the {stored} entries it announces")
        _check_lines(path, 1 if kind == "array" else 2 if field == "pattern" else 3)
        matrix = scipy.io.mmread(path)
        csr = None if kind == "array" else sp.coo_array(matrix).tocsr()
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, FormatError):
            raise
        reason = str(error).rstrip(".") or "it asks for too much memory"
        raise FormatError(f"{path}: is not a valid Matrix Market file: {reason}") from None
    if csr is None:
        return np.asarray(matrix)
    if csr.nnz != matrix.nnz:
        raise FormatError(f"{path}: an edge is listed twice")
    return csr


def _cast(values: Any, said: dict[str, Any]) -> Any:
    """Give values the dtype the file says; what is then infinite, Layer refuses."""
    with np.errstate(over="ignore"):
        return values.astype(said.get("dtype", values.dtype), copy=False)


def _check_text(path: Path) -> None:
    """Refuse zero bytes, on which SciPy's parser crashes."""
    with _reading(path) as file:
        while block := file.read(_tsv.BLOCK):
            if b"\0" in block:
                raise FormatError(f"{path}: is not a valid Matrix Market file: it is not text")


def _check_lines(path: Path, fields: int) -> None:
    """Refuse lines with more or other text than SciPy's parser, which is lenient, takes in."""
    ids = rb"\d+[ \t]+" * (fields - 1)
    number = rb"\d+" if fields == 2 else _tsv.NUMBER
    is_line = re.compile(rb"(?:[ \t]*" + ids + number + rb")?[ \t]*\r?").fullmatch
    with _reading(path) as file:
        line = b"%"
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline()
        while block := file.read(_tsv.BLOCK):
            block += file.readline()
            shapes = _tsv.line_shapes(block if block.endswith(b"\n") else block + b"\n")
            if wrong := [shape for shape in shapes if not is_line(shape)]:
                raise FormatError(
                    f"{path}: a line of the form {_tsv.shown(min(wrong))} (digits as 0) is not "
                    f"{fields} number{'s' if fields > 1 else ''}"
                )


def _check_end(path: Path) -> None:
    """Refuse a file of ours whose last line is cut off; others may leave out the last newline."""
    with _reading(path) as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise FormatError(f"{path}: the last line has no end; the file is truncated")


def _read_bias(path: Path) -> NDArray[Any]:
    said = _read_comment(path)
    bias = read_matrix(path)
    if sp.issparse(bias) or bias.shape[1] != 1:
        raise FormatError(f"{path}: a bias is a dense matrix of one column, not {bias.shape}")
    bias = _cast(bias[:, 0], said)
    return np.asarray(bias[0] if len(bias) == 1 else bias)


def to_matrixmarket(network: Network, path: str | Path) -> None:
    """Write a network as a new folder, or one layer without a bias as one file.

    Parameters
    ----------
    network : Network
    path : path
        A folder that does not exist or is empty; or a file ``*.mtx``, which is replaced.

    Raises
    ------
    FormatError
        If one file cannot hold the network, or the path cannot be written.
    """
    path = Path(path)
    if network.head is not None:
        raise FormatError(no_head(path, network.head))
    if path.suffix == ".mtx":
        if len(network) != 1 or network[0].bias is not None:
            raise FormatError(
                f"{path}: one file holds one layer without a bias; give a folder for this network"
            )
        with new_file(path) as temporary:
            _write_layer(network[0], {}, temporary)
        return
    with new_folder(path) as folder:
        for number, layer in enumerate(network, 1):
            _write_layer(layer, {"layers": len(network)}, folder / f"layer-{number:04}.mtx")
            if layer.bias is not None:
                # A scalar bias is a view without strides; see Layer.
                bias = layer.bias[:1] if layer.bias.strides == (0,) else layer.bias
                _write(bias[:, None], {}, folder / f"bias-{number:04}.mtx")


def _write_layer(layer: Layer, about: dict[str, Any], path: Path) -> None:
    about |= {"activation": layer.activation.to_spec(), "bias": layer.bias is not None}
    _write(layer.weights, about, path)


def _write(matrix: sp.csr_array | NDArray[Any], about: dict[str, Any], path: Path) -> None:
    comment = _COMMENT + json.dumps(about | {"dtype": str(matrix.dtype)}, sort_keys=True)
    with path.open("wb") as file:
        write_matrix(matrix, file, comment)


def write_matrix(
    matrix: sp.csr_array | NDArray[Any], file: IO[bytes], comment: str | None = None
) -> None:
    """Write one matrix of real numbers, every value exactly."""
    # As float64, whose shortest text SciPy writes, so that no value is rounded twice on its way.
    # To memory first: what SciPy does where a disk is full is not to raise.
    text = io.BytesIO()
    scipy.io.mmwrite(text, matrix.astype(np.float64), comment=comment, symmetry="general")
    file.write(text.getbuffer())
