"""Features from files and into them, and results into files; see the table in `formats`."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from teraedge.errors import FeatureError, FormatError
from teraedge.features import Features, PackedFeatures, as_features
from teraedge.formats._atomic import new_file
from teraedge.result import Result

_PACKED = {"bits", "neurons"}
_SPARSE = {"format", "shape", "data"}


def read(path: Path, neurons: int | None, samples: int | None) -> Features:
    """Read features by the suffix of the file, and check what every engine would check."""
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file")
    reader = {".npy": _read_npy, ".npz": _read_npz, ".mtx": _read_mtx}.get(path.suffix)
    if reader:
        features = reader(path)
    else:
        from teraedge.formats.graphchallenge import features_from_graphchallenge

        features = features_from_graphchallenge(path, neurons=neurons, samples=samples)
    rows, columns = features.shape if features.ndim == 2 else (None, None)
    if neurons not in (None, columns) or samples not in (None, rows):
        raise FormatError(
            f"{path}: holds features of shape {features.shape}; {samples or 'any'} samples x "
            f"{neurons or 'any'} neurons were asked for"
        )
    try:
        return as_features(features, features.shape[1] if columns is not None else 0)
    except FeatureError as error:
        raise FormatError(f"{path}: {error}") from None


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Turn what NumPy raises for a malformed file into one error."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:  # NumPy and zipfile raise a dozen kinds, all for a bad file
        lines = str(error).splitlines() or [type(error).__name__]
        raise FormatError(f"{path}: is truncated or malformed: {lines[0]}") from None


def _read_npy(path: Path) -> Any:
    with _parsing(path):
        with path.open("rb") as file:
            if file.read(2) not in (b"\x93N", b"PK"):  # else NumPy's message speaks of pickles
                raise FormatError(f"{path}: is truncated or not a .npy file")
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        array.close()
    raise FormatError(f"{path}: is a .npz file named .npy; rename it")


def _read_npz(path: Path) -> Any:
    with _parsing(path):
        if not zipfile.is_zipfile(path):
            raise FormatError(f"{path}: is truncated or not a .npz file")
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            if names == _PACKED:
                return PackedFeatures(file["bits"], int(file["neurons"]))
            if len(names) == 1 and isinstance(array := file[min(names)], np.ndarray):
                return array
        if names >= _SPARSE:
            return sp.csr_array(sp.load_npz(path))
    raise FormatError(
        f"{path}: holds {sorted(names)}; allowed: one array, a sparse matrix of scipy.sparse."
        "save_npz, or the packed features of teraedge"
    )


def _read_mtx(path: Path) -> Any:
    from teraedge.formats.matrixmarket import read_matrix

    return read_matrix(path)


def write(features: Any, path: Path) -> None:
    """Write features by the suffix of the file; `path` has one of the table."""
    if path.suffix == ".tsv":
        from teraedge.formats.graphchallenge import features_to_graphchallenge

        features_to_graphchallenge(features, path)
        return
    shape = np.shape(features)
    checked = as_features(features, shape[-1] if shape else 0)
    with new_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".mtx":
            from teraedge.formats.matrixmarket import write_matrix

            write_matrix(checked if sp.issparse(checked) else np.asarray(checked), file)
        elif path.suffix == ".npy":
            np.save(file, _dense(checked))
        elif isinstance(checked, PackedFeatures):
            np.savez_compressed(file, bits=checked.bits, neurons=checked.neurons)
        elif sp.issparse(checked):
            sp.save_npz(file, checked)
        else:
            np.savez_compressed(file, features=checked)


def _dense(features: Any) -> Any:
    return features.toarray() if sp.issparse(features) else np.asarray(features)


def write_result(result: Result, path: Path) -> None:
    """Write a result by the suffix of the file; `path` has one of the table."""
    if path.suffix in (".tsv", ".txt"):
        from teraedge.formats.graphchallenge import categories_to_graphchallenge

        categories_to_graphchallenge(result.live, path)
        return
    with new_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, result.outputs)
        else:
            np.savez_compressed(
                file, live=result.live, live_outputs=result.live_outputs, shape=result.shape
            )
