"""Plain safetensors files: weights and biases as PyTorch names and stores them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import Activation, Identity
from teraedge.errors import FormatError, ModelError
from teraedge.formats import _chain
from teraedge.formats._chain import Value
from teraedge.formats._shards import File, open_files
from teraedge.network import Network

_DTYPES = ("F16", "BF16", "F32", "F64")
_PART = re.compile(r"(?:(.+)\.)?(weight|bias)")


def from_safetensors(
    path: str | Path,
    activation: Activation | Sequence[Activation],
    *,
    head: str | None = None,
) -> Network:
    """Make a network of a file of weights and biases.

    A layer is a tensor ``<name>.weight`` of shape (n_out, n_in), as ``nn.Linear`` has it, and,
    where there is one, ``<name>.bias``. Layers come in the order of their names, numbers in them by
    their value: ``fc2.weight`` before ``fc10.weight``.

    Parameters
    ----------
    path : path
        ``*.safetensors``, or the ``*.safetensors.index.json`` of several. float16, bfloat16,
        float32 or float64.
    activation : Activation, or sequence of Activation
        Of all layers but the last, which has none; or of every layer, one each.
    head : str, optional
        As of `Network`.

    Returns
    -------
    Network

    Raises
    ------
    FormatError
        If the file is missing or malformed, or holds other tensors than these.
    ModelError
        If the activations or the shapes do not fit.

    Examples
    --------
    >>> import tempfile, numpy as np, teraedge
    >>> from safetensors.numpy import save_file
    >>> tensors = {"0.weight": np.ones((3, 2), np.float32), "2.weight": np.eye(3, dtype=np.float32)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(tensors, f"{folder}/model.safetensors")
    ...     from_safetensors(f"{folder}/model.safetensors", teraedge.ReLU())
    Network('model', 2 layers, 2 -> 3, 9 edges)
    """
    path, metadata, tensors = open_files(Path(path))
    if str(metadata.get("format")).startswith("teraedge"):
        raise FormatError(f"{path}: is a file of teraedge's own; use teraedge.load")
    names = _layers(path, tensors)
    activations = _activations(activation, len(names))
    x: Value | None = None
    dtype = np.dtype(np.float32)
    for (name, bias), each in zip(names.items(), activations, strict=True):
        weights = _read(tensors, f"{name}.weight" if name else "weight", path)
        if weights.ndim != 2:
            raise FormatError(
                f"{path}: the weight of {name} has shape {weights.shape}; give (n_out, n_in)"
            )
        biases = _read(tensors, f"{name}.bias" if name else "bias", path) if bias else None
        if biases is not None and biases.shape != weights.shape[:1]:
            raise FormatError(
                f"{path}: the bias of {name} has shape {biases.shape}; it must be "
                f"{weights.shape[:1]}"
            )
        x = Value((weights.shape[1],), where="the input") if x is None else x
        where = f"{path}: layer {name}"
        x = _chain.activated(_chain.linear(x, weights.T, biases, where), each, where)
        dtype = np.result_type(dtype, weights.dtype)
    if x is None:
        raise FormatError(f"{path}: holds no tensors")
    return _chain.chain(x, dtype=dtype, head=head, name=path.name.partition(".")[0])


def _layers(path: Path, tensors: dict[str, File]) -> dict[str, bool]:
    """Return the names of the layers in their order, and whether each has a bias."""
    parts: dict[str, set[str]] = {}
    for tensor in tensors:
        match = _PART.fullmatch(tensor)
        if match is None:
            raise FormatError(
                f"{path}: the tensor {ascii(tensor)[:80]} is neither a weight nor a bias; load the "
                "model with its own library and give it to from_torch or from_onnx"
            )
        parts.setdefault(match[1] or "", set()).add(match[2])
    for name, found in parts.items():
        if "weight" not in found:
            raise FormatError(f"{path}: {ascii(name)[:80]} has a bias and no weight")
    return {name: "bias" in parts[name] for name in sorted(parts, key=_natural)}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Order texts by letters, and numbers in them by their value."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]


def _activations(
    activation: Activation | Sequence[Activation], layers: int
) -> Sequence[Activation]:
    if isinstance(activation, Activation):
        return [activation] * (layers - 1) + [Identity()]
    if not isinstance(activation, Sequence) or not all(
        isinstance(each, Activation) for each in activation
    ):
        raise ModelError(
            f"activation is {activation!r}; give one of teraedge's, such as teraedge.ReLU(), or a "
            "list with one a layer"
        )
    if len(activation) != layers:
        raise ModelError(
            f"there are {layers} layers and {len(activation)} activations; give one each"
        )
    return activation


def _read(tensors: dict[str, File], name: str, path: Path) -> NDArray[Any]:
    dtype, _ = tensors[name].describe(name)
    if dtype not in _DTYPES:
        raise FormatError(f"{path}: {name} is {dtype}; allowed: {', '.join(_DTYPES)}")
    return tensors[name].read_real(name)
