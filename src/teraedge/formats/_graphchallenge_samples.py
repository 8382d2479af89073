"""The official text files of the Sparse DNN Graph Challenge: features and categories.

===================================  ===========================  =======================
file                                 a line, ids 1-based          order
===================================  ===========================  =======================
``sparse-images-<N>.tsv``            ``sample<TAB>neuron<TAB>1``  by sample, then neuron
``neuron<N>-l<L>-categories.tsv``    ``sample``                   ascending
===================================  ===========================  =======================

They are written byte for byte as the official ones, and read in any order of lines.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from teraedge.errors import FormatError, ModelError
from teraedge.features import PackedFeatures, as_features
from teraedge.formats import _tsv
from teraedge.formats._atomic import new_file

_FEATURES_FILE = re.compile(r"sparse-images-([1-9]\d*)\.tsv").fullmatch


def features_from_graphchallenge(
    path: str | Path, *, neurons: int | None = None, samples: int | None = None
) -> PackedFeatures:
    """Read 0/1 features.

    Parameters
    ----------
    path : path
        ``sparse-images-<N>.tsv``.
    neurons : int, optional
        N; by default from the name of the file.
    samples : int, optional
        How many samples there are; by default the largest id in the file, so that last samples
        without a single 1 are lost.

    Returns
    -------
    PackedFeatures
        Shape (samples, N).

    Raises
    ------
    FormatError
        If the file is malformed, or `neurons` is needed or contradicts the name.
    """
    path = Path(path)
    named = _FEATURES_FILE(path.name)
    if named and neurons not in (None, int(named[1])):
        raise FormatError(f"{path}: is named for {named[1]} neurons; {neurons} were asked for")
    if neurons is None and not named:
        raise FormatError(f"{path}: the number of neurons is not known; give neurons=")
    neurons = int(named[1]) if named else int(neurons or 0)
    columns = _tsv.Columns("sample", "neuron", "value", samples or _tsv.MAX_ID, neurons)
    bits = np.zeros((samples or 0, -(-neurons // 8)), np.uint8)
    count = 0
    for entries in _tsv.read_entries(path, columns):
        if (entries.values != 1).any():
            line = entries.line + int((entries.values != 1).argmax())
            raise FormatError(f"{path}: line {line}: the value must be 1; use .npz for others")
        count = max(count, int(entries.rows.max()) + 1)
        bits = _grown(bits, count, path)
        _set_bits(bits, entries, path)
    return PackedFeatures(bits[: samples or count], neurons)


def _grown(bits: NDArray[np.uint8], rows: int, path: Path) -> NDArray[np.uint8]:
    """Return `bits` with at least so many rows, at least doubled if grown."""
    if rows <= len(bits):
        return bits
    try:
        larger = np.zeros((max(rows, 2 * len(bits)), bits.shape[1]), np.uint8)
    except MemoryError:
        raise FormatError(f"{path}: sample id {rows} needs more memory than there is") from None
    larger[: len(bits)] = bits
    return larger


def _set_bits(bits: NDArray[np.uint8], entries: _tsv.Entries, path: Path) -> None:
    """Set the bits of a block; each must be clear."""
    where = entries.rows.astype(np.int64) * (8 * bits.shape[1]) + entries.columns
    where.sort()
    byte, bit = where >> 3, np.uint8(128) >> (where & 7).astype(np.uint8)
    starts = np.flatnonzero(np.diff(byte, prepend=-1))
    flat, touched = bits.reshape(-1), byte[starts]
    added = np.bitwise_or.reduceat(bit, starts)
    if (flat[touched] & added).any() or (np.diff(where) == 0).any():
        last = entries.line + len(where) - 1
        raise FormatError(
            f"{path}: a neuron of a sample is listed twice, in the lines up to {last}"
        )
    flat[touched] |= added


def features_to_graphchallenge(features: Any, path: str | Path) -> None:
    """Write 0/1 features.

    Parameters
    ----------
    features : PackedFeatures or array, shape (samples, N)
        Only 0 and 1.
    path : path
        ``sparse-images-<N>.tsv`` is the official name.

    Raises
    ------
    FormatError
        If a value is not 0 or 1, none is 1, the name is that of another N, or the file cannot be
        written.
    """
    path = Path(path)
    shape = np.shape(features)
    checked = as_features(features, shape[-1] if shape else 0)
    named = _FEATURES_FILE(path.name)
    if named and int(named[1]) != checked.shape[1]:
        raise FormatError(f"{path}: the features have {checked.shape[1]} neurons, the name another")
    one, written = np.array([b"1"]), 0
    with new_file(path) as temporary, temporary.open("wb") as file:
        for samples, neurons in _ones(checked, path):
            _tsv.write_entries(file, samples, neurons, one, checked.shape)
            written += len(samples)
        if not written:
            raise FormatError(f"{path}: no feature is 1, and an empty file cannot be told apart")


def _ones(features: Any, path: Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the samples and neurons of the ones, a few samples at a time."""
    samples, neurons = features.shape
    step = max(1, (1 << 24) // neurons)
    for start in range(0, samples, step):
        part = features[start : start + step]
        dense = part.toarray() if sp.issparse(part) else np.asarray(part)
        if not ((dense == 0) | (dense == 1)).all():
            raise FormatError(f"{path}: features hold values other than 0 and 1; use .npz")
        rows, columns = np.nonzero(dense)
        yield rows + start, columns


def categories_from_graphchallenge(path: str | Path) -> NDArray[np.int64]:
    """Read sample ids, one a line and 1-based; returns them 0-based and ascending.

    An empty file holds no ids.

    Raises
    ------
    FormatError
        If a line is not an id, or an id is listed twice.
    """
    path = Path(path)
    ids: list[int] = []
    if path.is_file() and path.stat().st_size:
        for line, block in _tsv.read_blocks(path):
            for number, text in enumerate(block[:-1].split(b"\n"), line):
                if reason := _tsv.wrong_id(text, "sample", _tsv.MAX_ID):
                    raise FormatError(f"{path}: line {number}: {reason}")
                ids.append(int(text) - 1)
    elif not path.is_file():
        raise FormatError(f"{path}: there is no such file")
    found, counts = np.unique(np.array(ids, np.int64), return_counts=True)
    if (counts > 1).any():
        raise FormatError(f"{path}: sample {found[counts.argmax()] + 1} is listed twice")
    return found


def categories_to_graphchallenge(ids: ArrayLike, path: str | Path) -> None:
    """Write 0-based sample ids, such as `Result.live`, one a line, 1-based and ascending.

    Raises
    ------
    ModelError
        If they are not distinct whole numbers of at least 0.
    FormatError
        If the file cannot be written.
    """
    array = np.asarray(ids)
    if not array.size:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any():
        raise ModelError(f"ids are {array.dtype} of shape {array.shape}; give 1-D 0-based ids")
    if len(np.unique(array)) != len(array):
        raise ModelError("ids hold a sample twice; give each once")
    with new_file(Path(path)) as temporary:
        text = "".join(f"{sample + 1}\n" for sample in np.sort(array).tolist())
        temporary.write_bytes(text.encode())
