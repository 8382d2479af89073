"""Runs of a few samples: all threads work on the same ones, and a call costs microseconds."""

import threading
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.engines.cpu import rows as kernels
from teraedge.engines.cpu.rows import LAYER, LINE, PART, STOP, Rows
from teraedge.engines.cpu.simd import TILE
from teraedge.plan.panels import PanelLayer
from teraedge.plan.rows import RowPart, row_parts

FEW = 4
"""Samples, at most, that run like this: more are faster side by side."""
SPIN = 1_000_000
"""ns that a thread looks for the next run before it sleeps: waking it up takes as long as a run."""


class FewSamples:
    """A network laid out by rows, and the threads that run it.

    Parameters
    ----------
    layers : sequence of PanelLayer
        All layers that run.
    droppable : ndarray of bool, shape (layers,)
        Whether a row that is zero after each layer stays zero for good.
    threads : int
        Including the one that asks.

    Attributes
    ----------
    live, nanos : ndarray of int64, shape (layers,)
        Of the last run: samples live after each layer, and time.
    """

    def __init__(
        self, layers: Sequence[PanelLayer], droppable: NDArray[np.bool_], threads: int
    ) -> None:
        parts = [row_parts(layer, threads) for layer in layers]
        self._n_out = layers[-1].n_out
        self._rows = _rows(layers, parts, droppable)
        self._table = kernels.addresses(self._rows)
        self.live, self.nanos = self._rows.live, self._rows.nanos
        self._sums = _room(parts)
        self._number = 0
        helpers = min(threads, max(len(some) for some in parts)) - 1
        self._sleepers = [_Sleeper() for _ in range(helpers)]
        for sleeper in self._sleepers:
            arguments = (self._rows, sleeper, _room(parts))
            threading.Thread(
                target=_serve, args=arguments, name="teraedge-few", daemon=True
            ).start()
        self._finalizer = weakref.finalize(self, _stop, self._rows, self._sleepers)

    def run(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], int] | None:
        """Take up to `FEW` samples through all layers.

        Parameters
        ----------
        features : ndarray of float32, shape (samples, n_in)
            C-contiguous.

        Returns
        -------
        outputs : ndarray of float32, shape (samples, n_out)
        nonzero : int
            A bit a sample: whether its outputs have a nonzero. In place of both None where a
            feature is not finite.
        """
        for sleeper in self._sleepers:
            sleeper.wake()
        outputs = np.empty((len(features), self._n_out), np.float32)
        nonzero = kernels.ask(self._table, self._number + 1, features, outputs, self._sums)
        if nonzero < 0:
            return None
        self._number += 1
        return outputs, nonzero

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


def _serve(rows: Rows, sleeper: _Sleeper, room: NDArray[np.float32]) -> None:
    """Help in runs until told to stop; the body of a thread."""
    table, run = kernels.addresses(rows), 0
    while run != STOP:
        sleeper.sleep()
        run = kernels.serve(table, run, SPIN, room)


def _stop(rows: Rows, sleepers: list[_Sleeper]) -> None:
    rows.run[0] = STOP
    for sleeper in sleepers:
        sleeper.wake()


def _room(parts: list[list[RowPart]]) -> NDArray[np.float32]:
    """Return room for the sums of any part: two a neuron, and one more, in whole tiles."""
    width = max(part.last - part.first for some in parts for part in some)
    memory = np.zeros((2 * width // TILE + 1) * TILE + 16, np.float32)
    return memory[-memory.ctypes.data % 64 // 4 :][: len(memory) - 16]


def _rows(
    layers: Sequence[PanelLayer], parts: list[list[RowPart]], droppable: NDArray[np.bool_]
) -> Rows:
    table = np.zeros(len(layers), LAYER)
    pieces = np.zeros(sum(map(len, parts)), PART)
    first = bias = 0
    for row, layer, some, drop in zip(table, layers, parts, droppable, strict=True):
        row["n_in"], row["n_out"] = layer.n_in, layer.n_out
        row["first_part"], row["parts"], row["bias"] = first, len(some), bias
        row["curve"] = CURVES.index(layer.curve)
        row["droppable"], (row["lower"], row["upper"]) = drop, layer.clamp
        first, bias = first + len(some), bias + layer.n_out
    flat = [part for some in parts for part in some]
    starts, fours, dense = [np.empty(0, np.int64)], 0, 0
    rows = 0
    for piece, part in zip(pieces, flat, strict=True):
        piece["first"], piece["last"] = part.first, part.last
        piece["starts"], piece["has_edges"] = rows, len(part.targets) > 0
        piece["dense"], piece["dense_width"] = dense, part.dense.shape[1]
        starts.append(part.starts + fours)
        rows, fours = rows + len(part.starts), fours + len(part.targets) // 4
        dense += part.dense.size
    width = max(max(layer.n_in, layer.n_out) for layer in layers)
    lines, most = len(layers) * LINE, max(map(len, parts))
    return Rows(
        table,
        pieces,
        np.concatenate(starts),
        np.concatenate([part.targets for part in flat]).view(np.uint64),
        np.concatenate([part.weights for part in flat]),
        np.concatenate([part.dense.ravel() for part in flat]),
        np.concatenate([layer.bias for layer in layers]),
        values=np.zeros((2, FEW, width), np.float32),
        active=np.zeros((2, FEW, width), np.int32),
        counts=np.zeros((2, FEW, most), np.int64),
        claimed=np.zeros(lines, np.int64),
        done=np.zeros(lines, np.int64),
        run=np.zeros(2, np.int64),
        nanos=np.zeros(len(layers), np.int64),
        live=np.zeros(len(layers), np.int64),
    )
