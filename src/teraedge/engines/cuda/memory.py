"""Memory of the GPU, and page-locked memory of the host."""

import ctypes
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.bindings import size
from teraedge.errors import DeviceError

if TYPE_CHECKING:
    from teraedge.engines.cuda.bindings import Context


class Block(ABC):
    """Something that is given back once, by ``free()`` or at the end of a ``with``."""

    @abstractmethod
    def free(self) -> None:
        """Give the memory back; again does nothing, nor does it after the GPU was lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def __del__(self) -> None:
        # At the end of the process, or after the device was lost, there is nothing to give back.
        with suppress(Exception):
            self.free()


class Memory(Block):
    """A block of device memory; made by `Device.allocate`.

    Attributes
    ----------
    address : int
        On the device, a multiple of 256; 0 once freed.
    nbytes : int
    """

    def __init__(self, context: "Context", nbytes: int) -> None:
        self._context = context
        self.nbytes = nbytes
        self.address = 0
        with context.entered():
            # cuMemAlloc refuses 0 bytes; an engine without edges asks for them.
            result = context.driver.cuMemAlloc(max(nbytes, 1))
            if result[0] == context.driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                free, total = context.check(context.driver.cuMemGetInfo())
                raise out_of_memory(context.name, nbytes, free, total)
            self.address = int(context.check(result))

    def read(self, array: NDArray[Any]) -> None:
        """Copy the first bytes to a C-contiguous host array, and wait for it.

        It needs no stream, which may be gone, and waits for none: what wrote the memory is over.

        Raises
        ------
        DeviceError
            If the memory was given back, or the device failed.
        """
        if not array.flags.c_contiguous or array.nbytes > self.nbytes:
            raise ValueError(f"{array.nbytes} bytes in C order do not come from {self!r}")
        if not self.address:
            raise DeviceError("the memory was given back; run the samples again")
        if array.nbytes:
            with self._context.entered():
                copy = self._context.driver.cuMemcpyDtoH
                self._context.check(copy(array.ctypes.data, self.address, array.nbytes))

    def free(self) -> None:  # noqa: D102
        if self.address:
            address, self.address = self.address, 0
            with suppress(DeviceError), self._context.entered():
                self._context.driver.cuMemFree(address)

    def __repr__(self) -> str:
        return f"Memory({size(self.nbytes)} at {self.address:#x})"


class Pinned(Block):
    """A block of page-locked host memory, which copies to and from the GPU while both work.

    Attributes
    ----------
    array : ndarray, shape (nbytes,), uint8
        A view of it, no longer to be used once freed.
    nbytes : int
    """

    def __init__(self, context: "Context", nbytes: int) -> None:
        self._context = context
        self.nbytes = nbytes
        self._address = 0
        with context.entered():
            result = context.driver.cuMemAllocHost(max(nbytes, 1))
            if result[0] == context.driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise DeviceError(
                    f"the host cannot lock {size(nbytes)} of memory for copies to the GPU; "
                    "close other programs or give fewer samples at a time"
                )
            self._address = int(context.check(result))
        self.array: NDArray[np.uint8] = _bytes_at(self._address, nbytes)

    def free(self) -> None:  # noqa: D102
        if self._address:
            address, self._address = self._address, 0
            self.array = np.empty(0, np.uint8)
            with suppress(DeviceError), self._context.entered():
                self._context.driver.cuMemFreeHost(address)


def out_of_memory(name: str, asked: int, free: int, total: int) -> DeviceError:
    """Return the exception for device memory that is not there.

    Parameters
    ----------
    name : str
        The GPU's.
    asked, free, total : int
        Bytes.
    """
    return DeviceError(
        f"{name} has {size(free)} of {size(total)} of memory free and {size(asked)} more are "
        "needed; run fewer samples at a time, give Options(memory=...) a smaller size, or close "
        "other programs on this GPU"
    )


def _bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    raw: Any = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.frombuffer(raw, np.uint8)
