"""Pad neurons that read nearly the same inputs with zero weights, until they read the same.

A panel of `height` neurons reads each input row once for all of them. Neurons whose lists of
inputs differ in a few places can share a panel if the missing edges are stored as zeros: that pays
where the panel over the union of their inputs costs less than the neurons one by one. Block-pruned
layers with a few edges missing, N:M patterns and dense layers gain; thinly scattered edges do not.

Adding x 0 changes no sum of finite numbers, so results are the same to the last bit that the
order of additions leaves.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.grouping import entries_of, lengths

SAMPLE = 64
"""Groups looked at before all of them are."""


class Columns(NamedTuple):
    """A compressed-column matrix: `indptr`, `indices` (sorted in a column) and `weights`."""

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    weights: NDArray[np.float32]


def pad_similar(
    columns: Columns, single: NDArray[np.int64], height: int, tall_edge: float
) -> Columns | None:
    """Pad groups of similar columns where it pays.

    Parameters
    ----------
    columns : Columns
    single : ndarray of int64
        The columns that share their inputs with too few others.
    height : int
        Neurons of a panel.
    tall_edge : float
        What an edge of a whole panel costs, in edges of a single neuron.

    Returns
    -------
    Columns or None
        With explicit zeros; None where no group pays.
    """
    groups = _similar(columns, single, height)
    if len(groups) > SAMPLE:
        some = np.random.default_rng(0).choice(len(groups), SAMPLE, replace=False)
        if not _pays(columns, groups[some], tall_edge).any():
            return None
    groups = groups[_pays(columns, groups, tall_edge)] if len(groups) else groups
    return _padded(columns, groups) if len(groups) else None


def _similar(columns: Columns, single: NDArray[np.int64], height: int) -> NDArray[np.int64]:
    """Return groups of similar columns, shape (groups, height).

    Columns are sorted by two min-hashes of their inputs, which are equal with the probability
    that is the share of inputs in common (Broder, 1997).
    """
    indptr, indices, _ = columns
    single = single[lengths(indptr)[single] > 0]
    entries, counts = entries_of(single, indptr), lengths(indptr)[single]
    if len(single) < height:
        return np.empty((0, height), np.int64)
    starts = np.cumsum(counts) - counts
    size = int(indices.max()) + 1
    hashes = [
        np.minimum.reduceat(order_of_chance[indices[entries]], starts)
        for order_of_chance in _permutations(size)
    ]
    order = single[np.lexsort(hashes)]
    return order[: len(order) // height * height].reshape(-1, height)


@lru_cache(maxsize=16)
def _permutations(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return two orders of the inputs, the same every time."""
    random = np.random.default_rng(1)
    return random.permutation(size), random.permutation(size)


def _union(
    columns: Columns, groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Return the inputs of each group of columns together.

    Returns
    -------
    keys : ndarray of int64
        ``group * size + input``, ascending, each once.
    place : ndarray of int64, shape (entries,)
        Position in `keys` of each entry of the columns, group by group.
    lane : ndarray of int64, shape (entries,)
        Which column of its group an entry is of.
    size : int
    """
    indptr, indices, _ = columns
    flat = groups.ravel()
    counts = lengths(indptr)[flat]
    size = int(indices.max()) + 1
    group = np.repeat(np.arange(len(flat)) // groups.shape[1], counts)
    lane = np.repeat(np.arange(len(flat)) % groups.shape[1], counts)
    all_keys = group * size + indices[entries_of(flat, indptr)]
    keys, place = np.unique(all_keys, return_inverse=True)
    return keys, place, lane, size


def _pays(columns: Columns, groups: NDArray[np.int64], tall_edge: float) -> NDArray[np.bool_]:
    """Tell which groups are cheaper as one panel over all their inputs."""
    keys, _, _, size = _union(columns, groups)
    together = np.bincount(keys // size, minlength=len(groups))
    apart = lengths(columns.indptr)[groups].sum(axis=1)
    pays: NDArray[np.bool_] = together * tall_edge < apart
    return pays


def _padded(columns: Columns, groups: NDArray[np.int64]) -> Columns:
    """Give every column of a group the inputs of all."""
    indptr, indices, weights = columns
    keys, place, lane, size = _union(columns, groups)
    table = np.zeros((len(keys), groups.shape[1]), np.float32)
    table[place, lane] = weights[entries_of(groups.ravel(), indptr)]
    starts = np.searchsorted(keys, np.arange(len(groups) + 1) * size)
    wide = np.diff(starts)

    counts = lengths(indptr)
    counts[groups.ravel()] = np.repeat(wide, groups.shape[1])
    new_indptr = np.concatenate(([0], np.cumsum(counts)))
    new = Columns(
        new_indptr, np.empty(new_indptr[-1], indices.dtype), np.empty(new_indptr[-1], np.float32)
    )
    kept = np.setdiff1d(np.arange(len(counts)), groups)
    target, source = entries_of(kept, new_indptr), entries_of(kept, indptr)
    new.indices[target], new.weights[target] = indices[source], weights[source]
    for k in range(groups.shape[1]):
        target = entries_of(groups[:, k], new_indptr)
        new.indices[target], new.weights[target] = keys % size, table[:, k]
    return new


def fill_columns(columns: Columns, n_in: int, height: int) -> Columns:
    """Give columns all inputs, as zeros where they have no edge, so that they fill whole panels.

    Parameters
    ----------
    columns : Columns
    n_in : int
        Inputs of the layer.
    height : int
        Neurons of a panel; the columns with the fewest edges that are too many stay as they are.

    Returns
    -------
    Columns
    """
    indptr, indices, weights = columns
    counts = lengths(indptr)
    spared = np.argsort(counts, kind="stable")[: len(counts) % height]
    full = np.setdiff1d(np.arange(len(counts)), spared)
    new_counts = counts.copy()
    new_counts[full] = n_in
    new_indptr = np.concatenate(([0], np.cumsum(new_counts)))
    new = Columns(
        new_indptr, np.empty(new_indptr[-1], indices.dtype), np.zeros(new_indptr[-1], np.float32)
    )
    new.indices[entries_of(full, new_indptr)] = np.tile(np.arange(n_in), len(full))
    source = entries_of(full, indptr)
    target = np.repeat(new_indptr[full], counts[full]) + indices[source]
    new.weights[target] = weights[source]
    kept, old = entries_of(spared, new_indptr), entries_of(spared, indptr)
    new.indices[kept], new.weights[kept] = indices[old], weights[old]
    return new
