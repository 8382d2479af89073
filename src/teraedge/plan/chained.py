"""The panels of wide layers, in an order in which neighbours share inputs.

The chained kernel takes panel after panel, and multiplies the inputs that a panel shares with the
next one into both at the same time, so that they are read once. In RadiX-Nets and other products
of circulants, panels that share half of their inputs with each of two others form rings; in dense
layers each shares all of them with every other.

Of each panel, but for the edges that it shares with the panel before, those that are alone its own
come first, and then those shared with the next. Both begin at multiples of `ALIGN`, and as many are
shared as make whole pieces of so many. They take two places each, one for the weight into each of
the two panels.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from teraedge.jit import jit
from teraedge.plan.device import DevicePanels, list_table, targets_of
from teraedge.plan.panels import PanelLayer, Panels

ALIGN = 8
"""Edges that the chained kernel and the wide kernel load together."""
LOOKED_AT = 4
"""Readers of an input that are looked at for the next panel: of many, some are enough."""

_i64, _ints = types.int64, types.int64[::1]


class Chained(NamedTuple):
    """Panels in order, and how their edges are taken.

    Attributes
    ----------
    order : ndarray of int64, shape (panels,)
    alone, shared : ndarray of int64, shape (panels,)
        Edges of each, in that order.
    edges, others : ndarray of int64
        The edges as they are taken; and of those shared, the next panel's edge from the same input.
    """

    order: NDArray[np.int64]
    alone: NDArray[np.int64]
    shared: NDArray[np.int64]
    edges: NDArray[np.int64]
    others: NDArray[np.int64]

    @property
    def pieces(self) -> int:
        """Pieces of up to `ALIGN` edges that are read."""
        return int(pieces(self.alone) + pieces(self.shared))


def pieces(counts: NDArray[np.int64]) -> int:
    """Return in how many pieces of up to `ALIGN` edges lists of such lengths are read."""
    return int((-(-counts // ALIGN)).sum())


def chained(panels: Panels, n_in: int) -> Chained:
    """Order panels, so that neighbours share inputs."""
    starts, indices = panels.starts, panels.indices.astype(np.int64)
    reader = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    by_input = np.argsort(indices, kind="stable")
    begin = np.searchsorted(indices[by_input], np.arange(n_in + 1))
    readers = np.ascontiguousarray(reader[by_input])
    order = _order(starts, indices, begin, readers)
    alone, shared = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    edges, others = np.empty(len(indices), np.int64), np.full(len(indices), -1, np.int64)
    count = _split(order, starts, indices, n_in, alone, shared, edges, others)
    return Chained(order, alone, shared, edges[:count], others[:count])


def lay_out_chained(
    found: Chained, panels: Panels, layer: PanelLayer, index: Any
) -> tuple[DevicePanels, NDArray[np.int32]]:
    """Lay panels out for the chained kernel, with indices of some type.

    Returns
    -------
    DevicePanels
    ndarray of int32, shape (n_in,)
        The order in which inputs are first read: if rows lie in it, they are read one after the
        other, which device memory is faster at.
    """
    room = -(-found.alone // ALIGN) * ALIGN
    rooms = room + 2 * found.shared
    starts = np.cumsum(rooms) - rooms
    counts = np.stack([found.alone, found.shared], axis=1).ravel()
    firsts = np.stack([starts, starts + room], axis=1).ravel()
    within = np.arange(len(found.edges)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = np.repeat(firsts, counts) + within
    indices = np.zeros(int(rooms.sum()), index)
    indices[place] = panels.indices[found.edges]
    weights = np.empty(0, np.float32)
    if layer.value is None:
        given = panels.weights.reshape(-1, panels.height)
        values = np.zeros((len(indices), panels.height), np.float32)
        two = found.others >= 0
        place += within * two  # where a shared edge's weights lie
        values[place] = given[found.edges]
        values[place[two] + 1] = given[found.others[two]]
        weights = values.ravel()
    lists = list_table(starts, found.alone, found.shared)
    targets = targets_of(panels, layer)[found.order]
    slots = len(panels.indices) * panels.height
    laid_out = DevicePanels(panels.height, lists, indices, weights, targets, slots)
    return laid_out, _first_reads(panels.indices[found.edges], layer.n_in)


def _first_reads(indices: NDArray[Any], n_in: int) -> NDArray[np.int32]:
    """Return the rank of each input by when it is first read; those never read come last."""
    first = np.full(n_in, len(indices), np.int64)
    first[indices[::-1]] = np.arange(len(indices))[::-1]
    ranks = np.empty(n_in, np.int32)
    ranks[np.argsort(first, kind="stable")] = np.arange(n_in, dtype=np.int32)
    return ranks


@jit(_ints(_ints, _ints, _ints, _ints))
def _order(starts, indices, begin, readers):
    """Follow shared inputs from panel to panel, greedily, and begin anew where there are none."""
    panels = len(starts) - 1
    order = np.empty(panels, np.int64)
    left = np.ones(panels, np.bool_)
    head = begin.copy()  # of each input's readers, those before have been taken
    votes = np.zeros(panels, np.int64)
    first, panel = 0, -1
    for k in range(panels):
        if panel < 0:
            while not left[first]:
                first += 1
            panel = first
        order[k] = panel
        left[panel] = False
        best = -1
        for edge in range(starts[panel], starts[panel + 1]):
            source = indices[edge]
            while head[source] < begin[source + 1] and not left[readers[head[source]]]:
                head[source] += 1
            for at in range(head[source], min(head[source] + LOOKED_AT, begin[source + 1])):
                other = readers[at]
                if left[other]:
                    votes[other] += 1
                    if best < 0 or votes[other] > votes[best]:
                        best = other
        for edge in range(starts[panel], starts[panel + 1]):
            source = indices[edge]
            for at in range(head[source], min(head[source] + LOOKED_AT, begin[source + 1])):
                votes[readers[at]] = 0
        panel = best
    return order


@jit(_i64(_ints, _ints, _ints, _i64, _ints, _ints, _ints, _ints))
def _split(order, starts, indices, n_in, alone, shared, edges, others):
    """Split the edges of each panel; returns how many there are where shared ones count once."""
    taken = np.full(n_in, -1, np.int64)  # the last place in the order that it was read for, ahead
    edge_of = np.zeros(n_in, np.int64)
    reads = np.full(n_in, -1, np.int64)
    count = 0
    for k in range(len(order)):
        panel = order[k]
        if k + 1 < len(order):
            after = order[k + 1]
            for edge in range(starts[after], starts[after + 1]):
                reads[indices[edge]] = k + 1
                edge_of[indices[edge]] = edge
        common = 0
        for edge in range(starts[panel], starts[panel + 1]):
            source = indices[edge]
            common += taken[source] != k and reads[source] == k + 1
        over = common % ALIGN  # what makes no whole piece is read by each
        for edge in range(starts[panel], starts[panel + 1]):
            source = indices[edge]
            if taken[source] == k:
                continue
            if reads[source] == k + 1 and over > 0:
                over -= 1
                reads[source] = -1
            if reads[source] != k + 1:
                edges[count] = edge
                count += 1
                alone[k] += 1
        for edge in range(starts[panel], starts[panel + 1]):
            source = indices[edge]
            if taken[source] != k and reads[source] == k + 1:
                edges[count], others[count] = edge, edge_of[source]
                taken[source] = k + 1
                count += 1
                shared[k] += 1
    return count
