"""The compiled functions for a few samples: threads share every layer, and meet after each.

The thread that was asked for a run walks through the layers and takes part after part of each; the
others do the same if they come in time, and whoever comes late finds nothing left to take. So none
has to be waited for but one that has taken a part. The state of a part is a number that only ever
goes up, run after run: there is nothing to reset that a late thread could still look at.
"""

import numpy as np
from numba import types

from teraedge.engines.cpu.atomics import (
    let_others_run,
    load_atomic,
    pause,
    store_atomic,
    swap_if_equal,
)
from teraedge.engines.cpu.lanes import lanes_to_rows, load_lanes, run_lanes
from teraedge.engines.cpu.products import run_products
from teraedge.engines.cpu.rows import ONE, load_values, run_rows
from teraedge.engines.cpu.shared import LINE, opened
from teraedge.engines.cpu.simd import LANES, nanoseconds
from teraedge.jit import inlined, jit

LOOKS = 64
"""Looks at what another thread writes, before others get a chance to run on this core."""
STREAM = 6
"""Samples up to which products take as long as their weights take to come."""
EXPONENT = np.uint32(0x7F800000)
"""The bits of a float32 that are all set in infinities and NaN."""
STOP = -1
"""The number of the run that ends a thread."""

_i64, _f32 = types.int64, types.float32
_ints, _floats, _outputs = _i64[::1], _f32[::1], _f32[:, ::1]
_features = types.Array(_f32, 2, "C", readonly=True)


@inlined
def take(address, run):
    """Take a part, whose state is at an address, for a run; tells whether nobody else had."""
    state = load_atomic(address)
    return state < 2 * run - 1 and swap_if_equal(address, state, 2 * run - 1)


@inlined
def note_live(shared, samples):
    """Write which samples live after each layer, and which have a nonzero at the end."""
    for index in range(len(shared.layers)):
        layer = shared.layers[index]
        live = 0
        for sample in range(samples):
            bit = np.uint64(0)
            for part in range(layer.parts):
                bit |= shared.seen[index, part, sample // LANES] >> np.uint64(sample % LANES)
            shared.nonzero[sample] = bit & ONE
            live += np.int64(bit & ONE)
        shared.live[index] = live if layer.droppable else samples


@inlined
def wait(address, number):
    """Wait until a counter is as high as a number."""
    looks = 0
    while load_atomic(address) < number:
        pause()
        looks += 1
        if looks % LOOKS == 0:
            let_others_run()


@inlined
def by_products(shared, index, samples):
    """Tell whether a layer reads some samples row by row, as does who asked for the run."""
    if index == len(shared.layers):
        return True
    layer = shared.layers[index]
    groups = (samples + LANES - 1) // LANES
    return max(samples, STREAM) * layer.sample_cost < groups * layer.group_cost


@inlined
def run_part(shared, index, number, samples, sums):
    """Run part `number` of layer `index` for some samples."""
    if samples <= len(shared.active[0]):
        run_rows(shared, index, number, samples, sums)
    elif by_products(shared, index, samples):
        after = by_products(shared, index + 1, samples)
        run_products(shared, index, number, samples, after, sums)
    else:
        run_lanes(shared, index, number, samples, sums)
        if by_products(shared, index + 1, samples):
            lanes_to_rows(shared, index, number, samples)


@inlined
def walk(shared, run, samples, sums, me):
    """Go through all layers of a run, and take what parts are left of each.

    Every thread begins with the part of its own number, so that the weights of a part stay in the
    cache of one core. The first part of a layer is left to the thread that was asked, number 0,
    which also notes what the trace will say.
    """
    begin = nanoseconds()
    for index in range(len(shared.layers)):
        parts, first = shared.layers[index].parts, shared.layers[index].first_part
        states = shared.states.ctypes.data + first * LINE * 8
        for step in range(parts):
            number = (me + step) % parts
            mine = number > 0 or me == 0
            if mine and take(states + number * LINE * 8, run):
                run_part(shared, index, number, samples, sums)
                store_atomic(states + number * LINE * 8, 2 * run)
        for number in range(parts):
            wait(states + number * LINE * 8, 2 * run)
        if me == 0:
            end = nanoseconds()
            shared.nanos[index], begin = end - begin, end


@jit(types.boolean(_ints, _i64, _features, _outputs, _floats))
def ask(table, run, features, out, sums):
    """Run some samples, and let the other threads help.

    Parameters
    ----------
    table : ndarray of int64
        As `addresses` makes it.
    run : int
        The number of this run: one more than that of the last that was finite.
    features : ndarray of float32, shape (samples, n_in)
    out : ndarray of float32, shape (samples, n_out)
        To be written.
    sums : ndarray of float32
        Room as `few` makes it: from a cache line on, and of this thread alone.

    Returns
    -------
    bool
        Whether all features are finite; else nothing ran.
    """
    shared, samples = opened(table), len(features)
    infinite = False
    for sample in range(samples):
        for bits in features[sample].view(np.uint32):
            infinite |= bits & EXPONENT == EXPONENT
    if infinite:
        return False
    if samples <= len(shared.active[0]):
        load_values(shared, features)
    elif by_products(shared, 0, samples):
        shared.values[0, :samples, : features.shape[1]] = features
    else:
        load_lanes(shared, features)
    shared.run[1] = samples
    store_atomic(shared.run.ctypes.data, run)
    walk(shared, run, samples, sums, 0)
    note_live(shared, samples)
    out[:] = shared.values[len(shared.layers) % 2, :samples, : out.shape[1]]
    return True


@jit(_i64(_ints, _i64, _i64, _i64, _floats))
def serve(table, me, run, nanos, sums):
    """Take part in every run after `run`, as thread `me`, until none came for some time.

    Or until the last run's samples read zero, by which the asking thread says that none is to come.
    Returns the last one.
    """
    shared = opened(table)
    end = nanoseconds() + nanos
    while True:
        latest = run
        for _ in range(LOOKS):
            latest = load_atomic(shared.run.ctypes.data)
            if latest != run:
                break
            pause()
        if latest == STOP:
            return STOP
        if latest != run:
            run = latest
            walk(shared, run, load_atomic(shared.run.ctypes.data + 8), sums, me)
            end = nanoseconds() + nanos
        elif nanoseconds() > end or load_atomic(shared.run.ctypes.data + 8) == 0:
            return run
        else:
            let_others_run()
