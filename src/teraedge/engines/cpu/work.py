"""Pieces of a run in tiles, which threads take one after the other."""

from collections.abc import Callable, Iterator

from teraedge.engines.cpu import feeding
from teraedge.engines.cpu.pool import Pool, Samples
from teraedge.engines.cpu.program import Program
from teraedge.engines.cpu.state import State

Work = Callable[[Program, Pool, State], Iterator[int]]
"""Takes some samples through a segment; yields the tiles that come out at the end."""


def tiles_of(program: Program, pool: Pool, state: State, work: Iterator[Work]) -> Iterator[int]:
    """Yield the tiles that come out of a segment in one thread; each is free when the next comes.

    Samples are taken until none are left, then what is parked goes on, from the furthest behind.
    """
    for piece in work:
        yield from piece(program, pool, state)
    yield from _through(feeding.parked(), 0, feeding.UNTIL_NONE, 1, program, state)


def features_work(
    source: Callable[[int, int], feeding.Source], first: int, last: int, size: int
) -> Work:
    """Return the work on samples `first` to `last`, in tiles of `size`."""

    def work(program: Program, pool: Pool, state: State) -> Iterator[int]:
        return _through(source(first, last), first, last, size, program, state)

    return work


def tile_work(samples: Samples) -> Work:
    """Return the work on a tile that came out of another segment."""

    def work(program: Program, pool: Pool, state: State) -> Iterator[int]:
        if pool.put(samples):
            yield from _through(feeding.parked(), 0, 1, 1, program, state)

    return work


def no_work(program: Program, pool: Pool, state: State) -> Iterator[int]:
    """Stand for work that was taken, and is not to be taken again."""
    raise AssertionError("samples were taken twice")


def _through(
    source: feeding.Source, first: int, last: int, size: int, program: Program, state: State
) -> Iterator[int]:
    """Yield the tiles that come out while all samples of a source go through a segment."""
    while True:
        first, tile = feeding.run(source, first, last, size, program.table, program.chunks, state)
        if tile < 0:
            return
        yield tile
