"""How far an fp32 answer may lie from the float64 reference."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.features import to_dense
from teraedge.head import error_of_head
from teraedge.network import Network

UNIT = 2.0**-24
"""The largest relative error of rounding a number to fp32."""

EXTRA = 8
"""Roundings beside those of a sum: weights, bias and their merged or folded forms, bias added."""

CURVE = 8
"""Roundings of the value of a smooth activation, relative to it and to 1."""

PASSES = {
    "merge_neurons": "weights of merged neurons are added in float64, rounded to fp32 once",
    "fold_constants": "constants are added to biases in float64, rounded to fp32 once",
    "factor": "inputs with equal rows are added up before they are multiplied",
}
"""What the passes that reassociate do; the others change no sum."""


def statements(passes: Iterable[str]) -> list[str]:
    """Say what makes the last bits differ from those of the float64 reference.

    Parameters
    ----------
    passes : iterable of str
        Those that found something.
    """
    return ["sums are rounded to fp32", *(PASSES[name] for name in passes if name in PASSES)]


def error_bound(network: Network, features: Any) -> NDArray[np.float64]:
    """Bound the error of every output of an fp32 run, whatever the order of its sums.

    A sum of n products in fp32 is off by at most gamma times the sum of their magnitudes, with
    gamma = k u / (1 - k u), u = 2**-24 and k the roundings on the way of any term (Higham,
    *Accuracy and Stability of Numerical Algorithms*, 2002, section 3.1). Passes may add a term to
    another sum first, so k = 2 n + 8 here. The error of a layer's inputs goes through |W|. An
    activation changes by no more than its slope times its argument's change, and a bounded one by
    no more than the distance of its bounds; its own value is off by a few roundings. Values must
    stay within the range of fp32.

    Parameters
    ----------
    network : Network
    features : array, shape (samples, n_in)
        Anything that `Engine.run` takes.

    Returns
    -------
    ndarray of float64, shape (samples, n_out)
        The largest possible absolute difference to `reference.run`. It grows with depth, and is
        far above what is seen.

    Examples
    --------
    >>> from teraedge import Layer
    >>> bound = error_bound(Network([Layer([[1.0], [2.0]])]), [[1.0, 1.0]])
    >>> 1e-7 < bound.item() < 1e-5
    True
    """
    x = to_dense(features, network.n_in)
    error = np.abs(x) * UNIT  # of features rounded to fp32
    for layer in network:
        weights = layer.weights.astype(np.float64)
        magnitude = abs(weights)
        bias = np.zeros(layer.n_out) if layer.bias is None else layer.bias
        roundings = (2 * np.diff(weights.tocsc().indptr) + EXTRA) * UNIT
        gamma = roundings / (1 - roundings)
        error = error @ magnitude + gamma * ((np.abs(x) + error) @ magnitude + np.abs(bias))
        x = layer.activation(x @ weights + bias)
        own = CURVE * UNIT * (1 + np.abs(x)) if layer.activation.curve else UNIT * np.abs(x)
        lower, upper = layer.activation.range
        error = np.minimum(error * layer.activation.slope + own, upper - lower)
    return error_of_head(network.head, x, error, UNIT)
