"""Streams, what is queued on them, and graphs of it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numpy.typing import NDArray

from teraedge.engines.cuda.bindings import Context, Entered
from teraedge.engines.cuda.memory import Block, Memory
from teraedge.errors import DeviceError

_DEFAULT_SHARED = 48 * 2**10  # what a kernel gets without asking, with what it declares itself

Grid = int | tuple[int, ...]
"""Blocks: a number, or up to three."""


class Kernel:
    """A compiled function on the device; made by `Device.kernels`.

    Attributes
    ----------
    name : str
    registers : int
        32-bit registers a thread.
    local_bytes : int
        Bytes of spilled registers and arrays a thread.
    """

    def __init__(self, context: Context, ordinal: int, name: str, handle: Any) -> None:
        self._context, self._device = context, context.driver.CUdevice(ordinal)
        self.name, self.handle = name, handle
        names = context.driver.CUfunction_attribute
        declared = self._attribute(names.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
        self._shared = _DEFAULT_SHARED - declared
        self.registers = self._attribute(names.CU_FUNC_ATTRIBUTE_NUM_REGS)
        self.local_bytes = self._attribute(names.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
        # Made once a shape: a config is checked when it is made, which costs more than a launch.
        self._configs: dict[tuple[Grid, int, int], Any] = {}

    def occupancy(self, block: int, shared: int) -> int:
        """Return the blocks that a multiprocessor runs at once.

        Parameters
        ----------
        block : int
            Threads a block.
        shared : int
            Dynamic shared memory a block, in bytes.
        """
        with self._context.entered():
            self._allow(shared)
            blocks: int = self.handle.occupancy.max_active_blocks_per_multiprocessor(block, shared)
        return blocks

    def config(self, grid: Grid, block: int, shared: int) -> Any:
        """Return the ``cuda.core.LaunchConfig`` of a launch; the context is current."""
        key = (grid, block, shared)
        if (config := self._configs.get(key)) is None:
            self._allow(shared)
            config = self._context.core.LaunchConfig(grid=grid, block=block, shmem_size=shared)
            self._configs[key] = config
        return config

    def _attribute(self, attribute: Any) -> int:
        driver = self._context.driver
        result = driver.cuKernelGetAttribute(attribute, self.handle.handle, self._device)
        return int(self._context.check(result))

    def _allow(self, shared: int) -> None:
        """Raise the limit of dynamic shared memory, if it is below `shared` bytes."""
        if shared <= self._shared:
            return
        driver = self._context.driver
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._context.check(
            driver.cuKernelSetAttribute(attribute, shared, self.handle.handle, self._device)
        )
        self._shared = shared


class Event:
    """A point in a stream's work; made by `Stream.record`."""

    def __init__(self, context: Context, timed: bool = True) -> None:
        self._context = context
        flags = context.driver.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        self.handle = context.check(context.driver.cuEventCreate(int(flag)))

    def synchronize(self) -> None:
        """Wait in this thread until the device is there."""
        with self._context.entered():
            self._context.check(self._context.driver.cuEventSynchronize(self.handle))

    def seconds_since(self, earlier: "Event") -> float:
        """Return the device's time between two events that are over, in seconds."""
        with self._context.entered():
            driver = self._context.driver
            millis = self._context.check(driver.cuEventElapsedTime(earlier.handle, self.handle))
        return float(millis) / 1e3

    def __del__(self) -> None:
        # At the end of the process, or after the device was lost, there is nothing to give back.
        with suppress(Exception), self._context.entered():
            self._context.driver.cuEventDestroy(self.handle)


class Graph:
    """Work captured by `Stream.capture`, launched with one call any number of times."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handle: Any = None

    def launch(self, stream: "Stream") -> None:
        """Queue all of it on a stream.

        Raises
        ------
        DeviceError
            If it was freed, is still being captured, or the device fails.
        """
        if self._handle is None:
            raise DeviceError("the graph was freed or never captured; compile the network again")
        with self._context.entered():
            self._context.check(self._context.driver.cuGraphLaunch(self._handle, stream.raw))

    def free(self) -> None:
        """Give it back; again does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(DeviceError), self._context.entered():
                self._context.driver.cuGraphExecDestroy(handle)

    def instantiate(self, graph: Any) -> None:
        """Make it launchable from a captured ``CUgraph``, which is destroyed; for `Stream`."""
        driver = self._context.driver
        try:
            self._handle = self._context.check(driver.cuGraphInstantiate(graph, 0))
        finally:
            driver.cuGraphDestroy(graph)


class Stream(Block):
    """A queue of work that runs in order; made by `Device.stream`.

    Nothing waits unless it says so. Host arrays must stay as they are until their copy is over:
    ordinary ones are read before `to_device` returns and written before `to_host` does, pinned
    ones are not.

    Attributes
    ----------
    handle : int
        The raw stream, for other libraries.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        driver = context.driver
        with context.entered():
            # Not ordered with the default stream, on which other libraries may work.
            flag = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self.raw = context.check(driver.cuStreamCreate(flag))
            self.handle = int(self.raw)
            self._core = context.core.Stream.from_handle(self.handle)

    def launch(
        self, kernel: Kernel, grid: Grid, block: int, shared: int, *arguments: int | Memory
    ) -> None:
        """Queue a kernel.

        Parameters
        ----------
        kernel : Kernel
        grid : int or tuple of int
            Blocks.
        block : int
            Threads a block.
        shared : int
            Dynamic shared memory a block, in bytes.
        *arguments : int or Memory
            Every one is passed as 64 bits: a number or an address.

        Raises
        ------
        DeviceError
            If the launch is refused, or the device failed before.
        """
        values = [a.address if isinstance(a, Memory) else int(a) for a in arguments]
        with self._entered():
            config = kernel.config(grid, block, shared)
            self._context.core.launch(self._core, config, kernel.handle, *values)

    def to_device(self, memory: Memory, array: NDArray[Any], offset: int = 0) -> None:
        """Queue a copy of a C-contiguous host array to `offset` bytes into device memory."""
        _check_copy(array, memory, offset)
        if array.nbytes:
            with self._entered():
                driver, target = self._context.driver, memory.address + offset
                source = array.ctypes.data
                self._check(driver.cuMemcpyHtoDAsync(target, source, array.nbytes, self.raw))

    def to_host(self, array: NDArray[Any], memory: Memory, offset: int = 0) -> None:
        """Queue a copy from `offset` bytes into device memory to a C-contiguous host array."""
        _check_copy(array, memory, offset)
        if array.nbytes:
            with self._entered():
                driver, source = self._context.driver, memory.address + offset
                target = array.ctypes.data
                self._check(driver.cuMemcpyDtoHAsync(target, source, array.nbytes, self.raw))

    def copy(
        self,
        target: Memory,
        source: Memory | int,
        nbytes: int,
        target_offset: int = 0,
        source_offset: int = 0,
    ) -> None:
        """Queue a copy of `nbytes` within the device; `source` may be a raw address."""
        _check_range(target, target_offset, nbytes)
        if isinstance(source, Memory):
            _check_range(source, source_offset, nbytes)
            source = source.address
        if nbytes:
            with self._entered():
                start, to = source + source_offset, target.address + target_offset
                self._check(self._context.driver.cuMemcpyDtoDAsync(to, start, nbytes, self.raw))

    def fill(self, memory: Memory, byte: int, nbytes: int | None = None, offset: int = 0) -> None:
        """Queue setting `nbytes` of memory, by default all from `offset` on, to one value."""
        nbytes = memory.nbytes - offset if nbytes is None else nbytes
        _check_range(memory, offset, nbytes)
        if nbytes:
            with self._entered():
                driver, start = self._context.driver, memory.address + offset
                self._check(driver.cuMemsetD8Async(start, byte, nbytes, self.raw))

    def record(self) -> Event:
        """Return an event that is over when all work queued so far is."""
        with self._entered():
            event = Event(self._context)
            self._check(self._context.driver.cuEventRecord(event.handle, self.raw))
        return event

    def wait(self, event: Event | int) -> None:
        """Let what is queued from now on wait for an event, without holding up this thread.

        Parameters
        ----------
        event : Event or int
            An int is the raw handle of another library's stream; then it waits for all work queued
            there so far. 1 and 2 are CUDA's legacy and per-thread default streams.
        """
        driver = self._context.driver
        with self._entered():
            if not isinstance(event, Event):
                foreign = driver.CUstream(event)
                event = Event(self._context, timed=False)
                self._check(driver.cuEventRecord(event.handle, foreign))
            self._check(driver.cuStreamWaitEvent(self.raw, event.handle, 0))

    def synchronize(self) -> None:
        """Wait in this thread until all that was queued is over.

        Raises
        ------
        DeviceError
            If some of it failed.
        """
        with self._entered():
            self._check(self._context.driver.cuStreamSynchronize(self.raw))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record what is queued here into a `Graph`, instead of running it.

        Yields
        ------
        Graph
            To be launched after the ``with``. It keeps addresses, not memory: what it uses must
            live as long as it is launched.
        """
        driver, graph = self._context.driver, Graph(self._context)
        with self._entered():
            # Other threads, and other libraries, may allocate and synchronise meanwhile.
            mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            self._check(driver.cuStreamBeginCapture(self.raw, mode))
            try:
                yield graph
            except BaseException:
                error, half = driver.cuStreamEndCapture(self.raw)
                if error == 0 and half is not None:
                    driver.cuGraphDestroy(half)
                raise
            graph.instantiate(self._check(driver.cuStreamEndCapture(self.raw)))

    def free(self) -> None:
        """Give the stream back when its work is over; again does nothing."""
        if self.raw is not None:
            raw, self.raw = self.raw, None
            with suppress(DeviceError), self._context.entered():
                self._context.driver.cuStreamDestroy(raw)

    def _entered(self) -> Entered:
        if self.raw is None:  # which CUDA would take for the default stream
            raise DeviceError("the stream was given back; compile the network again")
        return self._context.entered()

    def _check(self, result: tuple[Any, ...]) -> Any:
        return self._context.check(result)


def _check_copy(array: NDArray[Any], memory: Memory, offset: int) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of strides {array.strides} is not C-contiguous")
    _check_range(memory, offset, array.nbytes)


def _check_range(memory: Memory, offset: int, nbytes: int) -> None:
    """Refuse a copy beyond a block, which would change another one without a word."""
    if offset < 0 or nbytes < 0 or offset + nbytes > memory.nbytes:
        raise ValueError(f"bytes {offset} to {offset + nbytes} are not in {memory!r}")
    if not memory.address and memory.nbytes:
        raise ValueError(f"{memory!r} was freed")
