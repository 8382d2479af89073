"""Layers in which every source has the same number of edges, at fixed distances on a circle."""

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


def circulant_destinations(
    classes: NDArray[np.integer[Any]], shifts: NDArray[np.int64], modulus: int, copies: int
) -> NDArray[np.int32]:
    """Return the destinations of each source, in ascending order.

    Destination d is an edge of source s where d mod `modulus` = (classes[s] + shift) mod `modulus`
    for one of the shifts: a circulant matrix, its columns repeated `copies` times and its rows
    taken by class.

    Parameters
    ----------
    classes : ndarray of int, shape (n_in,)
        0 to modulus - 1.
    shifts : ndarray of int64, shape (k,)
        Distinct mod `modulus`.
    modulus, copies : int
        Their product is n_out.

    Returns
    -------
    ndarray of int32, shape (n_in, k * copies)
    """
    # All sources of a class share a row, so only `modulus` rows are computed and sorted.
    rows = np.sort((np.arange(modulus)[:, None] + shifts) % modulus, axis=1)
    rows = rows[:, None, :] + modulus * np.arange(copies)[:, None]
    table = rows.reshape(modulus, -1).astype(np.int32)
    return np.take(table, classes, axis=0)


def regular_csr(
    destinations: NDArray[np.int32], values: NDArray[np.float32], n_out: int
) -> sp.csr_array:
    """Return the CSR weights of sources that have equally many edges.

    Parameters
    ----------
    destinations : ndarray of int32, shape (n_in, degree)
        Ascending in every row.
    values : ndarray of float32, shape (n_in * degree,)
        Weights, row by row.
    n_out : int

    Returns
    -------
    scipy.sparse.csr_array, shape (n_in, n_out)
    """
    n_in, degree = destinations.shape
    edges = destinations.size
    index = np.int32 if edges <= np.iinfo(np.int32).max else np.int64
    starts = np.arange(0, edges + 1, degree, dtype=index)
    indices = destinations.reshape(-1).astype(index, copy=False)
    return sp.csr_array((values, indices, starts), shape=(n_in, n_out))
