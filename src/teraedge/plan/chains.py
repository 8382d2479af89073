"""The order of the panels of the block kernel: those that share inputs one after the other.

A warp that takes panel after panel multiplies the inputs that a panel shares with the next one into
both at the same time, so that they are read and split once. In RadiX-Nets and other products of
circulants, panels that share a half of their inputs with each of two others form rings; in dense
layers each shares all of them with every other.
"""

from collections import Counter
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.grouping import equal_columns


class Classes(NamedTuple):
    """Inputs by the panels that read them.

    Attributes
    ----------
    order : ndarray of int64, shape (n_in,)
        The inputs, class after class.
    starts : ndarray of int64, shape (classes + 1,)
    readers : list of ndarray of int64
        The panels that read each class, ascending.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    readers: list[NDArray[np.int64]]


def input_classes(starts: NDArray[np.int64], inputs: NDArray[np.int64], n_in: int) -> Classes:
    """Find the inputs that are read by the same panels.

    Parameters
    ----------
    starts : ndarray of int64, shape (panels + 1,)
    inputs : ndarray of int64, shape (edges,)
        Of each panel.
    n_in : int
    """
    reader = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_input = np.lexsort((reader, inputs))
    begin = np.searchsorted(inputs[by_input], np.arange(n_in + 1))
    reader = reader[by_input]
    leader = equal_columns(begin, reader)
    order = np.argsort(leader, kind="stable")
    changes = np.flatnonzero(np.diff(leader[order])) + 1
    firsts = np.concatenate(([0], changes, [n_in])) if n_in else np.zeros(1, np.int64)
    leaders = leader[order[firsts[:-1]]].tolist()
    return Classes(order, firsts, [reader[begin[k] : begin[k + 1]] for k in leaders])


def chains(blocks: list[list[int]], readers: list[list[int]]) -> list[list[int]]:
    """Order panels in chains, each panel sharing blocks with the next.

    Parameters
    ----------
    blocks : list of list of int
        The blocks of inputs that each panel reads.
    readers : list of list of int
        The panels that read each block.

    Returns
    -------
    list of list of int
        Panels; each is in one chain.
    """
    left = dict.fromkeys(range(len(blocks)))
    found = []
    while left:
        panel = next(iter(left))
        chain = []
        while panel is not None:
            del left[panel]
            chain.append(panel)
            # Of a block that many read, some readers are enough: it serves one of them.
            shared = Counter(
                reader for block in blocks[panel] for reader in _first_left(readers[block], left)
            )
            panel = max(shared, key=shared.__getitem__) if shared else None
        found.append(chain)
    return found


def _first_left(readers: list[int], left: dict[int, None], most: int = 4) -> list[int]:
    """Return some of the readers that are left; those that are not are forgotten."""
    readers[:] = [reader for reader in readers if reader in left]
    return readers[:most]


def dealt(chains: list[list[int]], costs: list[int], warps: int) -> list[list[list[int]]]:
    """Deal chains to warps: the dearest first, each to the warp that has least to do.

    Parameters
    ----------
    chains : list of list of int
        Panels; long chains are cut.
    costs : list of int
        Steps of each panel.
    warps : int

    Returns
    -------
    list of list of list of int
        Of each warp, its chains.
    """
    share = max(1, -(-sum(costs) // warps))
    pieces: list[tuple[int, list[int]]] = []
    for chain in chains:
        piece: list[int] = []
        cost = 0
        for panel in chain:
            if piece and cost + costs[panel] > share:
                pieces.append((cost, piece))
                piece, cost = [], 0
            piece.append(panel)
            cost += costs[panel]
        pieces.append((cost, piece))
    pieces.sort(key=lambda found: -found[0])
    heap = [(0, 0, warp) for warp in range(warps)]
    heapify(heap)
    result: list[list[list[int]]] = [[] for _ in range(warps)]
    for cost, piece in pieces:
        total, count, warp = heappop(heap)
        result[warp].append(piece)
        heappush(heap, (total + cost, count + len(piece), warp))
    return result
