"""A device with the face of `teraedge.engines.cuda.driver.Device` that runs kernels on the CPU.

Work runs when it is queued, or, with ``deferred=True``, as late and in as odd an order as events
and synchronisation allow, so that a missing wait shows in the results.
"""

import ctypes
import random
from collections import deque
from contextlib import contextmanager
from threading import RLock
from time import perf_counter
from weakref import WeakSet

import numpy as np

from cuda_emulator import build
from cuda_emulator.build import EmulationError
from teraedge.engines.cuda.memory import Block, out_of_memory
from teraedge.engines.cuda.nvrtc import KERNELS
from teraedge.errors import DeviceError

_LAUNCH = ctypes.c_uint32 * 3


class EmulatedDevice:
    """Runs kernels on the CPU.

    Parameters
    ----------
    name : str
        As given to `open_device`; not looked at.
    multiprocessors, shared_bytes, memory_bytes : int
        What the device says that it has; allocations beyond the memory fail.
    seed : int
        Of the order of blocks, of threads, and of streams.
    deferred : bool
        Whether work waits until something needs it.
    folder : Path
        Where the kernel files are.
    """

    arch = "emulated"
    tensor_cores = True
    l2_bytes = 2**20
    clock_hz = 1e9
    driver_version = "emulated"

    def __init__(
        self,
        name="cuda",
        *,
        multiprocessors=3,
        shared_bytes=227 * 1024,
        memory_bytes=2**30,
        seed=0,
        deferred=False,
        folder=KERNELS,
    ):
        self.name = "emulated GPU"
        self.multiprocessors = multiprocessors
        self.shared_bytes = shared_bytes
        self.memory_bytes = memory_bytes
        self.deferred = deferred
        self.used = 0  # bytes allocated now
        self.launches = 0
        self.random = random.Random(seed)
        self.streams = []
        self.lock = RLock()  # engines queue and wait in several threads
        self._folder = folder
        self._made = WeakSet()
        self._runtime = build.runtime()

    def free_bytes(self):
        return self.memory_bytes - self.used

    def view(self, array, stream):
        return getattr(array, "emulated_view", None)  # no other library puts anything there

    def allocate(self, nbytes, *, outlives=False):
        if nbytes > self.free_bytes():
            raise out_of_memory(self.name, nbytes, self.free_bytes(), self.memory_bytes)
        memory = Memory(self, nbytes)
        return memory if outlives else self._keep(memory)

    def pinned(self, nbytes):
        return self._keep(Pinned(self, nbytes))

    def stream(self):
        stream = Stream(self)
        self.streams.append(stream)
        return self._keep(stream)

    def kernels(self, file, defines, names):
        macros = tuple(sorted((key, str(value)) for key, value in defines.items()))
        library = build.kernel_library(self._folder / file, macros)
        return {name: Kernel(self, library, self._folder / file, name) for name in names}

    def close(self):
        for made in list(self._made):
            made.free()

    def run_until(self, done):
        """Run queued work of any stream, in random order, until a condition holds."""
        while True:
            with self.lock:
                if done():
                    return
                ready = [stream for stream in self.streams if stream.ready()]
                if not ready:
                    raise EmulationError("streams wait for events that nothing records")
                self.random.choice(ready).step()

    def finish(self):
        self.run_until(lambda: not any(stream.queue for stream in self.streams))

    def is_pinned(self, array):
        address = array.ctypes.data
        pinned = (made for made in self._made if isinstance(made, Pinned))
        return any(p.first <= address < p.first + max(p.nbytes, 1) for p in pinned)

    def _keep(self, made):
        self._made.add(made)
        return made


class Memory(Block):
    def __init__(self, device, nbytes):
        self._device, self.nbytes = device, int(nbytes)
        self.address = device._runtime.emulated_allocate(self.nbytes)
        if not self.address:
            raise MemoryError(f"{nbytes} bytes for the emulated device")
        device.used += self.nbytes

    def free(self):
        if not getattr(self, "address", None):
            return
        self._device.finish()  # as cuMemFree waits
        address, self.address = self.address, 0
        self._device.used -= self.nbytes
        if self._device._runtime.emulated_free(address):
            raise EmulationError(f"something wrote after the end of {self.nbytes} bytes of memory")

    def read(self, array):
        if not self.address:
            raise DeviceError("the memory was given back; run the samples again")
        _check_contiguous(array)
        ctypes.memmove(array.ctypes.data, self.range(0, array.nbytes), array.nbytes)

    def range(self, offset, nbytes):
        """Return the address at an offset, once it is checked that so many bytes follow."""
        if not self.address:
            raise EmulationError("a copy to or from memory that was freed")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of {self.nbytes}")
        return self.address + offset


class Pinned(Block):
    def __init__(self, device, nbytes):
        self._device, self.nbytes = device, nbytes
        self.array = np.full(nbytes, 0xFF, np.uint8)
        self.first = self.array.ctypes.data

    def free(self):
        if self.array.size:
            self._device.finish()
            self.array = np.empty(0, np.uint8)
            self.first = self.nbytes = 0


class Kernel:
    registers = 32
    local_bytes = 0

    def __init__(self, device, library, source, name):
        self.name, self.device, self.library = name, device, library
        try:
            self.function = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            raise DeviceError(f"{source.name} has no kernel {name!r}") from None
        self.static_bytes = build.static_bytes(library._name, name)
        self.parameters = build.parameters(source, name)
        wide = ("*", "i64", "u64", "long long", "int64_t", "uint64_t", "size_t")
        for parameter in self.parameters or ():
            if not any(word in parameter for word in wide):
                raise EmulationError(f"{name}: parameter {parameter!r} is not 64 bits wide")

    def occupancy(self, block, shared):
        per_block = shared + self.static_bytes + 1024
        return min(2048 // block, 32, 228 * 1024 // per_block)


class Event:
    def __init__(self, device):
        self.device, self.seconds, self.graph = device, None, None

    @property
    def done(self):
        return self.seconds is not None

    def synchronize(self):
        self.device.run_until(lambda: self.done)

    def seconds_since(self, earlier):
        if not (self.done and earlier.done):
            raise EmulationError("seconds_since() of an event that is not over")
        return self.seconds - earlier.seconds


class Graph:
    def __init__(self):
        self.work, self.ready, self.capturing = [], False, True

    def launch(self, stream):
        if not self.ready:
            raise DeviceError("the graph was freed or never captured; compile the network again")
        stream.enqueue(lambda: [work() for work in list(self.work)])

    def free(self):
        self.work, self.ready = [], False


class Stream(Block):
    _handles = 1000

    def __init__(self, device):
        Stream._handles += 1
        self.device, self.handle = device, Stream._handles
        self.queue = deque()  # of (event to wait for or None, work)
        self.graph = None
        self.closed = False

    def launch(self, kernel, grid, block, shared, *arguments):
        device = self.device
        grid = grid if isinstance(grid, tuple) else (grid,)
        grid = (*grid, 1, 1)[:3]
        if min(grid) < 1 or not 1 <= block <= 1024 or max(grid[1:]) > 65535:
            raise DeviceError(f"{kernel.name}: a launch of {grid} blocks of {block} threads")
        statics = kernel.static_bytes
        if shared + statics > device.shared_bytes or statics > 48 * 1024:
            raise DeviceError(f"{kernel.name}: {shared} + {statics} bytes of shared memory")
        if kernel.parameters is not None and len(kernel.parameters) != len(arguments):
            raise EmulationError(
                f"{kernel.name} takes {len(kernel.parameters)} arguments, given {len(arguments)}"
            )
        values = [int(getattr(value, "address", value)) for value in arguments]
        packed = (ctypes.c_uint64 * max(len(values), 1))(*(v % 2**64 for v in values))

        def work():
            device.launches += 1
            error = device._runtime.emulate(
                kernel.function,
                _LAUNCH(*grid),
                _LAUNCH(block, 1, 1),
                shared,
                kernel.library.emulated_statics(),
                kernel.library.emulated_static_bytes(),
                device.random.getrandbits(63),
                len(values),
                packed,
            )
            if error is not None:
                raise EmulationError(f"{kernel.name}: {error.decode()}")

        self.enqueue(work)

    def to_device(self, memory, array, offset=0):
        _check_contiguous(array)
        # Ordinary memory is read before the call returns; pinned memory when the copy runs.
        source = array if self.graph or self.device.is_pinned(array) else array.copy()
        memory.range(offset, array.nbytes)

        def work():
            target = memory.range(offset, source.nbytes)
            ctypes.memmove(target, source.ctypes.data, source.nbytes)

        self.enqueue(work)

    def to_host(self, array, memory, offset=0):
        _check_contiguous(array)
        memory.range(offset, array.nbytes)

        def work():
            ctypes.memmove(array.ctypes.data, memory.range(offset, array.nbytes), array.nbytes)

        self.enqueue(work)
        if not self.graph and not self.device.is_pinned(array):
            self.synchronize()

    def copy(self, target, source, nbytes, target_offset=0, source_offset=0):
        def work():
            to = target.range(target_offset, nbytes)
            if isinstance(source, Memory):
                start = source.range(source_offset, nbytes)
            else:
                start = source + source_offset
                if self.device._runtime.emulated_room(start) < nbytes:
                    raise EmulationError(f"a copy of {nbytes} bytes from a wrong address")
            ctypes.memmove(to, start, nbytes)

        target.range(target_offset, nbytes)
        if nbytes:
            self.enqueue(work)

    def fill(self, memory, byte, nbytes=None, offset=0):
        nbytes = memory.nbytes - offset if nbytes is None else nbytes
        memory.range(offset, nbytes)
        self.enqueue(lambda: ctypes.memset(memory.range(offset, nbytes), byte, nbytes))

    def record(self):
        event = Event(self.device)
        event.graph = self.graph

        def work():
            event.seconds = perf_counter()

        self.enqueue(work)
        return event

    def wait(self, event):
        if isinstance(event, int):
            foreign = [stream for stream in self.device.streams if stream.handle == event]
            if not foreign:
                return
            event = foreign[0].record()
        if event.graph is not None and event.graph.capturing:
            self.graph = event.graph  # as a capture spreads to streams that wait for it
        if not self.graph:
            with self.device.lock:
                self.queue.append((event, lambda: None))
            self._run_now()

    def synchronize(self):
        if self.graph:
            raise DeviceError("a stream cannot be synchronized while it is captured")
        self.device.run_until(lambda: not self.queue)

    @contextmanager
    def capture(self):
        if self.graph:
            raise DeviceError("the stream is captured already")
        graph = self.graph = Graph()
        try:
            yield graph
            graph.ready = True
        finally:
            graph.capturing = False
            for stream in self.device.streams:
                if stream.graph is graph:
                    stream.graph = None

    def free(self):
        self.device.finish()
        self.closed = True

    def enqueue(self, work):
        if self.closed:
            raise DeviceError("the stream was given back; compile the network again")
        if self.graph:
            self.graph.work.append(work)
        else:
            with self.device.lock:
                self.queue.append((None, work))
            self._run_now()

    def _run_now(self):
        if not self.device.deferred:
            self.device.run_until(lambda: not self.queue)

    def ready(self):
        return bool(self.queue) and (self.queue[0][0] is None or self.queue[0][0].done)

    def step(self):
        _, work = self.queue.popleft()
        try:
            work()
        except BaseException:
            for stream in self.device.streams:  # nothing runs after a failure
                stream.queue.clear()
            raise


def _check_contiguous(array):
    if not array.flags.c_contiguous:
        raise ValueError("an array that is not C-contiguous")
