"""Order the edges of a layer whose inputs come part after part.

Every slice of neurons has a list of edges for each part, as long as its neuron with the most inputs
there. So a slice should have neurons that read about as much from every part: `similar_slices`
cuts the neurons in two again and again, each time where that leaves the least padding.

Lists are short, so a residue (see `banks`) may well have more edges of a group than the list has
steps. A step more for the whole slice would cost more than a few reads that meet in a bank:
`order_parts` lets them.
"""

import numpy as np
from numba import types

from teraedge.jit import jit
from teraedge.plan.banks import FREE, color_edge

CUTS = 8
"""Places looked at to cut neurons in two, along each part."""
WINDOW = 64
"""Neurons looked at for each place of a group."""

_i64, _ints, _tables = types.int64, types.int64[::1], types.int64[:, ::1]


@jit(_tables(_ints, _ints, _i64, _i64, _i64))
def part_counts(starts, indices, part_rows, parts, size):
    """Count the inputs of each panel by part and residue, shape (panels, parts * size)."""
    counts = np.zeros((len(starts) - 1, parts * size), np.int64)
    for panel in range(len(starts) - 1):
        for edge in range(starts[panel], starts[panel + 1]):
            row = indices[edge]
            counts[panel, row // part_rows * size + row % size] += 1
    return counts


@jit(_ints(_tables, _i64))
def similar_slices(lengths, width):
    """Order panels such that those of a slice have about as many edges in every part.

    Parameters
    ----------
    lengths : ndarray of int64, shape (panels, parts)
        Edges, or pairs of edges, in each part.
    width : int
        Panels of a slice.

    Returns
    -------
    ndarray of int64, shape (panels,)
        The panels, slice after slice; only the last may have fewer than `width`.
    """
    panels, parts = lengths.shape
    order, sorted_ = np.arange(panels), np.empty(panels, np.int64)
    best_order = np.empty(panels, np.int64)
    most = 1
    for panel in range(panels):
        for part in range(parts):
            most = max(most, lengths[panel, part] + 1)
    first_of = np.zeros(most + 1, np.int64)
    slices = -(-panels // width)
    below, above = np.zeros(parts, np.int64), np.zeros((CUTS + 1, parts), np.int64)
    stack = np.empty((64 + slices, 2), np.int64)
    stack[0, 0], stack[0, 1] = 0, slices
    depth = 1
    while depth > 0:
        depth -= 1
        first, last = stack[depth]
        if last - first < 2:
            continue
        begin, end = first * width, min(last * width, panels)
        best, best_cut = np.int64(2**62), first
        cuts = min(CUTS, last - first) - 1  # between as many pieces of about as many slices
        for part in range(parts):
            # By length in this part, longest first, those of equal length as they were.
            first_of[:] = 0
            for k in range(begin, end):
                first_of[most - lengths[order[k], part]] += 1
            for value in range(most):
                first_of[value + 1] += first_of[value]
            for k in range(begin, end):
                at = most - 1 - lengths[order[k], part]
                sorted_[begin + first_of[at]] = order[k]
                first_of[at] += 1
            # The longest list of each part from every cut on to the end.
            above[:] = 0
            for cut in range(cuts, -1, -1):
                start = begin + (last - first) * cut // (cuts + 1) * width
                stop = min(begin + (last - first) * (cut + 1) // (cuts + 1) * width, end)
                if cut < cuts:
                    above[cut] = above[cut + 1]
                for k in range(start, stop):
                    for other in range(parts):
                        above[cut, other] = max(above[cut, other], lengths[sorted_[k], other])
            below[:] = 0
            improved = False
            for cut in range(1, cuts + 1):
                start = begin + (last - first) * (cut - 1) // (cuts + 1) * width
                stop = begin + (last - first) * cut // (cuts + 1) * width
                for k in range(start, stop):
                    for other in range(parts):
                        below[other] = max(below[other], lengths[sorted_[k], other])
                middle = first + (last - first) * cut // (cuts + 1)
                cost = (middle - first) * below.sum() + (last - middle) * above[cut].sum()
                if cost < best:
                    best, best_cut, improved = cost, middle, True
            if improved:
                best_order[begin:end] = sorted_[begin:end]
        order[begin:end] = best_order[begin:end]
        stack[depth, 0], stack[depth, 1] = first, best_cut
        stack[depth + 1, 0], stack[depth + 1, 1] = best_cut, last
        depth += 2
    return order


@jit(_ints(_ints, _tables, _i64, _i64))
def mixed_groups(order, counts, width, size):
    """Put the panels of each slice into groups that read about as much of every residue.

    Parameters
    ----------
    order : ndarray of int64, shape (panels,)
        The panels, slice after slice.
    counts : ndarray of int64, shape (panels, parts * size)
        Inputs of each panel by part and residue.
    width : int
        Panels of a slice.
    size : int
        Panels of a group.

    Returns
    -------
    ndarray of int64, shape (panels,)
        The panels, slice after slice, in each group after group.
    """
    result = order.copy()
    load = np.zeros(counts.shape[1], np.int64)
    for begin in range(0, len(order), width):
        end = min(begin + width, len(order))
        for place in range(begin, end):
            if (place - begin) % size == 0:
                load[:] = 0
            best, best_cost = place, np.int64(2**62)
            for at in range(place, min(end, place + WINDOW)):
                cost = np.int64(0)
                for k in range(len(load)):
                    both = load[k] + counts[result[at], k]
                    cost += both * both
                if cost < best_cost:
                    best, best_cost = at, cost
            panel = result[best]
            result[best] = result[place]
            result[place] = panel
            load += counts[panel]
    return result


@jit(_i64(_ints, _ints, _ints, _i64, _i64, _tables, _ints))
def order_parts(lanes, starts, indices, size, part_rows, lengths, steps):
    """Find the steps of all edges.

    Parameters
    ----------
    lanes : ndarray of int64, shape (slices * width,)
        The panel of each lane, -1 for none; lanes k, k + 8 / size, ... of every eight are a group.
    starts, indices : ndarray of int64
        Inputs of each panel.
    size, part_rows : int
        Lanes of a group; rows of a part.
    lengths : ndarray of int64, shape (parts, slices)
        Steps of each list, at least as many as a panel of the slice has edges in the part.
    steps : ndarray of int64, shape (edges,)
        Filled with the step of each edge in the list of its part.

    Returns
    -------
    int
        How many reads meet another in a bank.
    """
    parts, slices = lengths.shape
    width, stride = len(lanes) // slices, 8 // size
    degree = np.empty(2 * size, np.int64)
    meetings = 0
    for first in range(0, len(lanes), 8):
        for group in range(first, first + stride):
            most = 0
            for k in range(group, first + 8, stride):
                if lanes[k] >= 0:
                    most += starts[lanes[k] + 1] - starts[lanes[k]]
            ends, path = np.empty((most, 2), np.int64), np.empty(most, np.int64)
            edges = np.empty(most, np.int64)
            for part in range(parts):
                begin, end = part * part_rows, (part + 1) * part_rows
                degree[:] = 0
                count = 0
                for k in range(size):
                    panel = lanes[group + k * stride]
                    if panel < 0:
                        continue
                    for edge in range(starts[panel], starts[panel + 1]):
                        if begin <= indices[edge] < end:
                            residue = indices[edge] % size
                            ends[count, 0], ends[count, 1], edges[count] = k, residue, edge
                            degree[k] += 1
                            degree[size + residue] += 1
                            count += 1
                if count == 0:
                    continue
                length = degree.max()
                by_lane = np.full((size, length), FREE)
                by_residue = np.full((size, length), FREE)
                for k in range(count):
                    color_edge(by_lane, by_residue, ends, k, path)
                room = lengths[part, first // width]
                for lane in range(size):
                    for step in range(length):
                        edge = by_lane[lane, step]
                        if edge == FREE:
                            continue
                        if step < room:
                            steps[edges[edge]] = step
                            continue
                        residue, to = ends[edge, 1], -1
                        for other in range(room):
                            if by_lane[lane, other] == FREE:
                                to = other
                                if by_residue[residue, other] == FREE:
                                    break
                        if by_residue[residue, to] == FREE:
                            by_residue[residue, to] = edge
                        else:
                            meetings += 1
                        by_lane[lane, to] = edge
                        steps[edges[edge]] = to
    return meetings
