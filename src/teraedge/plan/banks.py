"""Order the edges of a slice so that no two reads of shared memory meet in a bank.

Lanes of a warp that read shared memory at the same moment, each the row of an input of its own,
are served together only if their rows fall into different banks. For the resident kernel that
means: the lanes of a *group* (1, 2, 4 or 8 of them) must read rows that differ modulo the size of
the group. A lane may take its edges in any order, so this is a colouring problem: edges join lanes
to residues, a colour is a step, and no lane and no residue may have a colour twice. A bipartite
multigraph can be coloured with as many colours as its largest degree (König, 1916), so nothing is
lost but what the most frequent residue of a group has too many of; lanes are put into groups such
that this is little.
"""

import numpy as np
from numba import types

from teraedge.jit import jit

WINDOW = 64
"""Panels looked at for each place of a group."""
SHORTER = 1
"""How many edges fewer than the first of its group a panel may have."""
SWEEPS = 3
"""Times that panels are looked at to be swapped with others."""
NEAR = 512
"""How far away in the order those others are, at most."""
FREE = -1

_i64, _ints, _tables = types.int64, types.int64[::1], types.int64[:, ::1]


@jit(types.boolean(_ints, _ints, _i64, _i64))
def same_inputs(starts, indices, one, other):
    """Tell whether two panels read the same inputs in the same order."""
    first, second = starts[one], starts[other]
    count = starts[one + 1] - first
    if starts[other + 1] - second != count:
        return False
    for k in range(count):  # noqa: SIM110 (compiled)
        if indices[first + k] != indices[second + k]:
            return False
    return True


@jit(_tables(_ints, _ints, _i64))
def residue_counts(starts, indices, size):
    """Count the inputs of each panel by residue, shape (panels, size)."""
    counts = np.zeros((len(starts) - 1, size), np.int64)
    for panel in range(len(starts) - 1):
        for edge in range(starts[panel], starts[panel + 1]):
            counts[panel, indices[edge] % size] += 1
    return counts


@jit(types.void(_ints, _ints, _ints, _i64, _tables))
def swap_between_groups(groups, starts, indices, size, counts):
    """Swap panels between groups where that makes residues more evenly frequent in both.

    A group needs as many steps as its longest panel has edges, and more where a residue is more
    frequent than that. Panels of such groups are swapped with others that are not far away, and no
    longer, where the sum of the squares of the frequencies falls. Groups with panels that read the
    same inputs stay as they are.

    Parameters
    ----------
    groups : ndarray of int64, shape (panels,)
        The panels, group after group; changed in place.
    starts, indices : ndarray of int64
        Inputs of each panel.
    size : int
        Panels of a group.
    counts : ndarray of int64, shape (panels, size)
        As of `residue_counts`.
    """
    number = len(groups) // size
    load = np.zeros((number, size), np.int64)
    steps = np.zeros(number, np.int64)  # of the longest panel; 0 for groups that stay
    for group in range(number):
        for k in range(group * size, group * size + size):
            load[group] += counts[groups[k]]
            steps[group] = max(steps[group], starts[groups[k] + 1] - starts[groups[k]])
        for k in range(group * size + 1, group * size + size):
            if same_inputs(starts, indices, groups[k], groups[k - 1]):
                steps[group] = 0
    for _ in range(SWEEPS):
        for one in range(number * size):
            mine = one // size
            most = load[mine].max()
            for away in range(size, NEAR):
                if most <= steps[mine] or steps[mine] == 0:
                    break
                other = (one + away) % (number * size)
                theirs = other // size
                first, second = groups[one], groups[other]
                if (
                    mine == theirs
                    or starts[second + 1] - starts[second] > steps[mine]
                    or starts[first + 1] - starts[first] > steps[theirs]
                ):
                    continue
                change = np.int64(0)  # of half the sum of squares
                for k in range(size):
                    more = counts[second, k] - counts[first, k]
                    change += more * (load[mine, k] - load[theirs, k] + more)
                if change < 0:
                    for k in range(size):
                        more = counts[second, k] - counts[first, k]
                        load[mine, k] += more
                        load[theirs, k] -= more
                    groups[one], groups[other] = second, first
                    most = load[mine].max()


@jit(_ints(_ints, _ints, _ints, _i64))
def balanced_groups(order, starts, indices, size):
    """Put panels into groups of `size` such that no residue is much more frequent than others.

    Parameters
    ----------
    order : ndarray of int64, shape (panels,)
        The panels, the longest first.
    starts, indices : ndarray of int64
        Inputs of each panel.
    size : int

    Returns
    -------
    ndarray of int64, shape (panels,)
        The panels, group after group, groups that will need the most steps first; one that is not
        full is the last.
    """
    counts = residue_counts(starts, indices, size)
    panels = len(order)
    following = np.arange(1, panels + 1)  # a list of those left, in their order
    head, filled = 0, 0
    groups = np.empty(panels, np.int64)
    length = np.zeros(-(-panels // size), np.int64)
    load = np.zeros(size, np.int64)
    while filled < panels:
        load[:] = 0
        longest = starts[order[head] + 1] - starts[order[head]]
        for place in range(min(size, panels - filled)):
            best, best_before, best_load = head, -1, np.int64(2**62)
            before, at, looked = -1, head, 0
            while at < panels and looked < WINDOW:
                panel = order[at]
                if looked > 0 and longest - (starts[panel + 1] - starts[panel]) > SHORTER:
                    break  # shorter ones would be padded
                if place > 0 and same_inputs(starts, indices, panel, groups[filled - 1]):
                    highest = load.max()  # read together with the one before
                else:
                    highest = np.int64(0)
                    for k in range(size):
                        highest = max(highest, load[k] + counts[panel, k])
                if highest < best_load:
                    best, best_before, best_load = at, before, highest
                before, at, looked = at, following[at], looked + 1
            panel = order[best]
            if place == 0 or not same_inputs(starts, indices, panel, groups[filled - 1]):
                load += counts[panel]
            if best_before < 0:
                head = following[best]
            else:
                following[best_before] = following[best]
            groups[filled] = panel
            filled += 1
    swap_between_groups(groups, starts, indices, size, counts)
    for group in range(panels // size):
        load[:] = 0
        longest = 0
        for k in range(group * size, group * size + size):
            longest = max(longest, starts[groups[k] + 1] - starts[groups[k]])
            if k == group * size or not same_inputs(starts, indices, groups[k], groups[k - 1]):
                load += counts[groups[k]]
        length[group] = max(longest, load.max())
    longest_first = np.argsort(-length, kind="mergesort")
    result = np.empty(panels, np.int64)
    filled = 0
    for group in longest_first:
        for k in range(group * size, min(group * size + size, panels)):
            result[filled] = groups[k]
            filled += 1
    return result


@jit(types.void(_tables, _tables, _tables, _i64, _ints))
def color_edge(lanes, residues, ends, edge, path):
    """Give an edge a step at which neither its lane nor its residue is busy.

    Parameters
    ----------
    lanes, residues : ndarray of int64, shape (size, steps)
        The edge of each at each step, or `FREE`.
    ends : ndarray of int64, shape (edges, 2)
        Lane and residue of each edge.
    edge : int
    path : ndarray of int64, shape (edges,)
        To work in.
    """
    lane, residue = ends[edge]
    mine = theirs = FREE  # free at the lane, free at the residue
    for step in range(lanes.shape[1]):
        if lanes[lane, step] == FREE and residues[residue, step] == FREE:
            mine = theirs = step
            break
        if lanes[lane, step] == FREE and mine == FREE:
            mine = step
        if residues[residue, step] == FREE and theirs == FREE:
            theirs = step
    if mine != theirs:
        # The edges at `mine` and `theirs` in turn, from the residue on, make a path, which cannot
        # come to the lane, where `mine` is free. Exchanged along it, `mine` is free at both ends.
        count = 0
        at = residues[residue, mine]
        while at != FREE:
            path[count] = at
            count += 1
            at = lanes[ends[at, 0], theirs] if count % 2 else residues[ends[at, 1], mine]
        for k in range(count):
            step = theirs if k % 2 else mine
            lanes[ends[path[k], 0], step] = residues[ends[path[k], 1], step] = FREE
        for k in range(count):
            step = mine if k % 2 else theirs
            lanes[ends[path[k], 0], step] = residues[ends[path[k], 1], step] = path[k]
    lanes[lane, mine] = residues[residue, mine] = edge


@jit(_i64(_ints, _ints, _ints, _i64, _ints))
def order_group(panels, starts, indices, size, steps):
    """Find the steps of all edges of a group of panels, -1 standing for none.

    Panels that read the same inputs read them together, and count once.

    Returns
    -------
    int
        Steps of the group; `steps`, shape (edges of the layer,), is filled in.
    """
    leader = np.full(size, -1)
    degree = np.zeros(2 * size, np.int64)
    count = 0
    for k in range(size):
        if panels[k] < 0:
            continue
        leader[k] = k
        for before in range(k):
            if leader[before] == before and same_inputs(starts, indices, panels[before], panels[k]):
                leader[k] = before
        if leader[k] == k:
            for edge in range(starts[panels[k]], starts[panels[k] + 1]):
                degree[k] += 1
                degree[size + indices[edge] % size] += 1
                count += 1
    length = degree.max()
    lanes, residues = np.full((size, length), FREE), np.full((size, length), FREE)
    ends, path = np.empty((count, 2), np.int64), np.empty(count, np.int64)
    number = 0
    for k in range(size):
        if leader[k] == k:
            for edge in range(starts[panels[k]], starts[panels[k] + 1]):
                ends[number, 0], ends[number, 1] = k, indices[edge] % size
                color_edge(lanes, residues, ends, number, path)
                number += 1
    number = 0
    for k in range(size):
        if leader[k] == k:
            first = starts[panels[k]] - number
            for step in range(length):
                if lanes[k, step] != FREE:
                    steps[first + lanes[k, step]] = step
            number += starts[panels[k] + 1] - starts[panels[k]]
        elif leader[k] >= 0:
            own, other = starts[panels[k]], starts[panels[leader[k]]]
            for edge in range(starts[panels[k] + 1] - own):
                steps[own + edge] = steps[other + edge]
    return length


@jit(_ints(_ints, _ints, _ints, _i64, _ints))
def order_edges(lanes, starts, indices, size, steps):
    """Order the edges of all panels.

    Parameters
    ----------
    lanes : ndarray of int64, shape (a multiple of 8,)
        The panel of each lane, -1 for none. Lanes k, k + 8 / size, k + 16 / size, ... of every
        eight are a group.
    starts, indices : ndarray of int64
        Inputs of each panel.
    size : int
        Lanes of a group.
    steps : ndarray of int64, shape (edges,)
        Filled with the step of each edge.

    Returns
    -------
    ndarray of int64, shape (lanes / 8,)
        Steps of each eight lanes.
    """
    lengths = np.zeros(len(lanes) // 8, np.int64)
    stride = 8 // size
    group = np.empty(size, np.int64)
    for octet in range(0, len(lanes), 8):
        for first in range(stride):
            for k in range(size):
                group[k] = lanes[octet + first + k * stride]
            length = order_group(group, starts, indices, size, steps)
            lengths[octet // 8] = max(lengths[octet // 8], length)
    return lengths


@jit(types.void(_tables, _i64, _i64))
def fill_gaps(table, size, zero_row):
    """Let lanes without an edge at a step read a row of zeros in a bank that is free.

    Parameters
    ----------
    table : ndarray of int64, shape (steps of all slices, lanes)
        Rows read; -1 where there is none.
    size : int
        Lanes of a group.
    zero_row : int
        The first of eight rows of zeros.
    """
    stride = 8 // size
    busy = np.zeros(8, np.int64)
    for step in range(len(table)):
        for octet in range(0, table.shape[1], 8):
            for first in range(stride):
                busy[:] = 0
                for k in range(size):
                    row = table[step, octet + first + k * stride]
                    if row >= 0:
                        busy[row % size] = 1
                for k in range(size):
                    lane = octet + first + k * stride
                    if table[step, lane] < 0:
                        free = 0
                        while busy[free] and free < size - 1:
                            free += 1
                        busy[free] = 1
                        table[step, lane] = zero_row + (free - zero_row) % size
