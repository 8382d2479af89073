"""What kernels work on: a layer as sizes and addresses, and the state of a thread."""

from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types

from teraedge.engines.cpu.simd import TILE

HALF = TILE // 2
FREE = -1
"""What an unused tile waits for."""
IN_USE = -2

PANELS = np.dtype(
    [(name, np.int64) for name in ("count", "starts", "indices", "weights", "outputs")],
    align=True,
)
LAYER = np.dtype(
    [
        ("n_in", np.int64),
        ("n_out", np.int64),
        ("edges", np.int64),
        ("droppable", np.int64),
        ("equal", np.int64),
        ("curve", np.int64),
        ("index_bytes", np.int64),
        ("bias", np.int64),
        ("tall", PANELS),
        ("single", PANELS),
        ("value", np.float32),
        ("lower", np.float32),
        ("upper", np.float32),
    ],
    align=True,
)
"""A layer as kernels see it: sizes, flags, addresses. `droppable`: zero rows after it are dead;
`curve`: the number of its smooth activation, 0 for none."""


class State(NamedTuple):
    """What a thread works on: its tiles, its counters, and which samples equal which.

    The first axis of the first five is the tiles of the thread's pool; live, executed, nanos and
    looks have an entry a layer of the segment.

    Attributes
    ----------
    tiles : ndarray of float32, shape (tiles, neurons * TILE)
    ids, shares : ndarray of int64, shape (tiles, TILE)
        The sample in each lane, and how many equal samples it stands for.
    counts : ndarray of int64, shape (tiles,)
        Lanes in use.
    waits : ndarray of int64, shape (tiles,)
        The layer a tile waits for, `FREE` or `IN_USE`.
    live, executed, nanos : ndarray of int64, shape (layers,)
        Samples live after each layer, multiply-adds, and time, to be added to.
    looks : ndarray of int64, shape (layers + 1, 3)
        Tiles that came by, looks for equal samples, and looks that found some.
    scratch : ndarray of uint8
        For features on their way into a tile.
    masks : ndarray of uint64, shape (neurons,)
        The samples of a tile that are 1, a bit each, where the first layer runs in chunks.
    hashes, lanes : ndarray of uint32 and int32, shape (TILE,)
    begins : ndarray of int64, shape (TILE / LANES,)
    same_as : ndarray of int64, shape (samples,)
        The sample that runs for each; shared by all threads, each writes its own samples.
    look_until : int
        The last layer before which equal samples are looked for.
    """

    tiles: Any
    ids: Any
    shares: Any
    counts: Any
    waits: Any
    live: Any
    executed: Any
    nanos: Any
    looks: Any
    scratch: Any
    masks: Any
    hashes: Any
    lanes: Any
    begins: Any
    same_as: Any
    look_until: Any


# The same as numba knows them, for the signatures of kernels.
layer_type = from_dtype(LAYER)
layers_type = types.Array(layer_type, 1, "C", readonly=True)
_ints, _int_rows = types.int64[::1], types.int64[:, ::1]
row_type = types.float32[::1]
scratch_type = types.uint8[::1]
_pool = [types.float32[:, ::1], _int_rows, _int_rows, _ints, _ints]
_counters = [_ints, _ints, _ints, _int_rows]
_others = [
    scratch_type,
    types.uint64[::1],
    types.uint32[::1],
    types.int32[::1],
    _ints,
    _ints,
    types.int64,
]
state_type = types.NamedTuple(_pool + _counters + _others, State)
