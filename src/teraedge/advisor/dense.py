"""The dense product that sparse layers are compared with: what people would run otherwise."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Start: TypeAlias = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Callable[[], float]]
"""Takes features, weights and bias; returns what runs f(x W + b) once and returns its seconds."""


def dense_program(device: str) -> tuple[str, Start]:
    """Return the name of the best dense program there is for a device, and the program."""
    if device == "cpu":
        return "NumPy's BLAS or teraedge, whichever is faster", _numpy
    try:
        import torch
    except ImportError:
        return "teraedge", lambda *_: lambda: float("inf")

    def start(x: NDArray[Any], weights: NDArray[Any], bias: NDArray[Any]) -> Callable[[], float]:
        given, matrix, added = (torch.from_numpy(one).to(device) for one in (x, weights, bias))

        def run() -> float:
            torch.cuda.synchronize(device)
            begin = perf_counter()
            torch.relu_(torch.addmm(added, given, matrix))
            torch.cuda.synchronize(device)
            return perf_counter() - begin

        return run

    return "torch in fp32 or teraedge, whichever is faster", start


def _numpy(x: NDArray[Any], weights: NDArray[Any], bias: NDArray[Any]) -> Callable[[], float]:
    room = np.empty((len(x), weights.shape[1]), np.float32)

    def run() -> float:
        begin = perf_counter()
        np.matmul(x, weights, out=room)
        np.add(room, bias, out=room)
        np.maximum(room, 0, out=room)
        return perf_counter() - begin

    return run
