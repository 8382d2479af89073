"""Arrays of other libraries, seen where they lie."""

from typing import Any, NamedTuple

import numpy as np

from teraedge.engines.cuda.stream import Stream
from teraedge.errors import FeatureError
from teraedge.text import a_type

CUDA = 2
"""DLPack's number for the memory of an NVIDIA GPU."""
LEGACY_STREAM = 1


class View(NamedTuple):
    """A strided array in device memory.

    Attributes
    ----------
    address : int
    shape, strides : tuple of int
        Strides in elements.
    dtype : numpy.dtype
    owner : object
        Keeps the memory.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any


def view(array: Any, stream: Stream, ordinal: int) -> View | None:
    """Return where an array lies, or None where that is not on a GPU; see `Device.view`."""
    try:
        if hasattr(array, "__dlpack_device__"):
            kind, number = array.__dlpack_device__()
            if int(kind) != CUDA:
                return None
            if number != ordinal:
                raise FeatureError(
                    f"features lie on GPU {number} and the engine runs on GPU {ordinal}; move "
                    "them, or compile for the other device"
                )
            return _from_dlpack(array, stream)
        if hasattr(array, "__cuda_array_interface__"):
            return _from_interface(array, stream)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, FeatureError):
            raise
        raise FeatureError(
            f"features are {a_type(array)} that cannot be read here: {error}"
        ) from None
    return None


def _from_dlpack(array: Any, stream: Stream) -> View:
    from cuda.core.utils import StridedMemoryView

    # The owner makes our stream wait for its own, as DLPack wants it.
    seen = StridedMemoryView.from_dlpack(array, stream_ptr=stream.handle)
    shape = tuple(seen.shape)
    dtype = np.dtype(seen.dtype)
    return View(int(seen.ptr), shape, _strides(seen.strides, shape), dtype, (array, seen))


def _from_interface(array: Any, stream: Stream) -> View:
    """Read CUDA Array Interface, version 2 or 3."""
    seen = array.__cuda_array_interface__
    if seen.get("mask") is not None:
        raise FeatureError("features are masked; fill them with numbers first")
    stream.wait(seen.get("stream") or LEGACY_STREAM)
    shape, dtype = tuple(seen["shape"]), np.dtype(seen["typestr"])
    strides = seen.get("strides")
    if strides is not None:
        strides = tuple(stride // dtype.itemsize for stride in strides)
    return View(int(seen["data"][0]), shape, _strides(strides, shape), dtype, array)


def _strides(strides: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides in elements; None stands for C order."""
    if strides is not None:
        return tuple(strides)
    ends = np.cumprod((1, *shape[:0:-1]))
    return tuple(int(end) for end in ends[::-1])
