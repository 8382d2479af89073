"""What the block kernel reads of a layer, beside what all kernels do."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.options import Precision
from teraedge.plan.kernel_sizes import WARPS
from teraedge.plan.terms import PLANES

FIRST_PLACE = 16
"""Rows of its tile before those of neurons: zeros, and rows written for nobody."""
GROUP = 32
"""Neurons that it moves at a time where samples lie in one piece."""
UNITS = 4
"""Of a place: 8 samples each, of 32."""
RECORDS = 8
"""Panels of a warp that it has room for what there is to know of."""


class BlockKind(NamedTuple):
    """What the block kernel is specialised by.

    Attributes
    ----------
    samples : int
        Of a tile, at most.
    terms : int
        Terms that a weight is the sum of; 0 where all weights are equal.
    held : int
        Panels that a warp holds at most where there is one tile; 0 where there are two.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.
    """

    samples: int
    terms: int
    held: int
    precision: Precision = "fp32"

    def shared(self, plane: int, record: int) -> int:
        """Return the shared memory of a block, in bytes, from that of a plane and of a record."""
        tiles = PLANES[self.precision] * plane * (1 if self.held else 2)
        return tiles + WARPS * RECORDS * record + 128  # a step more than there are may be read

    def plane_bytes(self, neurons: int) -> int:
        """Return the bytes of a plane with so many neurons."""
        return (neurons + FIRST_PLACE) * self.samples * 2


class BlockParts(NamedTuple):
    """What only the block kernel needs of a layer.

    Attributes
    ----------
    kind : BlockKind
    room : int
        Shared memory that a block may have, in bytes.
    rounds, fragments : int
        Panels of a warp, and pieces of its weights, at most.
    places : ndarray of uint16, shape (n_in,)
        Where in the tile each input lies.
    outputs : ndarray of int32, shape (warps, rounds, 16)
        Neurons of each panel, -1 where there is none.
    biases : ndarray of float32, shape (warps, rounds, 16)
    lengths : ndarray of uint32, shape (warps, rounds)
        Steps into each panel alone, and 65536 times those into the next one too.
    units : ndarray of uint16, shape (warps, rounds, steps, 16)
        Of the rows that are read for each panel, a step.
    """

    kind: BlockKind
    room: int
    rounds: int
    fragments: int
    places: NDArray[np.uint16]
    outputs: NDArray[np.int32]
    biases: NDArray[np.float32]
    lengths: NDArray[np.uint32]
    units: NDArray[np.uint16]

    def inputs(self, before: "BlockParts | None") -> NDArray[np.uint16]:
        """Return where each input lies, and, place after place, which lies there.

        Inputs come in their order, or in that of the panels of the layer before the segment.
        """
        places = self.places if before is None else self.places[np.argsort(before.ends)]
        return np.concatenate((places, np.argsort(self.places).astype(np.uint16)))

    @property
    def ends(self) -> NDArray[np.uint16]:
        """Where each output lies at the end of a segment: in the order of the panels."""
        written = self.outputs[self.outputs >= 0]
        places = np.empty(len(written), np.uint16)
        places[written] = FIRST_PLACE + np.arange(len(written), dtype=np.uint16)
        return places

    @property
    def steps(self) -> int:
        """Steps of a panel, at most."""
        return int(self.units.shape[2])

    @property
    def record_bytes(self) -> int:
        """Bytes of what there is to know of a panel."""
        return _record(self.steps).itemsize

    def records(self, following: "BlockParts | None") -> NDArray[np.uint8]:
        """Return what there is to know of each panel; outputs go to places of the next layer."""
        outputs = self.outputs
        after = self.ends if following is None else following.places
        places = after.astype(np.int32)[outputs]
        nobody = FIRST_PLACE // 2 + np.arange(outputs.shape[2]) % (FIRST_PLACE // 2)
        records = np.zeros(outputs.shape[:2], _record(self.steps))
        records["biases"], records["lengths"] = self.biases, self.lengths
        records["outputs"] = row_units(np.where(outputs < 0, nobody, places))
        records["units"] = self.units
        return records.reshape(-1).view(np.uint8)


def _record(steps: int) -> np.dtype[Any]:
    """Return how block_ahead.cuh reads what there is to know of a panel."""
    return np.dtype(
        [
            ("biases", np.float32, 16),
            ("outputs", np.uint16, 16),
            ("lengths", np.uint32),
            ("", "V12"),
            ("units", np.uint16, (steps, 16)),
        ]
    )


def row_units(places: NDArray[np.integer[Any]]) -> NDArray[np.uint16]:
    """Return the units that the block kernel has for rows at some places."""
    wide = places.astype(np.int64)
    return (wide * UNITS + (wide >> 1 & 3)).astype(np.uint16)
