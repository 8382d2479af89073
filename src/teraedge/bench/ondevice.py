"""Features brought to a GPU through a library that the user has: PyTorch, else CuPy."""

from importlib import import_module
from typing import Any

from teraedge.features import PackedFeatures


def to_device(array: Any, device: str = "cuda") -> Any:
    """Return a host array as an array on the GPU, once the copy is over.

    Parameters
    ----------
    array : ndarray
    device : str
        As for `teraedge.compile`.

    Returns
    -------
    torch.Tensor or cupy.ndarray

    Raises
    ------
    ImportError
        If neither library is installed.
    """
    try:
        torch = import_module("torch")
    except ImportError:
        cupy = import_module("cupy")
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            copied = cupy.asarray(array)
            cupy.cuda.get_current_stream().synchronize()
        return copied
    tensor = torch.from_numpy(array).to(device)
    torch.cuda.synchronize(device)
    return tensor


def packed_to_device(features: PackedFeatures, device: str = "cuda") -> PackedFeatures:
    """Return packed features whose bits lie on the GPU; raises as `to_device` does."""
    return PackedFeatures(to_device(features.bits, device), features.neurons)
