"""What others do of a sparse network on a GPU: PyTorch and CuPy, as a careful user would.

Activations are [neuron][sample]; weights, biases and features are on the device before a run, and
a run ends when its last layer has: no rival has to find ids or to bring anything back. PyTorch's
also run in fp16 or bf16, weights, biases and activations alike, if the features are such.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_networks import UPPER, Drawn
from numpy.typing import NDArray

DENSE_RATES = {4: 2.5e13, 2: 3e14}
"""Multiply-adds a second, about, by the bytes of a value: to tell what takes too long."""
DENSE_SECONDS = 2.0
"""Longest run of a dense product."""


@dataclass(frozen=True)
class Rival:
    """A network as another library runs it.

    Attributes
    ----------
    version : str
        The library's name and version.
    run : callable
        Queues all layers and returns the last activations, [neuron][sample].
    wait : callable
        Waits for the device.
    rows : callable
        Takes what `run` returned and ids of samples; returns these rows, (samples, neurons), on
        the host.
    detail : str
        What was chosen, if there was a choice.
    """

    version: str
    run: Callable[[], Any]
    wait: Callable[[], None]
    rows: Callable[[Any, NDArray[np.int64]], NDArray[np.float32]]
    detail: str = ""

    def timed(self) -> float:
        """Run once; returns the seconds."""
        self.wait()
        begin = time.perf_counter()
        self.run()
        self.wait()
        return time.perf_counter() - begin


class TooLargeError(Exception):
    """A rival that would not fit, or take too long."""


def torch_rival(
    features: Any, step: Callable[[Any, Any, Any], Any], weights: list[Any], bias: list[Any]
) -> Rival:
    """Return a rival that takes one step a layer, from (weights, activations, bias)."""
    import torch

    start = features.T.contiguous()
    columns = [torch.from_numpy(b).to(features)[:, None] for b in bias]

    def run() -> Any:
        y = start
        for w, b in zip(weights, columns, strict=True):
            y = step(w, y, b)
        return y

    def wait() -> None:
        if start.is_cuda:
            torch.cuda.synchronize(start.device)

    def rows(y: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        chosen = y[:, torch.from_numpy(ids).to(y.device)]
        return np.ascontiguousarray(chosen.T.float().cpu().numpy())

    return Rival(f"torch {torch.__version__}", run, wait, rows)


def _torch_csr_weights(drawn: Drawn, features: Any) -> list[Any]:
    import torch

    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    made = []
    for w in drawn.weights:
        parts = (w.indptr.astype(np.int32), w.indices.astype(np.int32))
        lists = (torch.from_numpy(part).to(features.device) for part in parts)
        values = torch.from_numpy(w.data).to(features)
        made.append(torch.sparse_csr_tensor(*lists, values, size=w.shape))
    return made


def torch_csr(drawn: Drawn, features: Any) -> Rival:
    """Sparse times dense, bias added in place, clamped in place."""

    def step(w: Any, y: Any, b: Any) -> Any:
        y = w @ y
        y += b
        return y.clamp_(0, UPPER)

    return torch_rival(features, step, _torch_csr_weights(drawn, features), drawn.bias)


def torch_csr_addmm(drawn: Drawn, features: Any) -> Rival:
    """Sparse times dense plus bias in one call, clamped in place."""
    import torch

    def step(w: Any, y: Any, b: Any) -> Any:
        return torch.addmm(b.expand(-1, y.shape[1]), w, y).clamp_(0, UPPER)

    return torch_rival(features, step, _torch_csr_weights(drawn, features), drawn.bias)


def torch_dense(drawn: Drawn, features: Any) -> Rival:
    """Dense times dense plus bias (no TF32 for fp32), clamped in place."""
    import torch

    samples, neurons = features.shape
    size = features.element_size()
    nbytes = sum(size * w.shape[0] * w.shape[1] for w in drawn.weights)
    seconds = nbytes / size * samples / DENSE_RATES[size]
    if seconds > DENSE_SECONDS:
        raise TooLargeError(f"a run would take about {seconds:.0f} s")
    if features.is_cuda:
        free, _ = torch.cuda.mem_get_info(features.device)
        if nbytes + 4 * size * samples * neurons > free * 0.9:
            raise TooLargeError(f"{nbytes / 1e9:.0f} GB of weights do not fit")
    torch.backends.cuda.matmul.allow_tf32 = False
    weights = [torch.from_numpy(w.toarray()).to(features) for w in drawn.weights]

    def step(w: Any, y: Any, b: Any) -> Any:
        return torch.addmm(b, w, y).clamp_(0, UPPER)

    return torch_rival(features, step, weights, drawn.bias)


def _cupy() -> tuple[Any, Callable[[Any, Any], None]]:
    """Return CuPy, and what adds a bias to y and clamps it, both in place, in one kernel."""
    import cupy

    kernel = cupy.ElementwiseKernel(
        "float32 b, float32 upper",
        "float32 y",
        "y = min(max(y + b, 0.0f), upper)",
        "teraedge_rival_bias_clamp",
    )
    return cupy, lambda y, b: kernel(b, np.float32(UPPER), y)


def _cupy_csr(drawn: Drawn) -> list[Any]:
    import cupy
    import cupyx.scipy.sparse as sparse

    made = []
    for w in drawn.weights:
        parts = (w.data, w.indices.astype(np.int32), w.indptr.astype(np.int32))
        csr = sparse.csr_matrix(tuple(cupy.asarray(part) for part in parts), shape=w.shape)
        if not csr.has_canonical_format:  # looked at once, and remembered for every product
            raise ValueError("indices are not sorted and distinct")
        made.append(csr)
    return made


def _cupy_rival(run: Callable[[], Any], detail: str = "") -> Rival:
    import cupy

    def rows(y: Any, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(cupy.asnumpy(y[:, cupy.asarray(ids)]).T)

    return Rival(f"cupy {cupy.__version__}", run, cupy.cuda.runtime.deviceSynchronize, rows, detail)


def cupy_spmm(drawn: Drawn, features: Any) -> Rival:
    """`cupyx.cusparse.spmm`: cuSPARSE's default algorithm, dense matrices column-major."""
    cupy, finish = _cupy()
    from cupyx import cusparse

    start = cupy.asarray(features).T  # column-major without a copy
    weights = _cupy_csr(drawn)
    bias = [cupy.asarray(b)[None, :] for b in drawn.bias]

    def run() -> Any:
        y = start
        for w, b in zip(weights, bias, strict=True):
            y = cusparse.spmm(w, y)
            finish(y.T, b)  # as it lies in memory
        return y

    return _cupy_rival(run)


ALGORITHMS = {"default": 0, "CSR_ALG1": 4, "CSR_ALG2": 6, "CSR_ALG3": 12}
"""Names and numbers of cusparseSpMMAlg_t for CSR."""


class _Product:
    """cuSPARSE's generic SpMM of all layers, in one layout and with one algorithm."""

    def __init__(self, weights: list[Any], start: Any, by_row: bool, algorithm: int) -> None:
        import cupy
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cusparse as lib
        from cupyx.cusparse import SpMatDescriptor

        self._lib, self._algorithm = lib, algorithm
        self._handle = device.get_cusparse_handle()
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        order = "C" if by_row else "F"
        shape = start.shape
        self.out = [cupy.empty(shape, np.float32, order) for _ in range(2)]
        self._start = start
        self._dense = []
        for array in (start, *self.out):
            leading = shape[1] if by_row else shape[0]
            kind = lib.CUSPARSE_ORDER_ROW if by_row else lib.CUSPARSE_ORDER_COL
            self._dense.append(lib.createDnMat(*shape, leading, array.data.ptr, 0, kind))
        self._sparse = [SpMatDescriptor.create(w) for w in weights]
        self._weights = weights
        self._buffers = []
        for layer in range(len(weights)):
            nbytes = lib.spMM_bufferSize(*self._arguments(layer))
            self._buffers.append(cupy.empty(max(nbytes, 1), np.int8))

    def _arguments(self, layer: int) -> tuple[Any, ...]:
        source = self._dense[0 if layer == 0 else 1 + (layer - 1) % 2]
        target = self._dense[1 + layer % 2]
        return (
            *(self._handle, 0, 0, self._one.ctypes.data, self._sparse[layer].desc),
            *(source, self._zero.ctypes.data, target, 0, self._algorithm),
        )

    def __call__(self, layer: int) -> Any:
        """Queue a layer's product; returns where it goes."""
        self._lib.spMM(*self._arguments(layer), self._buffers[layer].data.ptr)
        return self.out[layer % 2]

    def __del__(self) -> None:
        for dense in getattr(self, "_dense", ()):
            self._lib.destroyDnMat(dense)


def _layouts(features: Any) -> Iterator[tuple[str, bool, int, Any]]:
    """Give name, whether row-major, algorithm and first activations of all that may be tried."""
    import cupy

    columns = cupy.asarray(features).T
    rows = cupy.ascontiguousarray(columns)
    for by_row, start in ((True, rows), (False, columns)):
        for name, algorithm in ALGORITHMS.items():
            yield f"{'row' if by_row else 'column'}-major {name}", by_row, algorithm, start


def cusparse_best(drawn: Drawn, features: Any) -> Rival:
    """Use cuSPARSE through its generic API, whatever layout and algorithm are the fastest.

    All are tried on the first layer and checked; buffers and descriptors are made beforehand.
    """
    cupy, finish = _cupy()
    weights = _cupy_csr(drawn)
    wait = cupy.cuda.runtime.deviceSynchronize
    columns = np.array([0, features.shape[0] - 1])
    some = cupy.asnumpy(cupy.asarray(features)[cupy.asarray(columns)]).astype(np.float64)
    expected = drawn.weights[0].astype(np.float64) @ some.T
    best: tuple[float, str, bool, int] | None = None
    for label, by_row, algorithm, start in _layouts(features):
        try:
            product = _Product(weights[:1], start, by_row, algorithm)
            product(0)
            wait()
            found = cupy.asnumpy(product.out[0][:, cupy.asarray(columns)])
            if not np.allclose(found, expected, rtol=1e-4, atol=1e-4):
                continue
            begin = time.perf_counter()
            for _ in range(2):
                product(0)
            wait()
            seconds = time.perf_counter() - begin
        except Exception:  # an algorithm that this version or layout does not have
            continue
        if best is None or seconds < best[0]:
            best = seconds, label, by_row, algorithm
        del product
    if best is None:
        raise RuntimeError("no algorithm of cuSPARSE's generic API works")
    _, label, by_row, algorithm = best
    start = cupy.asarray(features).T
    product = _Product(
        weights, cupy.ascontiguousarray(start) if by_row else start, by_row, algorithm
    )
    bias = [cupy.asarray(b)[:, None] if by_row else cupy.asarray(b)[None, :] for b in drawn.bias]

    def run() -> Any:
        for layer, b in enumerate(bias):
            y = product(layer)
            finish(y if by_row else y.T, b)
        return y

    return _cupy_rival(run, label)


RIVALS: dict[str, Callable[[Drawn, Any], Rival]] = {
    "torch CSR": torch_csr,
    "torch CSR addmm": torch_csr_addmm,
    "torch dense": torch_dense,
    "CuPy spmm": cupy_spmm,
    "cuSPARSE": cusparse_best,
}


HALF_RIVALS = ("torch CSR", "torch CSR addmm", "torch dense")
"""Those that also run in fp16 and bf16."""


def release() -> None:
    """Give back the device memory that the libraries keep for later."""
    import gc
    import sys

    gc.collect()
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()
