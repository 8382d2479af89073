"""Layers that are not on the device: brought there, a chunk at a time, behind the compute."""

from collections.abc import Callable, Iterator
from queue import Full, Queue
from threading import Event as Flag
from threading import Thread
from typing import Any, NamedTuple

from teraedge.engines.cuda.driver import Device, Event, Pinned, Stream
from teraedge.engines.cuda.program import pack, packed_size
from teraedge.plan.device import DeviceLayer
from teraedge.plan.plan import Plan
from teraedge.plan.segments import Segment, segments

PLACES = 2
"""Chunks on the device: one that runs, and one on its way."""
BUFFERS = 3
"""Chunks in page-locked memory: one on its way, one that waits, and one that is being packed."""


class Chunk(NamedTuple):
    """Some neighbouring layers, packed.

    Attributes
    ----------
    first : int
        The first of them.
    segments : list of Segment
    table : int
        Device address of their table.
    """

    first: int
    segments: list[Segment]
    table: int


class _Packed(NamedTuple):
    first: int
    segments: list[Segment]
    pinned: Pinned
    nbytes: int


class Feeder:
    """Brings the layers that a plan does not keep on the device, in every run.

    A thread lays chunks of layers out and packs them into page-locked memory, a stream of its own
    copies them, and events keep both apart from the compute: chunk k overwrites chunk k - 2 once
    that has run. If `host_bytes` hold all packed chunks, they are kept for the next run; else each
    run makes them again from the network, and the host never holds more than a few.

    Parameters
    ----------
    device : Device
    plan : Plan
    host_bytes : int
        Page-locked memory that may be kept.

    Attributes
    ----------
    streams : bool
        Whether there is anything to bring.
    """

    def __init__(self, device: Device, plan: Plan[DeviceLayer], host_bytes: int) -> None:
        self._device, self._plan = device, plan
        self.streams = plan.streamed_bytes > 0
        self._keeps = plan.streamed_bytes <= host_bytes
        self._kept: list[_Packed] = []
        self._complete = False
        if self.streams:
            self._copies = device.stream()
            self._places = [device.allocate(plan.room) for _ in range(PLACES)]
            count = 0 if self._keeps else BUFFERS
            self._buffers = [device.pinned(plan.room) for _ in range(count)]

    def run(self, stream: Stream, launch: Callable[[Chunk], None]) -> None:
        """Bring one chunk after the other, and have each launched on `stream`."""
        made: Queue[_Packed | BaseException | None] = Queue(maxsize=1)
        stop, copied = Flag(), list[Event]()
        thread = Thread(target=self._produce, args=(made, copied, stop), name="teraedge-feeder")
        thread.start()
        ran: list[Event] = []
        try:
            while (packed := made.get()) is not None:
                if isinstance(packed, BaseException):
                    raise packed
                number = len(ran)
                place = self._places[number % PLACES]
                if number >= PLACES:
                    self._copies.wait(ran[number - PLACES])
                self._copies.to_device(place, packed.pinned.array[: packed.nbytes])
                copied.append(self._copies.record())
                stream.wait(copied[number])
                launch(Chunk(packed.first, packed.segments, place.address))
                ran.append(stream.record())
            stream.synchronize()
        finally:
            stop.set()
            thread.join()
            self._copies.synchronize()  # page-locked memory is read until then

    def free(self) -> None:
        """Give all memory back."""
        if self.streams:
            for block in (*self._places, *self._buffers):
                block.free()
        self._forget()
        self._complete = False

    def _produce(self, made: "Queue[Any]", copied: list[Event], stop: Flag) -> None:
        """Pack chunks in a thread of its own; an exception is handed over like a chunk."""
        last: BaseException | None = None
        try:
            for packed in self._chunks(copied):
                if not _hand_over(made, packed, stop):
                    return
        except BaseException as error:
            last = error
        _hand_over(made, last, stop)

    def _chunks(self, copied: list[Event]) -> Iterator[_Packed]:
        if self._complete:
            yield from self._kept
            return
        self._forget()  # what a run that failed left
        for number, (first, layers) in enumerate(self._plan.streamed()):
            nbytes = packed_size(layers)
            if self._keeps:
                pinned = self._device.pinned(nbytes)
            else:
                pinned = self._buffers[number % BUFFERS]
                if number >= BUFFERS:
                    # Two later ones have been handed over since, so its copy has been queued.
                    copied[number - BUFFERS].synchronize()
            droppable = self._plan.droppable[first + 1 : first + 1 + len(layers)].tolist()
            place = self._places[number % PLACES]
            parts = list(segments(layers, droppable, first))
            pack(layers, droppable, parts, place.address, pinned.array)
            packed = _Packed(first, parts, pinned, nbytes)
            if self._keeps:
                self._kept.append(packed)
            yield packed
        self._complete = self._keeps

    def _forget(self) -> None:
        for kept in self._kept:
            kept.pinned.free()
        self._kept.clear()


def _hand_over(made: "Queue[Any]", packed: Any, stop: Flag) -> bool:
    """Put something into a queue unless told to stop; returns whether it was put."""
    while not stop.is_set():
        try:
            made.put(packed, timeout=0.05)
        except Full:
            continue
        return True
    return False
