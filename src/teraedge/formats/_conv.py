"""Convolutions as sparse layers: an edge for every multiply-add that is not with padding."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.errors import ModelError
from teraedge.formats import _chain
from teraedge.formats._chain import Value

REFUSED = (
    "give lower_conv=True, and input_shape=(channels, ...) where it is not in the file, to turn it "
    "into a sparse layer with an edge a multiply-add, or give the layers after it"
)


def convolved(
    x: Value,
    kernel: NDArray[Any],
    bias: NDArray[Any] | None,
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    where: str,
) -> tuple[Value, str]:
    """Return a convolution as a linear map, and what it costs, for people.

    Parameters
    ----------
    x : Value
        Of shape (channels, size, ...), with as many sizes as the kernel has.
    kernel : ndarray, shape (channels out, channels / groups, size, ...)
    bias : ndarray, shape (channels out,), or None
    stride, dilation : sequence of int
        Along each size.
    padding : sequence of (int, int)
        Zeros before and after.
    groups : int
    where : str
    """
    outputs, inputs = kernel.shape[:2]
    axes = len(kernel.shape) - 2
    if len(x.shape) != axes + 1 or x.shape[0] != inputs * groups or outputs % groups:
        raise ModelError(
            f"{where} reads {inputs * groups} channels of {axes} sizes and is given {x.shape}; "
            "give input_shape=(channels, ...)"
        )
    before = x.shape[1:]
    after = tuple(
        (size + sum(pad) - step * (length - 1) - 1) // by + 1
        for size, pad, step, length, by in zip(
            before, padding, dilation, kernel.shape[2:], stride, strict=True
        )
    )
    if min(after) < 1:
        raise ModelError(f"{where} has a kernel larger than its input {before}; give another input")
    parts = []
    for number, offset in enumerate(product(*map(range, kernel.shape[2:]))):
        part = kernel.reshape(outputs, inputs, -1)[:, :, number]
        pairs = np.nonzero(part)
        reads, writes = _places(before, after, offset, stride, padding, dilation)
        channel = pairs[1] + pairs[0] // (outputs // groups) * inputs
        rows = (channel[:, None] * math.prod(before) + reads).ravel()
        columns = (pairs[0][:, None] * math.prod(after) + writes).ravel()
        values = np.repeat(part[pairs], len(reads))
        parts.append((values, rows, columns))
    values, rows, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    shape = x.size, outputs * math.prod(after)
    weights = sp.csr_array((values, (rows, columns)), shape=shape)
    biases = None if bias is None else np.repeat(bias, math.prod(after))
    flat = _chain.linear(_chain.reshaped(x, (x.size,)), weights, biases, where)
    work = kernel.size * math.prod(after)
    note = (
        f"{where} runs as a sparse layer of {weights.nnz:,} edges, for {work:,} multiply-adds and "
        f"{kernel.size:,} weights as a convolution"
    )
    return _chain.reshaped(flat, (outputs, *after)), note


def _places(
    before: Sequence[int],
    after: Sequence[int],
    offset: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where one weight of the kernel reads and writes, within a channel."""
    reads, writes = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for size, count, at, by, pad, step in zip(
        before, after, offset, stride, padding, dilation, strict=True
    ):
        out = np.arange(count)
        into = out * by - pad[0] + at * step
        inside = (into >= 0) & (into < size)
        reads = (reads[:, None] * size + into[inside]).ravel()
        writes = (writes[:, None] * count + out[inside]).ravel()
    return reads, writes


def same_padding(length: int, dilation: int) -> tuple[int, int]:
    """Return the zeros before and after that keep a size, the odd one after, as PyTorch has it."""
    total = dilation * (length - 1)
    return total // 2, total - total // 2
