"""Rows that stay on the device until they are asked for, and the results that hold them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from importlib import import_module
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.driver import Memory
from teraedge.engines.cuda.feeding import DeviceFeatures
from teraedge.errors import DeviceError
from teraedge.result import LayerTrace, Result

Stored = TypeVar("Stored")


class Pending(Generic[Stored]):
    """Rows that a run left in the tiles of its engine.

    They are brought into memory of their own when they are asked for, or when the engine needs the
    tiles, whichever is first: most who want only the ids never pay for that.

    Parameters
    ----------
    lock : context manager
        Of the engine; may be taken again by who has it.
    store : callable
        Brings them there, and returns what is kept of it.
    aside : callable, optional
        Only brings them out of the tiles, where that is less work, and returns another `store`.
    """

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        store: Callable[[], Stored],
        aside: Callable[[], Callable[[], Stored]] | None = None,
    ) -> None:
        self._lock = lock
        self._store: Callable[[], Stored] | None = store
        self._aside = aside
        self._stored: Stored | None = None

    def __call__(self) -> Stored:
        """Bring the rows into memory of their own, the first time; returns what is kept of it."""
        with self._lock:
            if self._store is not None:
                self._stored = self._store()
                self._store = self._aside = None  # and with it what it holds of the engine
        return self._stored  # type: ignore[return-value]

    def leave_tiles(self) -> None:
        """Bring the rows out of the tiles, unless that was done."""
        with self._lock:
            if self._aside is None:
                self()
            elif self._store is not None:
                self._store, self._aside = self._aside(), None


class Owed:
    """What results of an engine may still ask of it, as long as somebody holds them."""

    def __init__(self) -> None:
        self._in_tiles: WeakSet[Pending[Any]] = WeakSet()  # of the last run
        self._aside: WeakSet[Pending[Any]] = WeakSet()

    def add(self, pending: Pending[Any]) -> None:
        """Note that rows are in the tiles."""
        self._in_tiles.add(pending)

    def leave_tiles(self) -> None:
        """Bring rows out of the tiles, which the next run needs."""
        for pending in list(self._in_tiles):
            pending.leave_tiles()
            self._aside.add(pending)
        self._in_tiles.clear()

    def store(self) -> None:
        """Store all rows, before what that takes goes with the engine."""
        for pending in (*self._in_tiles, *self._aside):
            with suppress(DeviceError):  # which who asks will hear
                pending()


class Rows:
    """Rows of float32 on the device, fetched when this is called.

    Parameters
    ----------
    memory : Memory
        Row-major, written to; outlives the engine, and is given back with this object.
    shape : (int, int)
    keep : ndarray of bool, shape (rows,)
        Which rows there are.
    """

    def __init__(self, memory: Memory, shape: tuple[int, int], keep: NDArray[np.bool_]) -> None:
        self._memory, self._shape, self._keep = memory, shape, keep

    def __call__(self) -> NDArray[np.float32]:
        """Return the rows on the host, shape (rows kept, n_out)."""
        rows = np.empty(self._shape, np.float32)
        self._memory.read(rows)
        return rows if self._keep.all() else rows[self._keep]


class DeviceArray:
    """A C-contiguous float32 matrix on the device, for any library that reads the protocol.

    Attributes
    ----------
    shape : (int, int)
    __cuda_array_interface__ : dict
        Version 3; the values are there, no stream needs to be waited for.
    """

    def __init__(self, memory: Memory, shape: tuple[int, int]) -> None:
        self._memory, self.shape = memory, shape
        self.dtype = np.dtype(np.float32)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (memory.address, False),
            "strides": None,
            "version": 3,
        }

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape[0]} x {self.shape[1]}, float32)"


def as_caller_array(array: DeviceArray, given: Any) -> Any:
    """Return a matrix as the kind of array that features were given as; no copy is made."""
    library = type(given).__module__.partition(".")[0]
    if library == "torch":
        return import_module("torch").as_tensor(array, device=given.device)
    if library == "cupy":
        return import_module("cupy").asarray(array)
    return array


class DeviceResult(Result):
    """The result of features that lie on the device: outputs do too, ids are on the host.

    Parameters
    ----------
    stored : callable
        Returns the last rows, row-major, before and after the head, in memory that outlives the
        engine.
    features : DeviceFeatures
        What the run was given.
    shape, trace, **fields
        As of `Result`.
    """

    def __init__(
        self,
        stored: Callable[[], tuple[Memory, Memory]],
        features: DeviceFeatures,
        shape: tuple[int, int],
        trace: Sequence[LayerTrace] | Callable[[], Sequence[LayerTrace]],
        **fields: Any,
    ) -> None:
        def rows() -> NDArray[np.float32]:
            return Rows(stored()[0], shape, np.ones(shape[0], np.bool_))()

        super().__init__(shape, [(np.arange(shape[0]), rows)], trace, **fields)
        self._stored, self._given = stored, features.owner

    @cached_property
    def outputs(self) -> Any:
        """Last rows of all samples, after the head, on the device, shape (samples, n_out).

        As the kind of array that the features were: a torch tensor, a CuPy array, else a
        `DeviceArray`.
        """
        return as_caller_array(DeviceArray(self._stored()[1], self.shape), self._given)

    @property
    def live_outputs(self) -> Any:
        """Last rows of the samples of `live`, on the device where the caller's array can pick."""
        if isinstance(self.outputs, DeviceArray):
            return super().live_outputs
        return self.outputs[self.live]
