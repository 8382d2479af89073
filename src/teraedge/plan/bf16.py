"""fp32 numbers as sums of bf16 numbers, for tensor cores."""

import numpy as np
from numpy.typing import NDArray

MOST_TERMS = 3
"""Terms of 8 bits each that hold the 24 of a number."""


def bf16_terms(values: NDArray[np.float32]) -> list[NDArray[np.uint16]]:
    """Split numbers into sums of bf16 numbers, rounded to nearest: at most three are exact.

    Returns
    -------
    list of ndarray of uint16
        The bits of the terms, the largest first; as few as hold all values exactly.
    """
    terms: list[NDArray[np.uint16]] = []
    rest = values.astype(np.float32)
    while not terms or (len(terms) < MOST_TERMS and rest.any()):
        bits = rest.view(np.uint32)
        rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF0000)
        overflowed = ~np.isfinite(rounded.view(np.float32))
        rounded = np.where(overflowed, bits & np.uint32(0xFFFF0000), rounded)
        terms.append((rounded >> 16).astype(np.uint16))
        rest = rest - rounded.view(np.float32)
    return terms
