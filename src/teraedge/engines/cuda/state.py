"""The device memory of a run: activations, ids, and the counters that kernels leave behind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.driver import Device, Memory, Stream
from teraedge.plan.kernel_sizes import COLUMNS, LANES

SPARE_TILES = 1
"""Tiles past the last, so that a piece of work of several tiles never leaves the buffers."""

EQUAL = ("hashes", "leaders", "columns", "leads", "stands", "flags")
"""What is known of equal samples: `struct Equal` of kernels/common.cuh."""

BINS = 256
"""Of samples by brightness, as kernels/common.cuh has it."""

GIVEN = [
    ("bits", np.uint64),
    ("bits_stride", np.int64),
    ("first", np.int64),
    ("samples", np.int64),
]
"""What differs from run to run in a `State`."""

STATE = np.dtype(
    [
        ("rows", np.uint64, (2,)),
        ("ids", np.uint64, (2,)),
        *[
            (name, np.uint64)
            for name in (
                *("slots", "buffer", "order", "masks", "nonzero", "starts", "sources", "compacts"),
                *("tickets", "live", "ran", "nanos", "idle", "began", "invalid", "bins", "alive"),
                *("distinct", "arrived", *EQUAL),
            )
        ],
        *GIVEN,
        ("words", np.int64),
    ]
)
"""`struct State` of kernels/common.cuh."""


class Counters(NamedTuple):
    """What kernels count, as read back.

    Attributes
    ----------
    live, ran, nanos : ndarray of uint64, shape (layers,)
        Samples live after each layer, samples that went into it, and nanoseconds.
    slots, tickets, distinct : ndarray of uint32, shape (layers + 1,)
    arrived : ndarray of uint32, shape (2 * layers + 2,)
    buffer, order, compacts : ndarray of int32, shape (layers + 1,)
    invalid : ndarray of int32, shape (1,)
    idle, began : ndarray of uint64, shape (layers + 1,)
    """

    live: NDArray[np.uint64]
    ran: NDArray[np.uint64]
    nanos: NDArray[np.uint64]
    idle: NDArray[np.uint64]
    began: NDArray[np.uint64]
    slots: NDArray[np.uint32]
    tickets: NDArray[np.uint32]
    distinct: NDArray[np.uint32]
    arrived: NDArray[np.uint32]
    buffer: NDArray[np.int32]
    order: NDArray[np.int32]
    compacts: NDArray[np.int32]
    invalid: NDArray[np.int32]


def _counter_type(layers: int) -> np.dtype[Any]:
    after = (layers + 1,)
    return np.dtype(
        [
            *[(name, np.uint64, (layers,)) for name in ("live", "ran", "nanos")],
            *[(name, np.uint64, after) for name in ("idle", "began")],
            *[(name, np.uint32, after) for name in ("slots", "tickets", "distinct")],
            ("arrived", np.uint32, (2 * (layers + 1),)),
            *[(name, np.int32, after) for name in ("buffer", "order", "compacts")],
            ("invalid", np.int32, (1,)),
        ]
    )


def bytes_a_sample(rows: tuple[int, int], segments: int) -> float:
    """Return the device memory that a sample takes, whose rows take so many bytes."""
    return sum(rows) + 3 * 4 + (2 * (segments + 1) + 2) * 4 / LANES


class RunState:
    """Device memory for runs of up to `samples` samples.

    Parameters
    ----------
    device : Device
    row_bytes : (int, int)
        Bytes of a sample's rows: before and after layers in turn.
    layers, segments : int
        Layers that run, and segments that they make at most.
    samples : int
    is_largest : bool
        Whether there is no memory for more.
    equal : mapping of str to int
        Device addresses of `EQUAL`, if equal samples may run once.

    Attributes
    ----------
    samples : int
    is_largest : bool
    rows : tuple of two Memory
        Before a run starts, the second is free for features on their way.
    struct : Memory
        A `struct State`.
    """

    def __init__(
        self,
        device: Device,
        row_bytes: tuple[int, int],
        layers: int,
        segments: int,
        samples: int,
        is_largest: bool,
        equal: Mapping[str, int],
    ) -> None:
        self.samples, self.is_largest = samples, is_largest
        self._memories: list[Memory] = []
        tiles = -(-samples // COLUMNS) + SPARE_TILES
        words = self._words = tiles * COLUMNS // LANES
        self._type = _counter_type(layers)
        bits = (segments + 1) * words * 4
        # What goes to the host after every run: counters, and a bit a sample.
        alive = -(-self._type.itemsize // 256) * 256
        bins = alive + -(-words * 4 // 256) * 256
        begin = bins + BINS * 4
        try:
            self.rows = tuple(self._allocate(device, tiles * COLUMNS * each) for each in row_bytes)
            self.ids = tuple(self._allocate(device, tiles * COLUMNS * 4) for _ in range(2))
            starts = self._allocate(device, words * 4)
            sources = self._allocate(device, tiles * COLUMNS * 4)
            # One piece, so that one fill clears it.
            self._cleared = self._allocate(device, begin + 2 * bits)
            self.struct = self._allocate(device, STATE.itemsize)
        except BaseException:
            self.free()
            raise
        self._alive, self._masks, self._nonzero = alive, begin, begin + bits
        self._host = device.pinned(bins)
        self._given = device.pinned(np.dtype(GIVEN).itemsize)
        table = np.zeros((), STATE)
        table["rows"] = [memory.address for memory in self.rows]
        table["ids"] = [memory.address for memory in self.ids]
        table["starts"], table["sources"] = starts.address, sources.address
        table["alive"] = self._cleared.address + alive
        table["bins"] = self._cleared.address + bins
        table["masks"] = self._cleared.address + self._masks
        table["nonzero"] = self._cleared.address + self._nonzero
        for name in Counters._fields:
            offset = self._type.fields[name][1]  # type: ignore[index]
            table[name] = self._cleared.address + offset
        for name, address in equal.items():
            table[name] = address
        table["words"] = words
        self._table = table

    def _allocate(self, device: Device, nbytes: int) -> Memory:
        self._memories.append(device.allocate(nbytes))
        return self._memories[-1]

    def install(self, stream: Stream) -> None:
        """Send the struct, once."""
        stream.to_device(self.struct, self._table.reshape(1).view(np.uint8))
        stream.fill(self.rows[0], 0)  # kernels read whole tiles
        stream.fill(self.rows[1], 0)
        stream.synchronize()

    def give(self, samples: int, first: int, bits: int = 0, stride: int = 0) -> None:
        """Note what the next run has; nothing is queued.

        Parameters
        ----------
        samples, first : int
            How many samples, and the number of the first.
        bits, stride : int
            Device address and bytes a sample of packed features, if they are.
        """
        self._given.array.view(GIVEN)[0] = bits, stride, first, samples

    def begin(self, stream: Stream) -> None:
        """Queue the start of what was given: all counters and masks are zero after it."""
        stream.to_device(self.struct, self._given.array, STATE.fields["bits"][1])  # type: ignore[index]
        stream.fill(self._cleared, 0)

    def fetch(self, stream: Stream) -> None:
        """Queue the copy of what kernels counted and marked to the host."""
        stream.to_host(self._host.array, self._cleared)

    @property
    def counters(self) -> Counters:
        """What kernels counted, as last fetched."""
        values = self._host.array[: self._type.itemsize].copy().view(self._type)[0]
        return Counters(*(values[name] for name in Counters._fields))

    @property
    def alive(self) -> NDArray[np.int64]:
        """Numbers of the samples that were marked, as last fetched, ascending."""
        words = self._host.array[self._alive : self._alive + self._words * 4].view(np.uint32)
        return np.flatnonzero(_columns(words))

    def live(self, stream: Stream, segment: int, slots: int, order: int) -> "Live":
        """Return what is in the slots after the last segment, number `segment` - 1."""
        words = -(-slots // LANES)
        ids = np.empty(words * LANES, np.int32)
        masks, nonzero = np.empty(words, np.uint32), np.empty(words, np.uint32)
        if slots:
            stream.to_host(ids, self.ids[order])
            offset = segment * self._words * 4
            stream.to_host(masks, self._cleared, self._masks + offset)
            stream.to_host(nonzero, self._cleared, self._nonzero + offset)
            stream.synchronize()
        return Live(ids.astype(np.int64), _columns(masks), _columns(nonzero))

    def free(self) -> None:
        """Give the memory back."""
        for memory in self._memories:
            memory.free()
        for name in ("_host", "_given"):
            if hasattr(self, name):
                getattr(self, name).free()


class Live(NamedTuple):
    """Slots at the end of a run.

    Attributes
    ----------
    ids : ndarray of int64, shape (slots,)
    used, nonzero : ndarray of bool, shape (slots,)
        Whether there is a sample, and whether its row has a nonzero.
    """

    ids: NDArray[np.int64]
    used: NDArray[np.bool_]
    nonzero: NDArray[np.bool_]


def _columns(masks: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return a bool a column for a bit a column."""
    little = masks.astype("<u4", copy=False).view(np.uint8)
    return np.unpackbits(little, bitorder="little").view(np.bool_)
