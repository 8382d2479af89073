"""Weights as sums of the numbers that tensor cores multiply."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.options import Precision

PLANES: dict[Precision, int] = {"fp32": 3, "fp16": 1, "bf16": 1}
"""Terms of an activation as it is stored: of bf16, or one of fp16."""
MOST_TERMS: dict[Precision, int] = {"fp32": 3, "fp16": 2, "bf16": 3}
"""Terms of a weight, at most: three of bf16 hold the 24 bits of a number, two of fp16 hold 22."""
_TOP = 14
"""Weights are scaled, for terms of fp16, so that the largest has this exponent: up to 2**15."""


class Terms(NamedTuple):
    """Numbers as sums of others.

    Attributes
    ----------
    bits : list of ndarray of uint16
        The bits of the terms, the largest first; as few as hold all numbers exactly, or the most.
    scale : float
        What sums are to be multiplied by, a power of two.
    """

    bits: list[NDArray[np.uint16]]
    scale: float


def split(values: NDArray[np.float32], precision: Precision) -> Terms:
    """Split numbers into terms, rounded to nearest: of fp16 if activations are stored so, or bf16.

    Two terms of fp16 are off by at most 2**-22 of a number, or 2**-39 of the largest one.
    """
    if precision == "fp16":
        return _fp16(values)
    return Terms(bf16_terms(values), 1.0)


def bf16_terms(values: NDArray[np.float32]) -> list[NDArray[np.uint16]]:
    """Split numbers into sums of bf16 numbers, rounded to nearest: at most three are exact.

    Returns
    -------
    list of ndarray of uint16
        The bits of the terms, the largest first; as few as hold all values exactly.
    """
    terms: list[NDArray[np.uint16]] = []
    rest = values.astype(np.float32)
    while not terms or (len(terms) < MOST_TERMS["fp32"] and rest.any()):
        bits = rest.view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
        overflowed = ~np.isfinite(rounded.view(np.float32))
        rounded = np.where(overflowed, bits & np.uint32(0xFFFF0000), rounded)
        terms.append((rounded >> 16).astype(np.uint16))
        rest = rest - rounded.view(np.float32)
    return terms


def _fp16(values: NDArray[np.float32]) -> Terms:
    """Split numbers into terms of fp16, whose few exponents are made the most of."""
    largest = float(np.abs(values).max(initial=0.0))
    # What is left of tiny ones would be no number of fp32 when sums are scaled back.
    exponent = max(math.frexp(largest)[1] - 1, -100) if largest else _TOP
    rest = (values.astype(np.float64) * 2.0 ** (_TOP - exponent)).astype(np.float32)
    bits: list[NDArray[np.uint16]] = []
    while not bits or (len(bits) < MOST_TERMS["fp16"] and rest.any()):
        term = rest.astype(np.float16)
        bits.append(term.view(np.uint16))
        rest = rest - term.astype(np.float32)
    return Terms(bits, 2.0 ** (exponent - _TOP))
