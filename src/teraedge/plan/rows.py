"""The row layout, for a few samples at a time: the outgoing weights of each input side by side.

Kernels over panels compute many samples side by side; of one sample they would waste all lanes but
one. Here a nonzero input of the sample is multiplied into the sums of the neurons it goes to, and
inputs that are zero, of which a ReLU leaves many, cost nothing. Where most are not zero, lookups
(`plan.lookups`) may be faster, which a part may have beside. A layer is cut into *parts* by output
neurons, one or more a thread.

The order of sums is that of the panels, so a sample's row is the same to the last bit in whatever
company it runs: inputs ascend. Skipping x 0 changes no sum of finite numbers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.grouping import lengths
from teraedge.plan.lookups import Lookups, lookups, no_lookups
from teraedge.plan.panels import PanelLayer, Panels

MAX_WIDTH = 2**16 - 1
"""Neurons of a part, at most: their sums, and one more, are numbered in two bytes."""
MIN_BYTES = 2**15
"""Of the weights of a part: what a thread multiplies while another wakes up."""
SCATTERED = 6
"""What a weight costs that goes to a sum anywhere, in weights that are streamed, zeros included.
Those of lookups, padding included, cost what streamed ones do."""


@dataclass(frozen=True)
class RowPart:
    """The weights into some neighbouring neurons of a layer, by input.

    Attributes
    ----------
    first, last : int
        The neurons.
    starts : ndarray of int64, shape (n_in + 1,)
        Edges of input i are ``4 starts[i]`` to ``4 starts[i + 1]``: each row is padded to whole
        fours with edges of weight 0 to one sum more.
    targets : ndarray of uint16, shape (edges,)
        The sum that each edge goes to.
    weights : ndarray of float32, shape (edges,)
    dense : ndarray of float32, shape (sums * n_in,)
        More weights, zeros included: block after block of sums, the weights of an input into a
        block side by side. `wide` blocks are followed by `narrow` ones.
    wide, narrow : int
    cost : float
        Of all this, in weights that are streamed, where no input is zero.
    lookups : Lookups
        All of the weights once more, if they cost less so where no input is zero.
    """

    first: int
    last: int
    starts: NDArray[np.int64]
    targets: NDArray[np.uint16]
    weights: NDArray[np.float32]
    dense: NDArray[np.float32]
    wide: int
    narrow: int
    cost: float
    lookups: Lookups


class Widths(NamedTuple):
    """Sums of a wide and of a narrow block of dense weights; the wide is a multiple.

    A narrow one is also a group of `lookups`, which only some machines have.
    """

    wide: int
    narrow: int
    looks_up: bool = False

    def whole(self, sums: int) -> int:
        """Return sums in whole narrow blocks."""
        return -(-sums // self.narrow) * self.narrow


def sharers(edges: int, n_out: int, threads: int) -> int:
    """Return how many of some threads can share a layer."""
    return max(1, min(threads, edges * 4 // MIN_BYTES, n_out))


def row_parts(layer: PanelLayer, threads: int, widths: Widths) -> list[RowPart]:
    """Lay a layer out by rows, in as many parts as threads can share."""
    edges = np.concatenate([_edges(layer.tall, layer.value), _edges(layer.single, layer.value)])
    tall = np.zeros(layer.n_out, np.bool_)
    tall[layer.tall.outputs] = True
    edges = edges[np.argsort(edges["input"], kind="stable")]
    parts = sharers(len(edges), layer.n_out, threads)
    # Whole registers: no thread then writes a cache line, or streams a block, of another one's.
    # The last ones may be empty: samples side by side share panels instead.
    width = min(widths.whole(-(-layer.n_out // parts)), MAX_WIDTH)
    found = []
    for part in range(max(parts, -(-layer.n_out // width))):
        first, last = (min(n * width, layer.n_out) for n in (part, part + 1))
        mine = edges[(edges["neuron"] >= first) & (edges["neuron"] < last)]
        found.append(_part(first, last, mine, tall, layer.n_in, widths))
    return found


_EDGE = np.dtype([("input", np.int32), ("neuron", np.int32), ("weight", np.float32)])


def _edges(panels: Panels, value: float | None) -> NDArray[np.void]:
    """Return the edges of panels, one by one, without those that only pad."""
    height, counts = panels.height, lengths(panels.starts)
    edges = np.empty(len(panels.indices) * height, _EDGE)
    edges["input"] = np.repeat(panels.indices, height)
    panel = np.repeat(np.arange(len(counts)), counts)
    edges["neuron"] = panels.outputs.reshape(-1, height)[panel].ravel()
    edges["weight"] = panels.weights if value is None else value
    return np.asarray(edges[edges["weight"] != 0])


def _part(
    first: int,
    last: int,
    edges: NDArray[np.void],
    tall: NDArray[np.bool_],
    n_in: int,
    widths: Widths,
) -> RowPart:
    """Return the part of the neurons `first` to `last` with these edges, by ascending input."""
    width = last - first
    in_panels = tall[edges["neuron"]]
    # All edges may be scattered, or those in panels streamed, or all.
    ways = (np.zeros_like(in_panels), in_panels, np.ones_like(in_panels))
    costs = [
        SCATTERED * np.count_nonzero(~way) + n_in * widths.whole(width * bool(way.any()))
        for way in ways
    ]
    some, cost = ways[int(np.argmin(costs))], float(min(costs))
    dense, wide, narrow = _blocks(edges[some], first, width * bool(some.any()), n_in, widths)
    rest = edges[~some]
    scattered = _fours(rest, rest["neuron"] - first, n_in, width)
    looked_up = no_lookups(widths.narrow)
    if widths.looks_up:
        columns = edges["neuron"].astype(np.int64) - first, edges["input"], edges["weight"]
        looked_up = lookups(*columns, (n_in, width), widths.narrow, cost)
    return RowPart(first, last, *scattered, dense, wide, narrow, cost, looked_up)


def _blocks(
    edges: NDArray[np.void], first: int, sums: int, n_in: int, widths: Widths
) -> tuple[NDArray[np.float32], int, int]:
    """Return the weights of edges in blocks of some sums, and how many are wide and narrow."""
    wide = sums // widths.wide
    split = wide * widths.wide
    narrow = -(-(sums - split) // widths.narrow)
    dense = np.zeros((split + narrow * widths.narrow) * n_in, np.float32)
    neuron = edges["neuron"].astype(np.int64) - first
    in_wide = neuron < split
    size = np.where(in_wide, widths.wide, widths.narrow)
    begin = np.where(in_wide, 0, split)  # sums before the blocks of this width
    block, place = np.divmod(neuron - begin, size)
    dense[(begin + block * size) * n_in + edges["input"] * size + place] = edges["weight"]
    return dense, wide, narrow


def _fours(
    edges: NDArray[np.void], targets: NDArray[np.int32], n_in: int, spare: int
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.float32]]:
    """Return starts, targets and weights, the rows padded with edges to the sum `spare`."""
    counts = np.bincount(edges["input"], minlength=n_in)
    starts = np.concatenate(([0], np.cumsum(-(-counts // 4)))).astype(np.int64)
    # Where each edge lies among the padded ones.
    places = np.arange(len(edges)) + np.repeat(4 * starts[:-1] - np.cumsum(counts) + counts, counts)
    padded = np.full(4 * starts[-1], spare, np.uint16)
    padded[places] = targets
    weights = np.zeros(len(padded), np.float32)
    weights[places] = edges["weight"]
    return starts, padded, weights
