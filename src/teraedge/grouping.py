"""Find equal columns of a sparse matrix, in time linear in its entries."""

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: multiplying permutes
_SHIFT = np.uint64(32)


def equal_columns(
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any] | None = None,
    labels: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Tell which columns of a compressed-column matrix are equal.

    Columns are hashed to 64 bits and sorted by hash; neighbours with equal hashes are then
    compared entry by entry, so that columns called equal are. (Equal ones would be missed only if
    a different one with the same hash lay between them.) The rows of a CSR matrix are the columns
    of its transpose.

    Parameters
    ----------
    indptr : ndarray of int, shape (columns + 1,)
    indices : ndarray of int, shape (entries,)
        Sorted in each column.
    data : ndarray, shape (entries,), optional
        Values; without them the patterns alone are compared.
    labels : ndarray, shape (columns,), optional
        One more value a column that must be equal too.

    Returns
    -------
    ndarray of int64, shape (columns,)
        The first column that each is equal to: its own number where there is none before it.
    """
    indptr = indptr.astype(np.int64, copy=False)
    counts = lengths(indptr)
    if data is not None and len(data) and (data == data[0]).all():
        data = None  # then values tell no columns apart
    entries = _keys(int(indices.max(initial=0)) + 1)[indices]
    if data is not None:
        entries *= _scrambled(data) | np.uint64(1)
    hashes = column_sums(entries, indptr)
    if labels is not None:
        hashes += _scrambled(labels)
    order = np.argsort(hashes, kind="stable")
    left, right = order[:-1], order[1:]
    same = (hashes[left] == hashes[right]) & (counts[left] == counts[right])
    if labels is not None:
        same &= labels[left] == labels[right]
    pairs = np.flatnonzero(same)
    if len(pairs):
        same[pairs] = _same_entries(left[pairs], right[pairs], indptr, indices, data)
    starts = np.concatenate(([True], ~same))[: len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _keys(count: int) -> NDArray[np.uint64]:
    """Return random numbers, the same every time: one for each row of a matrix."""
    return _random_keys(max(1 << (count - 1).bit_length(), 2**16))[:count]


@lru_cache(maxsize=2)
def _random_keys(size: int) -> NDArray[np.uint64]:
    return np.random.default_rng(0).integers(1, 2**64, size, np.uint64)


def pick_columns(matrix: sp.csc_array, columns: NDArray[Any]) -> sp.csc_array:
    """Return some columns of a matrix, as ``matrix[:, columns]`` does, which is much slower."""
    indptr = matrix.indptr
    entries = entries_of(columns, indptr)
    counts = indptr[columns + 1] - indptr[columns]
    starts = np.concatenate(([0], np.cumsum(counts))).astype(indptr.dtype)
    return sp.csc_array(
        (matrix.data[entries], matrix.indices[entries], starts),
        shape=(matrix.shape[0], len(columns)),
    )


def lengths(indptr: NDArray[Any]) -> NDArray[Any]:
    """Return the entries of each column; `np.diff` takes longer than small layers do."""
    difference: NDArray[Any] = indptr[1:] - indptr[:-1]
    return difference


def column_sums(values: NDArray[Any], indptr: NDArray[np.int64]) -> NDArray[Any]:
    """Return the sum of each column's values; `np.add.reduceat` is wrong for empty columns."""
    sums = np.zeros(len(indptr) - 1, values.dtype)
    filled = np.flatnonzero(lengths(indptr))
    if len(filled):
        sums[filled] = np.add.reduceat(values, indptr[filled])
    return sums


def entries_of(columns: NDArray[np.int64], indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of the entries of `columns`, one column after the other."""
    counts = indptr[columns + 1] - indptr[columns]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    entries: NDArray[np.int64] = np.repeat(indptr[columns] - ends + counts, counts)
    entries += np.arange(total)
    return entries


def _scrambled(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return 64 random-looking bits a value, the same for equal ones (so for 0.0 and -0.0).

    Multiplying alone would not do: the low bits of 1.0, -1.0 and 0.5 are all zero, and it only
    carries bits upwards.
    """
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)
    for _ in range(2):
        bits ^= bits >> _SHIFT
        bits *= _MIX
    bits ^= bits >> _SHIFT
    return bits


def _same_entries(
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any] | None,
) -> NDArray[np.bool_]:
    """Compare pairs of columns of the same length."""
    width = len(indices) // (len(indptr) - 1)
    if width and (lengths(indptr) == width).all():  # as rows of a table, which is much faster
        tables = [values.reshape(-1, width) for values in (indices, data) if values is not None]
        differs = [(table[left] != table[right]).any(axis=1) for table in tables]
        found: NDArray[np.bool_] = ~np.logical_or.reduce(differs)
        return found
    a, b = entries_of(left, indptr), entries_of(right, indptr)
    differs = indices[a] != indices[b]
    if data is not None:
        differs |= data[a] != data[b]
    ends = np.concatenate(([0], np.cumsum(indptr[left + 1] - indptr[left])))
    equal: NDArray[np.bool_] = column_sums(differs.astype(np.int64), ends) == 0
    return equal
