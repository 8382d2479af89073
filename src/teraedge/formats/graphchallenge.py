"""The official text files of the Sparse DNN Graph Challenge.

A folder ``neuron<N>`` holds one file a layer, ``n<N>-l<layer>.tsv``, of lines
``source<TAB>destination<TAB>weight`` with 1-based ids, sorted by destination, then source. They are
written byte for byte as the official ones, and read in any order of lines. The text says nothing of
dtype, bias and activation: weights are float32, and the other two are the reader's. A file cut off
at the end of a line cannot be noticed: nothing in the format says how many there are.

Features and categories are in `_graphchallenge_samples`; their names are found here too.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from teraedge.activations import Activation, ClippedReLU
from teraedge.errors import FormatError
from teraedge.formats import _tsv
from teraedge.formats._atomic import new_folder
from teraedge.formats._graphchallenge_samples import (
    categories_from_graphchallenge,
    categories_to_graphchallenge,
    features_from_graphchallenge,
    features_to_graphchallenge,
)
from teraedge.formats._spec import no_head
from teraedge.network import Layer, Network

__all__ = [
    "categories_from_graphchallenge",
    "categories_to_graphchallenge",
    "features_from_graphchallenge",
    "features_to_graphchallenge",
    "from_graphchallenge",
    "is_graphchallenge",
    "official_bias",
    "to_graphchallenge",
]

OFFICIAL_ACTIVATION = ClippedReLU(32)
_LAYER_FILE = re.compile(r"n([1-9]\d*)-l([1-9]\d*)\.tsv").fullmatch
_FOLDER = re.compile(r"neuron([1-9]\d*)").fullmatch


def official_bias(neurons: int) -> float | None:
    """Return the bias of the official networks of so many neurons, None for any other size."""
    from teraedge.datasets.challenge import BIASES

    return BIASES.get(neurons)


def is_graphchallenge(folder: Path) -> bool:
    """Tell whether a folder holds layer files, or folders of them."""
    return folder.is_dir() and any(
        _LAYER_FILE(path.name) or (_FOLDER(path.name) and path.is_dir())
        for path in folder.iterdir()
    )


def from_graphchallenge(
    folder: str | Path,
    *,
    neurons: int | None = None,
    layers: int | None = None,
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
) -> Network:
    """Read a network from a folder of layer files, each when its layer is asked for.

    Parameters
    ----------
    folder : path
        With files ``n<N>-l1.tsv``, ``n<N>-l2.tsv``, ..., or the folder above ``neuron<N>``.
    neurons : int, optional
        N; needed only where the folder holds several sizes.
    layers : int, optional
        Take the first so many layers; by default all.
    bias : scalar or array, shape (N,), optional
        Of every layer; by default the official one of N. Needed where N is not an official size.
    activation : Activation, default ClippedReLU(32)
        Of every layer.

    Returns
    -------
    Network
        Of float32 weights, N -> N.

    Raises
    ------
    FormatError
        If files are missing, or, when a layer is read, its file is malformed.
    ModelError
        If the bias or the activation is not valid.
    """
    folder = _layer_folder(Path(folder), neurons)
    neurons, files = _layer_files(folder, neurons)
    if layers is not None:
        if not 1 <= layers <= len(files):
            raise FormatError(f"{folder}: has {len(files)} layers; {layers} were asked for")
        files = files[:layers]
    if bias is None:
        bias = official_bias(neurons)
    if bias is None:
        raise FormatError(
            f"{folder}: {neurons} neurons is not an official size, so the bias is not known; "
            "give bias="
        )
    activation = OFFICIAL_ACTIVATION if activation is None else activation
    Layer(sp.csr_array((1, neurons), dtype=np.float32), bias, activation)  # checks both now
    return Network(_Files(files, neurons, bias, activation), name=folder.name)


class _Files:
    """Layers read from their files when asked for."""

    def __init__(
        self, files: list[Path], neurons: int, bias: ArrayLike, activation: Activation
    ) -> None:
        self._files, self._neurons = files, neurons
        self.n_in = self.n_out = neurons
        self._bias, self._activation = bias, activation

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Layer:
        weights = _read_weights(self._files[index], self._neurons)
        return Layer(weights, self._bias, self._activation)


def _layer_folder(folder: Path, neurons: int | None) -> Path:
    """Return the folder with the layer files: the one given or a ``neuron<N>`` in it."""
    if not folder.is_dir():
        raise FormatError(f"{folder}: is not a folder; give one with files n<N>-l<layer>.tsv")
    if any(_LAYER_FILE(path.name) for path in folder.iterdir()):
        return folder
    inner = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := _FOLDER(path.name)) and path.is_dir()
    }
    if neurons is None and len(inner) == 1:
        return next(iter(inner.values()))
    if neurons in inner:
        return inner[neurons]
    if inner:
        raise FormatError(f"{folder}: holds networks of {sorted(inner)} neurons; give neurons=")
    raise FormatError(f"{folder}: holds no layer file; they are named n<N>-l<layer>.tsv")


def _layer_files(folder: Path, neurons: int | None) -> tuple[int, list[Path]]:
    """Return N and the files of layers 1, 2, ..."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := _LAYER_FILE(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if neurons is None and len(found) > 1:
        raise FormatError(f"{folder}: holds layers of {sorted(found)} neurons; give neurons=")
    if neurons is None:
        (neurons,) = found
    if neurons not in found:
        raise FormatError(f"{folder}: holds layers of {sorted(found)} neurons, not of {neurons}")
    named = _FOLDER(folder.name)
    if neurons > _tsv.MAX_ID or (named and int(named[1]) != neurons):
        raise FormatError(f"{folder}: holds layers of {neurons} neurons, which cannot be right")
    files = found[neurons]
    for layer in range(1, max(files) + 1):
        if layer not in files:
            raise FormatError(
                f"{folder}: n{neurons}-l{layer}.tsv is missing; the layers go to l{max(files)}"
            )
    return neurons, [files[layer] for layer in sorted(files)]


def _read_weights(path: Path, neurons: int) -> sp.csr_array:
    columns = _tsv.Columns("source", "destination", "weight", neurons, neurons)
    blocks = list(_tsv.read_entries(path, columns))
    rows = np.concatenate([block.rows for block in blocks])
    destinations = np.concatenate([block.columns for block in blocks])
    with np.errstate(over="ignore"):
        values = np.concatenate([block.values.astype(np.float32) for block in blocks])
    if not np.isfinite(values).all():
        line = int(np.isfinite(values).argmin()) + 1
        raise FormatError(f"{path}: line {line}: the weight is above the largest float32")
    weights = sp.coo_array((values, (rows, destinations)), shape=(neurons, neurons)).tocsr()
    if weights.nnz != len(values):
        _refuse_duplicate(path, rows, destinations)
    return weights


def _refuse_duplicate(path: Path, rows: NDArray[Any], columns: NDArray[Any]) -> NoReturn:
    order = np.lexsort((columns, rows))  # stable: equal edges stay in the order of the lines
    same = (np.diff(rows[order]) == 0) & (np.diff(columns[order]) == 0)
    at = int(same.argmax())
    first, second = order[at], order[at + 1]
    raise FormatError(
        f"{path}: line {second + 1}: the edge {rows[first] + 1} -> {columns[first] + 1} is listed "
        f"twice, first on line {first + 1}"
    )


def to_graphchallenge(network: Network, folder: str | Path, *, weights_only: bool = False) -> None:
    """Write a network as a new folder of layer files.

    Parameters
    ----------
    network : Network
        Square, the same number of neurons N everywhere, every weight a float32.
    folder : path
        Must not exist, or be empty; ``neuron<N>`` is the official name.
    weights_only : bool, default False
        Leave out biases and activations that are not the official ones of N; whoever reads the
        folder must know them.

    Raises
    ------
    FormatError
        If the format cannot hold the network, or the folder cannot be written.
    """
    folder = Path(folder)
    neurons = network.n_in
    if re.fullmatch(r"neuron\d+", folder.name) and folder.name != f"neuron{neurons}":
        raise FormatError(
            f"{folder}: the network has {neurons} neurons, so its folder is neuron{neurons}; "
            "rename it"
        )
    if network.head is not None and not weights_only:
        raise FormatError(no_head(folder, network.head))
    with new_folder(folder) as temporary:
        for index, layer in enumerate(network):
            _check_fits(layer, index, neurons, weights_only)
            _write_weights(temporary / f"n{neurons}-l{index + 1}.tsv", layer.weights)


def _check_fits(layer: Layer, index: int, neurons: int, weights_only: bool) -> None:
    """Refuse a layer that would be read back as another one."""
    if layer.n_in != neurons or layer.n_out != neurons:
        reason = f"is {layer.n_in} -> {layer.n_out}; in this format all layers are N -> N"
    elif layer.edges == 0:
        reason = "has no edges; its empty file would look like a truncated one"
    elif (layer.weights.data.astype(np.float32) != layer.weights.data).any():
        reason = "has weights that are not exact in float32, which this format is read as"
    elif not weights_only and not _is_official(layer):
        bias = official_bias(neurons)
        reason = (
            f"has another bias or activation than this format implies ({bias} at {neurons} "
            f"neurons, {OFFICIAL_ACTIVATION!r}); give weights_only=True to leave them out"
        )
    else:
        return
    raise FormatError(f"layer {index} {reason}; a .safetensors file holds any network")


def _is_official(layer: Layer) -> bool:
    bias = official_bias(layer.n_in)
    if bias is None or layer.bias is None or layer.activation != OFFICIAL_ACTIVATION:
        return False
    return bool((layer.bias == layer.bias.dtype.type(bias)).all())


def _write_weights(path: Path, weights: sp.csr_array) -> None:
    csc = weights.tocsc()  # sorted by destination, then source
    destinations = np.repeat(np.arange(csc.shape[1]), np.diff(csc.indptr))
    texts = _tsv.number_texts(csc.data.astype(np.float32, copy=False))
    with path.open("wb") as file:
        _tsv.write_entries(file, csc.indices, destinations, texts, csc.shape)
