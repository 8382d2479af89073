"""The definition: what every engine must equal, in plain SciPy and float64.

Slow on purpose. Nothing is dropped, merged or rewritten, and the bias is added everywhere.
"""

from time import perf_counter
from typing import Any

import numpy as np

from teraedge.features import to_dense
from teraedge.network import Network
from teraedge.result import LayerTrace, Result


def run(network: Network, features: Any) -> Result:
    """Run a network in float64.

    Parameters
    ----------
    network : Network
    features : array, shape (samples, n_in)
        Anything that `Engine.run` takes.

    Returns
    -------
    Result
        With float64 outputs; `LayerTrace.live` counts the rows that are nonzero.
    """
    start = perf_counter()
    y = to_dense(features, network.n_in)
    trace = []
    for layer in network:
        begin = perf_counter()
        y = y @ layer.weights.astype(np.float64)
        if layer.bias is not None:
            y += layer.bias
        y = layer.activation(y)
        live = int(y.any(axis=1).sum())
        trace.append(LayerTrace(live, len(y) * layer.edges, perf_counter() - begin))
    return Result(
        y.shape,
        [(np.arange(len(y)), y)],
        trace,
        seconds=perf_counter() - start,
        nominal_edges=sum(layer.edges for layer in trace),
        head=network.head,
    )
