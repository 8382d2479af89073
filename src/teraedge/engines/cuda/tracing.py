"""What a run did, from what kernels counted."""

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.state import Counters
from teraedge.plan.explain import LastRun
from teraedge.result import LayerTrace


def trace_of(
    origin: list[int],
    edges: NDArray[np.uint64],
    blocks: NDArray[np.int64],
    samples: int,
    batches: list[Counters],
) -> tuple[list[LayerTrace], LastRun]:
    """Return what layers did in a run: as given, and those that ran.

    Parameters
    ----------
    origin : list of int
        The layer as given of each that ran.
    edges, blocks : ndarray of int
        Of each that ran: its edges, and the blocks that shared its time.
    samples : int
    batches : list of Counters
    """
    live = np.sum([counters.live for counters in batches], axis=0).tolist()
    ran = np.sum([counters.ran for counters in batches], axis=0)
    seconds = (np.sum([counters.nanos for counters in batches], axis=0) / blocks / 1e9).tolist()
    trace = [LayerTrace(0, 0, 0.0)] * (origin[-1] + 1)
    for layer, *row in zip(origin, live, (ran * edges).tolist(), seconds, strict=True):
        before = trace[layer]  # a layer as given may run in several parts
        trace[layer] = LayerTrace(row[0], before.edges + row[1], before.seconds + row[2])
    return trace, LastRun(samples, ran.tolist(), seconds, 1)


def merged(counters: Counters) -> bool:
    """Tell whether fewer samples went into a layer than were live before it."""
    return bool((counters.ran[1:] < counters.live[:-1]).any())
