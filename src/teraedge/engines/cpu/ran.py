"""What a run did, layer by layer: for the trace of its result, and for `explain`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cpu.pool import Pool
from teraedge.engines.cpu.simd import LANES
from teraedge.plan.explain import LastRun
from teraedge.result import LayerTrace


@dataclass(frozen=True)
class Ran:
    """Counts of a run, each of shape (layers that run,).

    Attributes
    ----------
    entered : ndarray of int64
        Samples that went into the layer, lanes that ran empty beside them included.
    live : ndarray of int64
        Samples live after it.
    executed : ndarray of int64
        Multiply-adds.
    seconds : ndarray of float64
        Wall time, threads side by side.
    """

    entered: NDArray[np.int64]
    live: NDArray[np.int64]
    executed: NDArray[np.int64]
    seconds: NDArray[np.float64]

    @classmethod
    def in_tiles(cls, pools: Sequence[Pool], edges: Sequence[int]) -> Self:
        """Return what threads, of which there may be none, did on their own."""
        none = np.zeros(len(edges), np.int64)
        live = np.sum([none, *(pool.live for pool in pools)], axis=0)
        executed = np.sum([none, *(pool.executed for pool in pools)], axis=0)
        nanos = np.sum([none, *(pool.nanos for pool in pools)], axis=0)
        registers = -(-executed // (np.maximum(edges, 1) * LANES))
        return cls(registers * LANES, live, executed, nanos / (1e9 * max(len(pools), 1)))

    @classmethod
    def shared(cls, samples: int, noted: NDArray[np.int64], edges: Sequence[int]) -> Self:
        """Return what threads did together, as `FewSamples` notes it."""
        live, nanos = noted
        entered = np.concatenate(([samples], live[:-1]))
        return cls(entered, live, entered * np.array(edges, np.int64), nanos * 1e-9)

    def plus(self, other: Self) -> Self:
        """Return what was done in this run and after it in another one."""
        return type(self)(
            self.entered + other.entered,
            self.live + other.live,
            self.executed + other.executed,
            self.seconds + other.seconds,
        )

    def trace(self, origin: Sequence[int]) -> list[LayerTrace]:
        """Return the trace of the layers as given, `origin` of those that run."""
        trace = [LayerTrace(0, 0, 0.0)] * (origin[-1] + 1)
        counts = self.live.tolist(), self.executed.tolist(), self.seconds.tolist()
        for number, live, edges, seconds in zip(origin, *counts, strict=True):
            before = trace[number]  # a layer as given may run in several parts
            trace[number] = LayerTrace(live, before.edges + edges, before.seconds + seconds)
        return trace

    def last(self, samples: int, workers: int) -> LastRun:
        """Return what `explain` wants to know."""
        return LastRun(samples, self.entered.tolist(), self.seconds.tolist(), workers)
