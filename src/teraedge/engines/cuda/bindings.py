"""NVIDIA's Python libraries, imported when a GPU is asked for, and their errors in one line.

The driver API (``cuda.bindings.driver``) does what touches memory, streams and graphs;
``cuda.core`` compiles and launches kernels. Nothing outside this folder's driver knows of either.
"""

from functools import cache
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

from teraedge.errors import DependencyError, DeviceError

# After these the process can use the GPU no more, whatever it does.
_LOST = {
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_UNKNOWN",
}


class Libraries(NamedTuple):
    """The modules ``cuda.core`` and ``cuda.bindings.driver``."""

    core: ModuleType
    driver: ModuleType


@cache
def libraries() -> Libraries:
    """Import NVIDIA's libraries; works without a GPU.

    Raises
    ------
    DependencyError
        If they are not installed, or are too old.
    """
    try:
        import cuda.core
        from cuda.bindings import driver
    except ImportError as error:
        raise DependencyError(
            f"CUDA needs the package cuda-core ({error}); pip install 'teraedge[cuda13]', or "
            "'teraedge[cuda12]' where the NVIDIA driver is older than version 580"
        ) from None
    if not hasattr(cuda.core, "launch"):
        version = getattr(cuda.core, "__version__", "unknown")
        raise DependencyError(
            f"cuda-core is version {version}, which is too old; pip install -U 'teraedge[cuda13]'"
        )
    return Libraries(cuda.core, driver)


class Context:
    """The primary context of one GPU, which every library of the process shares.

    ``with context:`` makes it current in this thread and puts back what was, so that the current
    device of PyTorch, say, stays as it is. Errors of NVIDIA's libraries leave as `DeviceError`.

    Parameters
    ----------
    handle : driver.CUcontext
        Retained for as long as the process lives, as every other library does.
    name : str
        The GPU's name, for messages.
    """

    def __init__(self, handle: Any, name: str) -> None:
        self.core, self.driver = libraries()
        self.name = name
        self._handle, self._address = handle, int(handle)

    def entered(self) -> "Entered":
        """Return a context manager that makes this context current in this thread."""
        return Entered(self, self._handle, self._address)

    def check(self, result: tuple[Any, ...]) -> Any:
        """Return the value of a driver call, a tuple ``(error, value...)``.

        Raises
        ------
        DeviceError
            If the error is not success.
        """
        if result[0] != 0:
            raise self.failure(*describe(self.driver, result[0]))
        return result[1] if len(result) == 2 else result[1:]

    def failure(self, name: str, text: str) -> DeviceError:
        """Return the exception for a CUDA error.

        Parameters
        ----------
        name : str
            As "CUDA_ERROR_ILLEGAL_ADDRESS".
        text : str
            What CUDA says of it.
        """
        what = "compile the network again"
        if name in _LOST:
            what = "this process can use the GPU no more: start a new one and " + what
        return DeviceError(f"{self.name} failed with {name} ({text}); {what}")


class Entered:
    """One stay in a context; see `Context`."""

    __slots__ = ("_address", "_context", "_handle", "_pushed")

    def __init__(self, context: Context, handle: Any, address: int) -> None:
        self._context, self._handle, self._address = context, handle, address
        self._pushed = False

    def __enter__(self) -> Self:
        driver = self._context.driver
        current = self._context.check(driver.cuCtxGetCurrent())
        if int(current) != self._address:
            self._context.check(driver.cuCtxPushCurrent(self._handle))
            self._pushed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pushed:
            self._context.driver.cuCtxPopCurrent()
        # The class is not public in cuda.core; its text starts with the error's name.
        if kind is not None and kind.__name__ == "CUDAError":
            name, _, text = str(error).partition(":")
            raise self._context.failure(name.strip(), " ".join(text.split())) from error


def describe(driver: ModuleType, error: Any) -> tuple[str, str]:
    """Return the name and the text of a driver error.

    Parameters
    ----------
    driver : module
    error : driver.CUresult
    """
    name, text = driver.cuGetErrorName(error)[1], driver.cuGetErrorString(error)[1]
    return (name or b"unknown error").decode(), (text or b"no description").decode()


def size(nbytes: float) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> size(1.5e9), size(12)
    ('1.5 GB', '12 B')
    """
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"
