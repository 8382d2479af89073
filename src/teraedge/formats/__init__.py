"""Files of networks, features and results. The suffix of the path says the format.

==========================================  =============================================
networks (`load`, `save`)                   what
==========================================  =============================================
``*.safetensors``                           native: one file, or shards and their index
``*.onnx``                                  ONNX, with the extra ``onnx``
``*.mtx``                                   Matrix Market: one layer
a folder with ``*.mtx``                     Matrix Market: a file a layer
a folder ``neuron<N>``, or above such ones  Graph Challenge: text, a file a layer
==========================================  =============================================

======================================  =======================================================
features (`load_features`,              what
`save_features`)
======================================  =======================================================
``*.npy``                               a dense array
``*.npz``                               packed bits, SciPy's `save_npz`, or one array
``*.mtx``                               Matrix Market
``*.tsv``                               Graph Challenge, ``sparse-images-<N>.tsv``
======================================  =======================================================

======================================  =======================================================
results (`save_result`)                 what
======================================  =======================================================
``*.npy``                               outputs of all samples, dense
``*.npz``                               ``live`` (0-based ids), ``live_outputs``, ``shape``
``*.tsv``, ``*.txt``                    Graph Challenge categories: live ids, 1-based, one a line
======================================  =======================================================

Models of other libraries come in by `from_torch`, `from_sklearn` and, where a file holds nothing
but weights and biases, `from_safetensors`; `to_torch` goes back.

Files are written beside and renamed: a failure leaves what was there. Nothing in a file is ever
executed, and a malformed one gives one `FormatError` of one line.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teraedge.errors import FormatError

if TYPE_CHECKING:
    from teraedge.features import Features
    from teraedge.formats.graphchallenge import from_graphchallenge, to_graphchallenge
    from teraedge.formats.matrixmarket import from_matrixmarket, to_matrixmarket
    from teraedge.formats.native import from_native, to_native
    from teraedge.formats.onnx import from_onnx, to_onnx
    from teraedge.formats.safetensors import from_safetensors
    from teraedge.formats.sklearn import from_sklearn
    from teraedge.formats.torch import from_torch, to_torch
    from teraedge.network import Network
    from teraedge.result import Result

__all__ = [
    "check_result_suffix",
    "from_graphchallenge",
    "from_matrixmarket",
    "from_native",
    "from_onnx",
    "from_safetensors",
    "from_sklearn",
    "from_torch",
    "load",
    "load_features",
    "save",
    "save_features",
    "save_result",
    "to_graphchallenge",
    "to_matrixmarket",
    "to_native",
    "to_onnx",
    "to_torch",
]

_NETWORK_SUFFIXES = (".safetensors", ".safetensors.index.json", ".mtx", ".onnx")
_MODULES = {".mtx": "matrixmarket", ".onnx": "onnx"}
_FEATURE_SUFFIXES = (".npy", ".npz", ".mtx", ".tsv")
_RESULT_SUFFIXES = (".npy", ".npz", ".tsv", ".txt")
_FOLDERS = "a folder neuron<N> (Graph Challenge), another folder (Matrix Market)"


def load(path: str | Path) -> "Network":
    """Open a network; its layers are read when asked for.

    Parameters
    ----------
    path : path
        As in the table of `teraedge.formats`; of a folder, what it holds says the format.

    Returns
    -------
    Network

    Raises
    ------
    FormatError
        If the format is not known, or a file is missing or malformed; also later, when the layer
        of a malformed file is read.

    Examples
    --------
    >>> import tempfile, teraedge
    >>> network = teraedge.Network([teraedge.Layer([[0.0, 2.0]], bias=-0.5)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(network, f"{folder}/model.safetensors")
    ...     load(f"{folder}/model.safetensors").edges
    1
    """
    if not str(path):
        raise FormatError("the path of the model is empty; give a file or folder")
    path = Path(path)
    if not path.exists() and not path.suffix:
        raise FormatError(f"{path}: there is no such file or folder; give the path of a model")
    if path.is_dir():
        from teraedge.formats.graphchallenge import is_graphchallenge

        if is_graphchallenge(path):
            return _format("graphchallenge").from_graphchallenge(path)  # type: ignore[no-any-return]
        if not any(path.glob("*.mtx")):
            raise FormatError(
                f"{path}: holds no network; a folder has files n<N>-l<layer>.tsv (Graph "
                "Challenge) or *.mtx (Matrix Market)"
            )
        return _format("matrixmarket").from_matrixmarket(path)  # type: ignore[no-any-return]
    suffix = _suffix(path, _NETWORK_SUFFIXES, "a network", _FOLDERS)
    module = _MODULES.get(suffix, "native")
    return getattr(_format(module), f"from_{module}")(path)  # type: ignore[no-any-return]


def save(network: "Network", path: str | Path) -> None:
    """Write a network.

    A file is replaced; a folder must be new or empty.

    Parameters
    ----------
    network : Network
        Its layers are read one at a time.
    path : path
        As in the table of `teraedge.formats`: a path without a suffix is a folder.

    Raises
    ------
    FormatError
        If the format is not known or cannot hold the network, or the path cannot be written.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        official = re.fullmatch(r"neuron[1-9]\d*", path.name)
        module = "graphchallenge" if official else "matrixmarket"
    else:
        suffix = _suffix(path, (".safetensors", ".mtx", ".onnx"), "a network", _FOLDERS)
        module = _MODULES.get(suffix, "native")
    getattr(_format(module), f"to_{module}")(network, path)


def load_features(
    path: str | Path, neurons: int | None = None, samples: int | None = None
) -> "Features":
    """Read features.

    Parameters
    ----------
    path : path
        As in the table of `teraedge.formats`.
    neurons, samples : int, optional
        What the shape must be. A ``.tsv`` file that is not named ``sparse-images-<N>.tsv`` needs
        `neurons`, and has by default as many samples as its largest id.

    Returns
    -------
    PackedFeatures, csr_array or ndarray, shape (samples, neurons)

    Raises
    ------
    FormatError
        If the suffix is not known, or the file is missing, malformed or of another shape.
    """
    from teraedge.formats import _samples

    _suffix(Path(path), _FEATURE_SUFFIXES, "features")
    return _samples.read(Path(path), neurons, samples)


def save_features(features: Any, path: str | Path) -> None:
    """Write features.

    Parameters
    ----------
    features : array, shape (samples, neurons)
        Anything that `Engine.run` takes.
    path : path
        As in the table of `teraedge.formats`. ``.npz`` keeps packed bits packed and sparse arrays
        sparse; ``.tsv`` takes only 0 and 1.

    Raises
    ------
    FeatureError
        If they are not features.
    FormatError
        If the suffix is not known or the path cannot be written.
    """
    from teraedge.formats import _samples

    _suffix(Path(path), _FEATURE_SUFFIXES, "features")
    _samples.write(features, Path(path))


def save_result(result: "Result", path: str | Path) -> None:
    """Write the answer of a run.

    Parameters
    ----------
    result : Result
    path : path
        As in the table of `teraedge.formats`.

    Raises
    ------
    FormatError
        If the suffix is not known or the path cannot be written.
    """
    from teraedge.formats import _samples

    check_result_suffix(path)
    _samples.write_result(result, Path(path))


def check_result_suffix(path: str | Path) -> None:
    """Raise FormatError if `save_result` has no format for a path."""
    _suffix(Path(path), _RESULT_SUFFIXES, "a result")


def _suffix(path: Path, allowed: tuple[str, ...], what: str, more: str = "") -> str:
    """Return the suffix of a path among those allowed."""
    for suffix in allowed:
        if path.name.endswith(suffix):
            return suffix
    choices = ", ".join([*allowed, more] if more else allowed)
    raise FormatError(f"{path}: cannot tell the format of {what}; allowed: {choices}")


def _format(module: str) -> Any:
    return import_module(f"teraedge.formats.{module}")


def __getattr__(name: str) -> Any:
    module = re.sub(r"^(from|to)_", "", name)
    if name not in __all__ or module == name:
        raise AttributeError(f"module 'teraedge.formats' has no attribute {name!r}")
    value = getattr(_format(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
