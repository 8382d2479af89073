"""The GPU as an engine sees it: memory, streams, kernels.

Only this file and the four that it stands on (``bindings``, ``memory``, ``stream``, ``nvrtc``) know
NVIDIA's libraries. Tests put an emulated device with the same face in place of `open_device`.
"""

import ctypes
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

from teraedge.engines.cuda import nvrtc
from teraedge.engines.cuda.bindings import Context, describe, libraries
from teraedge.engines.cuda.memory import Memory, Pinned
from teraedge.engines.cuda.stream import Event, Graph, Kernel, Stream
from teraedge.engines.cuda.views import View, view
from teraedge.errors import DependencyError, DeviceError, OptionsError

__all__ = [
    "Device",
    "Event",
    "Graph",
    "Kernel",
    "Memory",
    "Pinned",
    "Stream",
    "View",
    "open_device",
]

_Made = TypeVar("_Made", Memory, Pinned, Stream)
_NAME = re.compile(r"cuda(?::(0|[1-9]\d*))?")


def device_ordinal(name: str) -> int:
    """Return the number of the GPU that a device's name stands for.

    Raises
    ------
    OptionsError
        If it is not a name of a GPU.

    Examples
    --------
    >>> device_ordinal("cuda"), device_ordinal("cuda:1")
    (0, 1)
    """
    if (match := _NAME.fullmatch(name)) is None:
        raise OptionsError(f"device is {name!r}; give 'cuda', or 'cuda:1' for the second GPU")
    return int(match[1] or 0)


def open_device(name: str) -> "Device":
    """Return a GPU.

    Parameters
    ----------
    name : str
        "cuda" for the first one, "cuda:1" for the second, and so on.

    Returns
    -------
    Device

    Raises
    ------
    OptionsError
        If `name` is none of these.
    DependencyError
        If NVIDIA's Python libraries are not installed.
    DeviceError
        If there is no driver, or no such GPU.
    """
    ordinal = device_ordinal(name)
    count = device_count()
    if ordinal >= count:
        there = "'cuda'" if count == 1 else f"'cuda:0' to 'cuda:{count - 1}'"
        raise DeviceError(f"there is no device {name!r}; this machine has {there}")
    return Device(ordinal)


def device_count() -> int:
    """Return the number of GPUs, at least 1.

    Raises
    ------
    DependencyError
        If NVIDIA's Python libraries are not installed.
    DeviceError
        If there is no driver, it does not start, or it shows no GPU.
    """
    none = DeviceError("no NVIDIA driver was found; install one, or run on device 'cpu'")
    try:
        driver = libraries().driver
    except DependencyError:
        if not _has_driver():  # packages alone would not help
            raise none from None
        raise
    try:
        error = driver.cuInit(0)[0]
    except RuntimeError:  # the driver's library is not there
        raise none from None
    if error == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        count = 0
    elif error != 0:
        raise DeviceError(
            f"the NVIDIA driver does not start: {': '.join(describe(driver, error))}; see what "
            "nvidia-smi says, or run on device 'cpu'"
        )
    else:
        _check_versions()
        count = int(driver.cuDeviceGetCount()[1])
    if not count:
        raise DeviceError(
            "the NVIDIA driver shows no GPU; see CUDA_VISIBLE_DEVICES, or run on device 'cpu'"
        )
    return count


def _check_versions() -> None:
    """Refuse libraries for a newer CUDA than the driver brings; within CUDA 13, say, all mix."""
    from cuda import bindings

    ours = int(bindings.__version__.partition(".")[0])
    cuda = int(libraries().driver.cuDriverGetVersion()[1]) // 1000
    if cuda < ours:
        raise DependencyError(
            f"the NVIDIA driver brings CUDA {cuda} and the installed cuda-bindings are for CUDA "
            f"{ours}; pip install 'teraedge[cuda{cuda}]', or update the driver"
        )


def _has_driver() -> bool:
    """Tell whether the driver's library is there."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


class Device:
    """One GPU; made by `open_device`.

    Everything may be called from any thread. What a device made is given back by its own ``free``,
    or all at once by `close`.

    Attributes
    ----------
    name : str
        As "NVIDIA H200".
    arch : str
    tensor_cores : bool
        Whether there are some that multiply bf16.
        As "sm_90".
    multiprocessors : int
    shared_bytes : int
        The most dynamic shared memory that a block may have.
    l2_bytes, memory_bytes : int
    clock_hz : float
        The highest clock of the multiprocessors.
    driver_version : str
        As "580.65 (CUDA 13.0)".
    """

    def __init__(self, ordinal: int) -> None:
        driver = libraries().driver
        handle = driver.cuDeviceGet(ordinal)[1]
        name = driver.cuDeviceGetName(256, handle)[1]
        self.name = name.split(b"\0")[0].decode()
        error, context = driver.cuDevicePrimaryCtxRetain(handle)
        if error != 0:
            raise DeviceError(
                f"{self.name} does not start: {': '.join(describe(driver, error))}; see what "
                "nvidia-smi says"
            )
        self._ordinal = ordinal
        self._context = Context(context, self.name)
        self._read_properties(handle)
        self._kernels: dict[tuple[Any, ...], Any] = {}
        self._loading = Lock()
        self._made: WeakSet[Memory | Pinned | Stream] = WeakSet()

    def _read_properties(self, handle: Any) -> None:
        driver, check = self._context.driver, self._context.check
        names = driver.CUdevice_attribute

        def read(attribute: str) -> int:
            which = getattr(names, f"CU_DEVICE_ATTRIBUTE_{attribute}")
            return int(check(driver.cuDeviceGetAttribute(which, handle)))

        major, minor = read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR")
        self.arch = f"sm_{major}{minor}"
        self.tensor_cores = major >= 8
        self.multiprocessors = read("MULTIPROCESSOR_COUNT")
        self.shared_bytes = read("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.l2_bytes = read("L2_CACHE_SIZE")
        self.clock_hz = read("CLOCK_RATE") * 1e3
        self.memory_bytes = int(check(driver.cuDeviceTotalMem(handle)))
        self.driver_version = driver_version()

    def free_bytes(self) -> int:
        """Return the bytes of device memory that nobody uses."""
        with self._context.entered():
            free, _ = self._context.check(self._context.driver.cuMemGetInfo())
        return int(free)

    def allocate(self, nbytes: int, *, outlives: bool = False) -> Memory:
        """Return `nbytes` of device memory, not set to anything, at a multiple of 256.

        Parameters
        ----------
        nbytes : int
        outlives : bool
            Whether it stays when the device is closed, as results do: until it is freed or nobody
            holds it any more.

        Raises
        ------
        DeviceError
            If there is not so much.
        """
        memory = Memory(self._context, nbytes)
        return memory if outlives else self._keep(memory)

    def pinned(self, nbytes: int) -> Pinned:
        """Return `nbytes` of page-locked host memory.

        Raises
        ------
        DeviceError
            If the system does not give so much.
        """
        return self._keep(Pinned(self._context, nbytes))

    def stream(self) -> Stream:
        """Return a new stream, ordered with no other."""
        return self._keep(Stream(self._context))

    def kernels(self, file: str, defines: nvrtc.Defines, names: Sequence[str]) -> dict[str, Kernel]:
        """Compile a kernel file, unless that was done before, and load it.

        Parameters
        ----------
        file : str
            A file in the folder ``kernels``, as "layer.cu".
        defines : mapping of str to int or str
            Macros.
        names : sequence of str
            The ``extern "C"`` kernels wanted.

        Returns
        -------
        dict of str to Kernel

        Raises
        ------
        DependencyError
            If NVRTC is not installed.
        DeviceError
            If the file does not compile or load.
        """
        code = self._code(file, defines)
        with self._context.entered():
            return {
                name: Kernel(self._context, self._ordinal, name, code.get_kernel(name))
                for name in names
            }

    def view(self, array: Any, stream: Stream) -> View | None:
        """Return where an array of another library lies, or None where that is not on a GPU.

        What is queued on `stream` from now on waits for what the array's owner has queued.

        Raises
        ------
        FeatureError
            If it lies on another GPU, or its library does not let us see it.
        """
        return view(array, stream, self._ordinal)

    def close(self) -> None:
        """Give back what this device made, but for memory that outlives it.

        Again does nothing.
        """
        for made in list(self._made):
            made.free()
        with self._loading:
            self._kernels.clear()

    def _code(self, file: str, defines: Mapping[str, int | str]) -> Any:
        """Return the loaded ``ObjectCode`` of a specialised file; threads compile side by side."""
        key = (file, *sorted(defines.items()))
        if (code := self._kernels.get(key)) is None:
            cubin = nvrtc.cubin(file, defines, self.arch)
            with self._loading:
                if (code := self._kernels.get(key)) is None:
                    code = self._context.core.ObjectCode.from_cubin(cubin, name=file)
                    self._kernels[key] = code
        return code

    def _keep(self, made: _Made) -> _Made:
        self._made.add(made)
        return made

    def __repr__(self) -> str:
        return f"Device({self.name}, {self.arch}, {self.multiprocessors} multiprocessors)"


def driver_version() -> str:
    """Return the version of the NVIDIA driver and of the CUDA that it brings."""
    cuda = int(libraries().driver.cuDriverGetVersion()[1])
    text = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    try:
        return f"{Path('/sys/module/nvidia/version').read_text().strip()} ({text})"
    except OSError:  # not on Windows, nor in every container
        return text
