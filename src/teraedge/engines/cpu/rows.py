"""The compiled functions over the row layout: one sample at a time, zeros skipped."""

import numpy as np

from teraedge.engines.cpu.curves import curves
from teraedge.engines.cpu.lookups import look_up
from teraedge.engines.cpu.products import BLOCK, stream
from teraedge.engines.cpu.simd import LANES, TILE, VECTORS, multiply_add
from teraedge.jit import inlined

ONE, TWO, THREE, FOUR = (np.uint64(number) for number in (1, 2, 3, 4))


@inlined
def scatter(shared, part, active, x, sums):
    """Multiply some nonzero inputs into the sums of the neurons that they go to.

    Four edges at a time, whose targets are read as one number. They differ, unless they only pad.
    Numbers are unsigned, because numba adds the length to a negative index, after a look at each.
    """
    mask, bits = np.uint64(0xFFFF), np.uint64(16)
    for k in range(len(active)):
        row = part.starts + active[k]
        value = x[active[k]]
        for four in range(np.uint64(shared.starts[row]), np.uint64(shared.starts[row + 1])):
            targets = shared.targets[four]
            a, b = targets & mask, targets >> bits & mask
            c, d = targets >> (bits + bits) & mask, targets >> (bits + bits + bits)
            edge = four * FOUR
            one = multiply_add(value, shared.weights[edge], sums[a])
            two = multiply_add(value, shared.weights[edge + ONE], sums[b])
            three = multiply_add(value, shared.weights[edge + TWO], sums[c])
            last = multiply_add(value, shared.weights[edge + THREE], sums[d])
            sums[a], sums[b], sums[c], sums[d] = one, two, three, last


@inlined
def scatter_all(shared, part, index, sample, turn, sums):
    """Multiply the nonzero inputs of a sample into the sums that scattered weights go to.

    They come as the layer before left them, part after part; the features are one.
    """
    for before in range((shared.layers[index - 1].parts if index else 1) * part.has_edges):
        begin = shared.parts[shared.layers[index - 1].first_part + before].first if index else 0
        active = shared.active[turn, sample, begin:][: shared.counts[turn, sample, before]]
        scatter(shared, part, active, shared.values[turn, sample], sums)


@inlined
def looks_up(shared, part, index, turn, sample):
    """Tell whether lookups, which also take the inputs that are zero, are the faster way."""
    active = 0
    for before in range(shared.layers[index - 1].parts if index else 1):
        active += shared.counts[turn, sample, before]
    return part.groups > 0 and part.slots * part.n_in <= part.cost * active


@inlined
def look_all_up(shared, part, x, sums):
    """Write the sums of all neurons of a part, a register at a time."""
    picks, weights = shared.picks.ctypes.data, shared.picked.ctypes.data
    for group in range(part.groups):
        look_up(
            x, shared.bases.ctypes.data, picks, weights, shared.ends[part.ends + group],
            shared.ends[part.ends + group + 1], sums[group * LANES :].ctypes.data,
        )  # fmt: skip


@inlined
def finish(layer, part, bias, sums, y, active):
    """Add the bias of each neuron to its sum, and apply the activation.

    Writes the outputs, and the numbers of those that are not zero; returns how many those are.
    """
    width, count = part.last - part.first, 0
    for j in range(width):
        value = sums[j] + bias[j]
        value = layer.lower if value < layer.lower else value
        sums[j] = layer.upper if value > layer.upper else value
    if layer.curve:
        curves(layer.curve, sums.ctypes.data, (width + TILE - 1) // TILE, VECTORS)
    for j in range(width):
        y[part.first + j] = sums[j]
        active[count] = part.first + j
        count += sums[j] != 0
    return count


@inlined
def run_rows(shared, index, number, samples, sums):
    """Run part `number` of layer `index` for a few samples, one after the other."""
    layer = shared.layers[index]
    part = shared.parts[layer.first_part + number]
    width, turn = part.last - part.first, index % 2
    bias = shared.bias[layer.bias + part.first : layer.bias + part.last]
    seen = np.uint64(0)
    totals = sums[BLOCK:]
    for sample in range(samples):
        x = shared.values[turn, sample]
        if looks_up(shared, part, index, turn, sample):
            look_all_up(shared, part, x.ctypes.data, totals)
        else:
            totals[:width] = 0
            stream(shared, part, index, sample, turn, sums)
            scatter_all(shared, part, index, sample, turn, totals)
        y = shared.values[1 - turn, sample]
        active = shared.active[1 - turn, sample, part.first :]
        count = finish(layer, part, bias, totals, y, active)
        shared.counts[1 - turn, sample, number] = count
        seen |= np.uint64(count > 0) << np.uint64(sample)
    shared.seen[index, number, 0] = seen


@inlined
def load_values(shared, features):
    """Copy a few samples to where the first layer reads them."""
    for sample in range(features.shape[0]):
        count = 0
        for neuron in range(features.shape[1]):
            value = features[sample, neuron]
            shared.values[0, sample, neuron] = value
            shared.active[0, sample, count] = neuron
            count += value != 0
        shared.counts[0, sample, 0] = count
