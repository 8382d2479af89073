"""How a batch is divided: samples in tiles, which threads run on their own, and those they share.

A tile of few samples costs far more than its share, because all weights are read for it as well;
and where threads have tiles of different sizes, all wait for the largest. So what is left of a
batch after as many full tiles as each thread can have is rather run by all threads together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from teraedge.engines.cpu.few import MOST
from teraedge.engines.cpu.simd import LANES, TILE, VECTORS
from teraedge.plan.choice import Part
from teraedge.plan.rows import sharers

READING = 2
"""What weights and indices cost a tile to read: as much as so many of its registers of samples."""
TOGETHER = 1.07
"""How much longer samples take if threads share every layer: they wait for each other."""
STARTING = 2e-4
"""Seconds to start and to end threads that have tiles of their own."""
CALL, MEETING = 6e-6, 3e-6
"""Seconds of a call for samples that are shared, and of each of its layers, beside their work."""
LEAST = 1 / 8
"""Of the time of a batch: what sharing more of it must save. It takes memory and a second layout,
and where other programs run on the same cores, threads that share layers wait more."""


class Costs(NamedTuple):
    """Predicted seconds of a network.

    Attributes
    ----------
    tiled, shared : float
        Of a register of samples in a full tile, on one core, and where all threads share it.
    call : float
        Of up to `MOST` shared samples, beside those.
    """

    tiled: float
    shared: float
    call: float


def costs_of(parts: Sequence[Part], threads: int) -> Costs:
    """Predict the costs of the layers that run."""
    seconds = [LANES * (part.choice.seconds or 0.0) for part in parts]
    shared = [
        each / sharers(part.edges, part.n_out, threads)
        for each, part in zip(seconds, parts, strict=True)
    ]
    return Costs(sum(seconds), TOGETHER * sum(shared), CALL + MEETING * len(parts))


def tile_size(samples: int, threads: int) -> int:
    """Return the samples of a tile: whole registers, as few as let each thread have as many tiles.

    Few samples are spread over all threads, rather than filling the tiles of some.
    """
    rounds = max(1, -(-samples // (threads * TILE)))
    return max(1, -(-samples // (threads * rounds * LANES))) * LANES


def in_tiles(samples: int, threads: int, costs: Costs) -> int:
    """Return how many of some samples, the first ones, are to run in tiles, the others shared.

    All, or as many as give each thread the same full tiles, or none.
    """
    whole = samples // (threads * TILE) * threads * TILE
    best, least = samples, _seconds(samples, samples, threads, costs)
    for tiled in (whole, 0):
        seconds = _seconds(tiled, samples, threads, costs)
        if seconds <= (1 - LEAST) * least:
            best, least = tiled, seconds
    return best


def _seconds(tiled: int, samples: int, threads: int, costs: Costs) -> float:
    """Predict a batch of which the first samples run in tiles."""
    seconds = 0.0
    if tiled:
        size = tile_size(tiled, threads)
        rounds = -(-tiled // (size * threads))
        registers = (READING + size // LANES) * VECTORS / (READING + VECTORS)
        seconds += STARTING + rounds * registers * costs.tiled
    rest = samples - tiled
    return seconds + -(-rest // LANES) * costs.shared + -(-rest // MOST) * costs.call
