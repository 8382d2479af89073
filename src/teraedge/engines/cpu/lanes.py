"""The compiled functions over panels where threads share a layer: a register of samples a neuron.

Rows of one register lie four times as close together as those of a tile, so that few samples of
many neurons stay in the nearest caches; up to four or eight samples have rows of just so many.
"""

import numpy as np
from numba import carray

from teraedge.engines.cpu.curves import curves
from teraedge.engines.cpu.panels import narrow_panels
from teraedge.engines.cpu.shared import pointer
from teraedge.engines.cpu.simd import HEIGHT, LANES, transpose_lanes
from teraedge.jit import inlined


@inlined
def span(panels, number, parts):
    """Return the first panel of a part, and how many it has."""
    first = panels.count * number // parts
    return first, panels.count * (number + 1) // parts - first


@inlined
def lanes_of(samples):
    """Return the samples of a row: of a register, or of a part of it that has room for all.

    Of some samples and all that follow: the last ones of many have shorter rows, too.
    """
    if samples <= 4:
        return 4
    return min(8, LANES) if samples <= 8 else LANES


@inlined
def curve_outputs(curve, outputs, count, lanes, y, room):
    """Apply a smooth activation to some neurons, whose numbers lie at an address."""
    seen = np.uint64(0)
    for neuron in carray(pointer(outputs, np.int32), (count,)):
        row = carray(pointer(y + neuron * lanes * 4, np.float32), (lanes,))
        room[:LANES] = 0
        room[:lanes] = row
        curves(curve, room.ctypes.data, 1, 1)
        row[:] = room[:lanes]
        for lane in range(lanes):
            seen |= np.uint64(row[lane] != 0) << np.uint64(lane)
    return seen


@inlined
def run_lanes(shared, index, number, samples, room):
    """Run part `number` of layer `index` for samples side by side, a row of lanes a neuron."""
    layer, parts, turn = shared.panels[index], shared.layers[index].parts, index % 2
    tall, single = layer.tall, layer.single
    first, count = span(tall, number, parts)
    first_single, count_single = span(single, number, parts)
    for group in range((samples + LANES - 1) // LANES):
        lanes = lanes_of(samples - group * LANES)
        x = shared.lanes[turn, group].ctypes.data
        y = shared.lanes[1 - turn, group].ctypes.data
        seen = narrow_panels(
            HEIGHT, lanes, layer.equal, layer.index_bytes, x, y, count, tall.starts + first * 8,
            tall.indices, tall.weights, tall.outputs + first * HEIGHT * 4, layer.bias,
            layer.value, layer.lower, layer.upper,
        )  # fmt: skip
        seen |= narrow_panels(
            1, lanes, layer.equal, layer.index_bytes, x, y, count_single,
            single.starts + first_single * 8, single.indices, single.weights,
            single.outputs + first_single * 4, layer.bias, layer.value, layer.lower, layer.upper,
        )  # fmt: skip
        if layer.curve:
            outputs, singles = tall.outputs + first * HEIGHT * 4, single.outputs + first_single * 4
            seen = curve_outputs(layer.curve, outputs, count * HEIGHT, lanes, y, room)
            seen |= curve_outputs(layer.curve, singles, count_single, lanes, y, room)
        shared.seen[index, number, group] = seen


@inlined
def lanes_to_rows(shared, index, number, samples):
    """Write what part `number` of a layer has put out also as rows."""
    layer, parts, turn = shared.panels[index], shared.layers[index].parts, index % 2
    for panels, height in ((layer.tall, HEIGHT), (layer.single, 1)):
        first, count = span(panels, number, parts)
        outputs = carray(pointer(panels.outputs + first * height * 4, np.int32), (count * height,))
        for sample in range(samples):
            lanes = shared.lanes[1 - turn, sample // LANES, sample % LANES :]
            values = shared.values[1 - turn, sample]
            width = lanes_of(samples - sample // LANES * LANES)
            for neuron in outputs:
                values[neuron] = lanes[neuron * width]


@inlined
def load_lanes(shared, features):
    """As `load_values`, for samples side by side; lanes without a sample are zero."""
    samples, neurons = features.shape
    for first in range(0, samples, LANES):
        width = lanes_of(samples - first)
        lanes = shared.lanes[0, first // LANES]
        whole = neurons // LANES * LANES if first + LANES <= samples else 0
        for neuron in range(0, whole, LANES):
            transpose_lanes(
                features.ctypes.data + (first * neurons + neuron) * 4, neurons,
                lanes.ctypes.data + neuron * LANES * 4, LANES,
            )  # fmt: skip
        for neuron in range(whole, neurons):
            for lane in range(width):
                inside = first + lane < samples
                lanes[neuron * width + lane] = features[first + lane, neuron] if inside else 0
