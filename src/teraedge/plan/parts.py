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

CUTS = 8
"""Places looked at to cut neurons in two, along each part."""
PARTS = 4
"""Parts looked along: those with the most padding."""
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
    longest, padding = np.zeros(parts, np.int64), np.zeros(parts, np.int64)
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
        longest[:] = padding[:] = 0
        for k in range(begin, end):
            for part in range(parts):
                padding[part] -= lengths[order[k], part]
                longest[part] = max(longest[part], lengths[order[k], part])
        padding += longest * (end - begin)
        for _ in range(min(parts, PARTS)):
            part = padding.argmax()
            padding[part] = -1
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


@jit(_i64(_ints, _ints, _ints, _tables, _i64, _i64, _tables, _ints))
def order_parts(lanes, starts, indices, counts, size, part_rows, lengths, steps):
    """Find the steps of all edges.

    At each step, of the lanes with the most edges left first, each takes one of the residue that
    has the most left and that no lane of the group has at this step. A lane that cannot wait takes
    any.

    Parameters
    ----------
    lanes : ndarray of int64, shape (slices * width,)
        The panel of each lane, -1 for none; lanes k, k + 8 / size, ... of every eight are a group.
    starts, indices : ndarray of int64
        Inputs of each panel.
    counts : ndarray of int64, shape (panels, parts * size)
        Inputs of each panel by part and residue.
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
    # The edges of each panel by part and residue.
    edges, place = np.empty(len(indices), np.int64), np.empty(parts * size, np.int64)
    for panel in range(len(starts) - 1):
        at = starts[panel]
        for k in range(parts * size):
            place[k] = at
            at += counts[panel, k]
        for edge in range(starts[panel], starts[panel + 1]):
            k = indices[edge] // part_rows * size + indices[edge] % size
            edges[place[k]] = edge
            place[k] += 1
    following = np.zeros(size, np.int64)  # of each lane, the first edge of the part
    left = np.zeros((size, size), np.int64)  # [lane][residue]
    of_lane, of_residue = np.zeros(size, np.int64), np.zeros(size, np.int64)
    begins = np.zeros((size, size), np.int64)
    taken, done = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    meetings = 0
    for group in range(len(lanes) // size):
        first = group // stride * 8 + group % stride
        for k in range(size):
            panel = lanes[first + k * stride]
            following[k] = starts[panel] if panel >= 0 else 0
        for part in range(parts):
            of_residue[:] = 0
            for k in range(size):
                panel = lanes[first + k * stride]
                of_lane[k] = 0
                for residue in range(size):
                    count = counts[panel, part * size + residue] if panel >= 0 else 0
                    left[k, residue] = count
                    begins[k, residue] = following[k]
                    following[k] += count
                    of_lane[k] += count
                    of_residue[residue] += count
            room = lengths[part, first // width]
            for step in range(room):
                taken[:] = False
                done[:] = False
                for _ in range(size):
                    lane = -1
                    for k in range(size):
                        if not done[k] and (lane < 0 or of_lane[k] > of_lane[lane]):
                            lane = k
                    if of_lane[lane] == 0:
                        break
                    done[lane] = True
                    best = other = -1
                    for residue in range(size):
                        if left[lane, residue] == 0:
                            continue
                        if taken[residue]:
                            other = residue
                        elif best < 0 or of_residue[residue] > of_residue[best]:
                            best = residue
                    if best < 0:
                        if of_lane[lane] < room - step:
                            continue
                        best = other
                        meetings += 1
                    taken[best] = True
                    left[lane, best] -= 1
                    of_lane[lane] -= 1
                    of_residue[best] -= 1
                    steps[edges[begins[lane, best] + left[lane, best]]] = step
    return meetings
