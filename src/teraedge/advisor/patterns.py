"""Layers of a given shape and density in the patterns that people prune to."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

BLOCK = 16
"""Inputs and neurons of a block, and neurons that share their inputs in a RadiX-Net."""
MAX_DRAWN = 2**26
"""Weights of a layer, zeros included, for which random numbers are drawn one by one."""
CLOSE = 0.15
"""How far the density of N:M may lie from the one asked for, relative to it."""


def unstructured(n_in: int, n_out: int, density: float, seed: int = 0) -> sp.csr_array:
    """Return edges anywhere."""
    from teraedge.datasets.random import network

    return network([n_in, n_out], density=density, seed=seed)[0].weights


def n_of_m(density: float, n_in: int) -> tuple[int, int]:
    """Return N and M, a power of two of at most `n_in`, with N / M near a density.

    Examples
    --------
    >>> n_of_m(0.5, 1024), n_of_m(0.05, 1024)
    ((1, 2), (3, 64))
    """
    m = 2
    while 2 * m <= n_in and abs(max(round(density * m), 1) / m - density) > CLOSE * density:
        m *= 2
    return max(round(density * m), 1), m


def n_m(n_in: int, n_out: int, density: float, seed: int = 0) -> sp.csr_array | None:
    """Return N edges of every M consecutive inputs of a neuron; None where that is too much."""
    if n_in * n_out > MAX_DRAWN or n_in < 2:
        return None
    n, m = n_of_m(density, n_in)
    rng = np.random.default_rng(seed)
    groups = -(-n_in // m)
    order = rng.random((groups, m, n_out), np.float32)
    chosen = order <= np.partition(order, n - 1, axis=1)[:, n - 1 : n]
    return _weighted(chosen.reshape(groups * m, n_out)[:n_in], rng)


def blocks(n_in: int, n_out: int, density: float, seed: int = 0) -> sp.csr_array | None:
    """Return blocks of 16 x 16 edges anywhere; None where less than one would fit."""
    if n_in * n_out > MAX_DRAWN or min(n_in, n_out) < BLOCK:
        return None
    rng = np.random.default_rng(seed)
    coarse = rng.random((-(-n_in // BLOCK), -(-n_out // BLOCK))) < density
    coarse.flat[rng.integers(coarse.size)] = True
    return _weighted(np.kron(coarse, np.ones((BLOCK, BLOCK), np.bool_))[:n_in, :n_out], rng)


def radix(n_in: int, n_out: int, density: float, seed: int = 0) -> sp.csr_array | None:
    """Return groups of 16 neurons that share inputs, evenly spread, as a RadiX-Net has them."""
    if n_in * n_out > MAX_DRAWN:
        return None
    rng = np.random.default_rng(seed)
    fan_in = min(max(round(density * n_in), 1), n_in)
    chosen = np.zeros((n_in, n_out), np.bool_)
    spread = np.arange(fan_in) * n_in // fan_in
    for group, first in enumerate(range(0, n_out, BLOCK)):
        chosen[(spread + group) % n_in, first : first + BLOCK] = True
    return _weighted(chosen, rng)


def _weighted(chosen: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    weights = sp.csr_array(chosen.astype(np.float32))
    weights.data[:] = rng.normal(0, 0.1, weights.nnz)
    return weights


PATTERNS: dict[str, Callable[[int, int, float], sp.csr_array | None]] = {
    "N:M": n_m,
    "block 16": blocks,
    "RadiX-Net": radix,
}
"""Beside unstructured."""
