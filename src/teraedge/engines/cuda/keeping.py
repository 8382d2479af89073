"""Rows out of the tiles of a run, into memory of their own."""

from collections.abc import Callable
from functools import partial

import numpy as np

from teraedge.engines.cuda.driver import Device, Memory, Stream
from teraedge.engines.cuda.feeding import Loader
from teraedge.engines.cuda.output import Rows
from teraedge.engines.cuda.state import Counters, Live, RunState
from teraedge.plan.device import DeviceLayer
from teraedge.plan.kernel_sizes import LANES
from teraedge.plan.plan import Plan
from teraedge.result import LazyBlock

Both = tuple[Memory, Memory]
"""Rows of all samples, row-major, before and after the head."""


class Keeper:
    """Stores the rows that a run has left in the tiles.

    Parameters
    ----------
    device : Device
    stream : Stream
    loader : Loader
    plan : Plan
        Of the network.
    """

    def __init__(
        self, device: Device, stream: Stream, loader: Loader, plan: Plan[DeviceLayer]
    ) -> None:
        self._device, self._stream, self._loader = device, stream, loader
        self._n_out, self._head = plan.n_out, plan.head
        self._may_die = bool(plan.droppable.any())

    def store(
        self, out: Memory | None, state: RunState, counters: Counters, number: int
    ) -> tuple[Memory, Live]:
        """Bring rows into memory of their own: in the order of slots, or, in `out`, of samples.

        Parameters
        ----------
        out : Memory or None
        state, counters : RunState and Counters
            Of the run.
        number : int
            Segments that it had.
        """
        slots, order = int(counters.slots[number]), int(counters.order[number])
        nbytes = -(-slots // LANES) * LANES * self._n_out * 4
        rows = out or self._device.allocate(nbytes, outlives=True)
        self._loader.store(state, number, self._n_out, rows, by_id=out is not None)
        found = state.live(self._stream, number, slots, order)
        self._stream.synchronize()
        return rows, found

    def slots(self, state: RunState, counters: Counters, number: int) -> LazyBlock:
        """Bring the rows of live samples into memory of their own, to be fetched when asked for."""
        rows, found = self.store(None, state, counters, number)
        return found.ids[found.used], Rows(rows, (len(found.used), self._n_out), found.used)

    def all(self, samples: int, state: RunState, _: Counters, number: int) -> Both:
        """Store the rows of all samples."""
        out = self.rows_of_all(samples)
        self._loader.store(state, number, self._n_out, out, by_id=True)
        return self.after_head(out, samples)

    def aside(
        self, samples: int, state: RunState, counters: Counters, number: int
    ) -> Callable[[], Both]:
        """Bring the rows of live samples out of the tiles; returns what stores those of all."""
        rows, found = self.store(None, state, counters, number)
        return partial(self._scatter, samples, rows, np.where(found.used, found.ids, -1))

    def rows_of_all(self, samples: int) -> Memory:
        """Return memory for the rows of all samples; zero where not all will be written."""
        out = self._device.allocate(samples * self._n_out * 4, outlives=True)
        if self._may_die:
            self._stream.fill(out, 0)
        return out

    def after_head(self, out: Memory, samples: int) -> Both:
        """Return rows before and after the head, once they are there."""
        after = out
        if self._head is not None:
            after = self._device.allocate(samples * self._n_out * 4, outlives=True)
            self._loader.apply_head(self._head, out, (samples, self._n_out), after)
        self._stream.synchronize()
        return out, after

    def _scatter(self, samples: int, rows: Memory, ids: np.ndarray) -> Both:
        out = self.rows_of_all(samples)
        places = self._device.allocate(ids.size * 4)
        self._stream.to_device(places, ids.astype(np.int32))
        self._loader.scatter(rows, places, ids.size, self._n_out, out)
        both = self.after_head(out, samples)
        places.free()
        return both
