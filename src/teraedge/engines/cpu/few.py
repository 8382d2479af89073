"""Runs of a few samples: all threads work on the same ones, and a call costs microseconds."""

import math
import threading
import weakref
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.engines.cpu import team
from teraedge.engines.cpu.lookups import LOOKS_UP
from teraedge.engines.cpu.products import BLOCK, MOST_ROWS
from teraedge.engines.cpu.program import Program
from teraedge.engines.cpu.shared import LAYER, LINE, PART, Shared, addresses
from teraedge.engines.cpu.simd import HEIGHT, LANES, TILE
from teraedge.plan.panels import PanelLayer
from teraedge.plan.rows import RowPart, Widths, row_parts

FEW = 1
"""Samples, at most, that run one after the other, by rows: more are faster side by side."""
GROUPS = 4
"""Registers of samples, at most, that threads run together."""
MOST = GROUPS * LANES
SHALLOW = 16
"""Layers, at most, of a network whose samples run side by side here: in a deep one, samples die or
become equal, and are then dropped from tiles."""
TALL, SINGLE = 1.8, 2.5
"""What a weight of a panel of several neurons, and of a single one, costs for a register of
samples: in multiply-adds, as rows of inputs come from L2."""
SPIN = 1_000_000
"""ns that a thread looks for the next run before it sleeps: waking it up takes as long as a run."""


class ManyShared(NamedTuple):
    """Samples that threads ran together, `FewSamples.most` at a time.

    Attributes
    ----------
    outputs : ndarray of float32, shape (samples, n_out)
    nonzero : ndarray of bool, shape (samples,)
        Which have a row that is not zero.
    noted : ndarray of int64, shape (2, layers)
        Samples live after each layer, and time in ns.
    """

    outputs: NDArray[np.float32]
    nonzero: NDArray[np.bool_]
    noted: NDArray[np.int64]


class FewSamples:
    """A network laid out by rows, and the threads that run it.

    Parameters
    ----------
    program : Program
        All layers that run.
    droppable : ndarray of bool, shape (layers,)
        Whether a row that is zero after each layer stays zero for good.
    threads : int
        Including the one that asks.

    Attributes
    ----------
    most : int
        Samples that can run, at most.
    noted : ndarray of int64, shape (2, layers)
        Of the last run: samples live after each layer, and time in ns.
    nonzero : ndarray of bool, shape (most,)
        Of the last run: which of its samples have a last row that is not zero.
    """

    def __init__(self, program: Program, droppable: NDArray[np.bool_], threads: int) -> None:
        layers = program.layers
        self.most = MOST if len(layers) <= SHALLOW else FEW
        self._program = program  # the kernels have addresses of its arrays
        parts = [row_parts(layer, threads, Widths(BLOCK, LANES, LOOKS_UP)) for layer in layers]
        self._n_out = layers[-1].n_out
        self.noted = np.zeros((2, len(layers)), np.int64)
        self._shared = _shared(program, parts, droppable, self.noted)
        self._table = addresses(self._shared)
        self.nonzero = self._shared.nonzero
        self._sums = _room(parts)
        self._number = 0
        helpers = min(threads, max(len(some) for some in parts)) - 1
        self._sleepers = [_Sleeper() for _ in range(helpers)]
        for number, sleeper in enumerate(self._sleepers, 1):
            arguments = (self._shared, program, number, sleeper, _room(parts))
            threading.Thread(
                target=_serve, args=arguments, name="teraedge-few", daemon=True
            ).start()
        self._finalizer = weakref.finalize(self, _stop, self._shared, self._sleepers)

    def run(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Take 1 to `most` samples through all layers.

        Parameters
        ----------
        features : ndarray of float32, shape (samples, n_in)
            C-contiguous.

        Returns
        -------
        ndarray of float32, shape (samples, n_out)
            None where a feature is not finite.
        """
        outputs = np.empty((len(features), self._n_out), np.float32)
        return outputs if self._ask(features, outputs) else None

    def run_many(self, features: NDArray[Any]) -> "ManyShared":
        """Take any number of finite samples through all layers, `most` at a time."""
        samples = len(features)
        outputs = np.empty((samples, self._n_out), np.float32)
        nonzero, noted = np.empty(samples, np.bool_), np.zeros_like(self.noted)
        for first in range(0, samples, self.most):
            some = slice(first, min(first + self.most, samples))
            self._ask(np.ascontiguousarray(features[some], np.float32), outputs[some])
            nonzero[some] = self.nonzero[: some.stop - first]
            noted += self.noted
        return ManyShared(outputs, nonzero, noted)

    def rest(self) -> None:
        """Let the other threads sleep until the next run, rather than look for it."""
        self._shared.run[1] = 0

    def _ask(self, features: NDArray[np.float32], outputs: NDArray[np.float32]) -> bool:
        """Run samples, and write their outputs; returns whether their features are finite."""
        self._shared.run[1] = len(features)  # who wakes up looks for the run that is to come
        for sleeper in self._sleepers:
            sleeper.wake()
        finite = team.ask(self._table, self._number + 1, features, outputs, self._sums)
        self._number += finite
        return bool(finite)

    def close(self) -> None:
        """Let the threads end."""
        self._finalizer()


class _Sleeper:
    """A thread that sleeps when it was not needed for some time."""

    def __init__(self) -> None:
        self.sleeps = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def sleep(self) -> None:
        self.sleeps = True
        self._gate.acquire()

    def wake(self) -> None:
        if self.sleeps:  # a thread that is just about to misses a run, which is no harm
            self.sleeps = False
            self._gate.release()


def _serve(
    shared: Shared, program: Program, number: int, sleeper: _Sleeper, room: NDArray[np.float32]
) -> None:
    """Help in runs until told to stop; the body of a thread, of which the asking one is 0."""
    table, run = addresses(shared), 0
    while run != team.STOP:
        sleeper.sleep()
        run = team.serve(table, number, run, SPIN, room)


def _stop(shared: Shared, sleepers: list[_Sleeper]) -> None:
    shared.run[0] = team.STOP
    for sleeper in sleepers:
        sleeper.wake()


def _room(parts: list[list[RowPart]]) -> NDArray[np.float32]:
    """Return room for a block of any part, and a sum a neuron, and one more, in whole tiles."""
    width = max(part.last - part.first for some in parts for part in some)
    return aligned_zeros((max(BLOCK + (width // TILE + 1) * TILE, MOST_ROWS * BLOCK),))


def aligned_zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """Return zeros that begin at a cache line, as vectors are read."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    lines = memory[-memory.ctypes.data % 64 :]
    return np.asarray(lines[:size].view(dtype).reshape(shape))


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that begins at a cache line."""
    copy = aligned_zeros(values.shape, values.dtype)
    copy[:] = values
    return copy


def _costs(layer: PanelLayer, parts: list[RowPart]) -> tuple[float, float]:
    """Return what a sample costs by products, and a register of samples in panels.

    The unit is a multiply-add of a register. What is not all dense has no products. Threads share
    panels evenly, but of products a part may have more than another.
    """
    products = len(parts) * max(part.dense.size for part in parts) / LANES
    if any(len(part.targets) for part in parts):
        products = math.inf
    tall, single = layer.tall.weights.size, layer.single.weights.size
    if layer.value is not None:
        tall, single = len(layer.tall.indices) * HEIGHT, len(layer.single.indices)
    return products, TALL * tall + SINGLE * single


def _shared(
    program: Program,
    parts: list[list[RowPart]],
    droppable: NDArray[np.bool_],
    noted: NDArray[np.int64],
) -> Shared:
    layers = program.layers
    table = np.zeros(len(layers), LAYER)
    pieces = np.zeros(sum(map(len, parts)), PART)
    first = bias = 0
    for row, layer, some, drop in zip(table, layers, parts, droppable, strict=True):
        row["first_part"], row["parts"], row["bias"] = first, len(some), bias
        row["curve"] = CURVES.index(layer.curve)
        row["droppable"], (row["lower"], row["upper"]) = drop, layer.clamp
        row["sample_cost"], row["group_cost"] = _costs(layer, some)
        first, bias = first + len(some), bias + layer.n_out
    flat = [part for some in parts for part in some]
    starts, fours, dense = [np.empty(0, np.int64)], 0, 0
    rows = 0
    ends, windows, groups = [np.empty(0, np.int64)], 0, 0
    for piece, part in zip(pieces, flat, strict=True):
        piece["first"], piece["last"] = part.first, part.last
        piece["starts"], piece["has_edges"] = rows, len(part.targets) > 0
        piece["n_in"], piece["dense"] = len(part.starts) - 1, dense
        piece["wide"], piece["narrow"] = part.wide, part.narrow
        starts.append(part.starts + fours)
        rows, fours = rows + len(part.starts), fours + len(part.targets) // 4
        dense += part.dense.size
        looked_up = part.lookups
        piece["groups"], piece["ends"] = max(len(looked_up.ends) - 1, 0), groups
        piece["slots"], piece["cost"] = looked_up.weights.size, part.cost
        ends.append(looked_up.ends + windows)
        groups, windows = groups + len(looked_up.ends), windows + len(looked_up.bases)
    width = max(max(layer.n_in, layer.n_out) for layer in layers)
    width = -(-width // TILE) * TILE  # whole cache lines
    most = max(map(len, parts))
    groups = GROUPS if len(layers) <= SHALLOW else 1
    found = [part.lookups for part in flat]
    return Shared(
        table,
        pieces,
        np.concatenate(starts),
        np.concatenate([part.targets for part in flat]).view(np.uint64),
        np.concatenate([part.weights for part in flat]),
        aligned(np.concatenate([part.dense for part in flat])),
        np.concatenate([layer.bias for layer in layers]),
        np.concatenate(ends),
        np.concatenate([some.bases for some in found]),
        aligned(np.concatenate([some.picks.ravel() for some in found])),
        aligned(np.concatenate([some.weights.ravel() for some in found])),
        program.table,
        values=aligned_zeros((2, groups * LANES, width)),
        active=aligned_zeros((2, FEW, width), np.int32),
        counts=np.zeros((2, FEW, most), np.int64),
        lanes=aligned_zeros((2, groups, width * LANES)),
        seen=np.zeros((len(layers), most, groups), np.uint64),
        states=np.zeros(len(pieces) * LINE, np.int64),
        run=np.zeros(2, np.int64),
        nanos=noted[1],
        live=noted[0],
        nonzero=np.zeros(groups * LANES, np.bool_),
    )
