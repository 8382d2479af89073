"""The first layer over packed 0/1 features, in chunks of panels that read few inputs together.

A tile of a wide layer's inputs in float32 does not fit a core's cache: 65536 neurons of 48 samples
are 12 MB, that are written once and read a few times. Packed features are 32 times smaller. So
they are only transposed, a bit a sample (`feeding.load_masks`), and the inputs of one chunk at a
time are spread to float32 just before the panels that read them run. The arithmetic is the same.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from teraedge.engines.cpu.simd import TILE
from teraedge.plan.panels import PanelLayer, Panels

CACHE = 2**18
"""Bytes of spread inputs a chunk reads, at most: half of a small second-level cache. A layer whose
inputs fit into twice that needs no chunks."""
MAX_SPREADS = 4
"""Chunks pay while an input is spread at most so often: to fill and read a row outside caches
costs about as much."""


class Chunks(NamedTuple):
    """The first layer's panels in chunks; without any, the layer runs as all others do.

    Attributes
    ----------
    tall, single, starts : ndarray of int64, shape (chunks + 1,)
        Where the panels, and the inputs, of each chunk begin.
    inputs : ndarray of int64
        The neurons that a chunk spreads, into the first rows of a tile.
    tall_indices, single_indices : ndarray of uint8
        As the layer's indices, as bytes, but counted among the inputs of the chunk.
    """

    tall: Any
    single: Any
    starts: Any
    inputs: Any
    tall_indices: Any
    single_indices: Any


_ints = types.int64[::1]
chunks_type = types.NamedTuple([_ints] * 4 + [types.uint8[::1]] * 2, Chunks)

_ONE = np.zeros(1, np.int64)
NO_CHUNKS = Chunks(_ONE, _ONE, _ONE, _ONE[:0], np.empty(0, np.uint8), np.empty(0, np.uint8))


def first_chunks(layer: PanelLayer) -> Chunks:
    """Cut the first layer of a network into chunks, where that pays."""
    rows = CACHE // (4 * TILE)
    if layer.n_in <= 2 * rows:
        return NO_CHUNKS
    tall = _cut(layer.tall, rows)
    single = _cut(layer.single, rows)
    inputs = [found for _, found, _ in tall + single]
    if not inputs or sum(map(len, inputs)) > MAX_SPREADS * layer.n_in:
        return NO_CHUNKS
    tall_ends = [0] + [end for end, _, _ in tall]
    single_ends = [0] * len(tall_ends) + [end for end, _, _ in single]
    return Chunks(
        np.array(tall_ends + tall_ends[-1:] * len(single), np.int64),
        np.array(single_ends, np.int64),
        np.cumsum([0, *map(len, inputs)], dtype=np.int64),
        np.concatenate(inputs).astype(np.int64),
        _joined(tall, layer.tall),
        _joined(single, layer.single),
    )


Piece = tuple[int, NDArray[Any], NDArray[Any]]


def _cut(panels: Panels, rows: int) -> list[Piece]:
    """Cut panels, in their order, so that each piece reads at most `rows` inputs, or is one panel.

    Returns the end of each piece, its inputs, and for each of its edges the place among those.
    """
    pieces: list[Piece] = []
    starts, count = panels.starts, len(panels.starts) - 1
    begin = 0
    while begin < count:
        # no more edges than could fit if every input were read 16 times
        furthest = int(np.searchsorted(starts, starts[begin] + 16 * rows, side="right")) - 1
        end = min(max(furthest, begin + 1), count)
        edges = panels.indices[starts[begin] : starts[end]]
        found, seen_at = np.unique(edges, return_index=True)
        if len(found) > rows:
            too_many = starts[begin] + np.sort(seen_at)[rows]
            end = max(int(np.searchsorted(starts, too_many, side="right")) - 1, begin + 1)
            edges = panels.indices[starts[begin] : starts[end]]
        found, place = np.unique(edges, return_inverse=True)
        pieces.append((end, found, place))
        begin = end
    return pieces


def _joined(pieces: list[Piece], panels: Panels) -> NDArray[np.uint8]:
    """Return the indices of all pieces as bytes, with one to spare as in `Panels`."""
    parts = [place for _, _, place in pieces]
    return np.concatenate([*parts, [0]]).astype(panels.indices.dtype).view(np.uint8)
