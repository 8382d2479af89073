"""How far an fp32 answer may lie from the float64 reference."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.features import to_dense
from teraedge.head import error_of_head
from teraedge.network import Network
from teraedge.options import Precision

UNIT = 2.0**-24
"""The largest relative error of rounding a number to fp32."""

LARGEST: dict[Precision, float] = {
    "fp32": 3.4028234663852886e38,
    "fp16": 65504.0,
    "bf16": 3.3895313892515355e38,
}
"""The largest number of each storage of activations; what is larger is held there."""

STORED: dict[Precision, tuple[float, float]] = {
    "fp32": (0.0, 0.0),
    "fp16": (2.0**-11, 2.0**-25),
    "bf16": (2.0**-9, 2.0**-134),
}
"""The largest relative error of storing a number, and the largest absolute one near zero."""

LOST = 2.0**-39
"""What terms of fp16 may miss of a weight, relative to the largest of its layer."""

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


def statements(
    passes: Iterable[str], curved: bool, head: str | None, precision: Precision = "fp32"
) -> list[str]:
    """Say what makes the last bits differ from those of the float64 reference.

    Parameters
    ----------
    passes : iterable of str
        Those that found something.
    curved : bool
        Whether a layer has a smooth activation.
    head : str or None
        Of the network.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.
    """
    found = ["sums are rounded to fp32"]
    if precision != "fp32":
        relative, _ = STORED[precision]
        found.append(
            f"features and the outputs of every layer are rounded to {precision}, each off by up "
            f"to {relative:.2g} of itself, and held within {LARGEST[precision]:.6g}"
        )
    if curved:
        found.append("smooth activations are computed in fp32")
    if head is not None:
        found.append(f"the {head} is computed in fp32")
    return [*found, *(PASSES[name] for name in passes if name in PASSES)]


def stored_as(precision: Precision) -> str:
    """Say in a plan how activations are stored, and how far off that is; nothing for fp32."""
    relative, _ = STORED[precision]
    how = f", activations as {precision}, each off by up to {relative:.2g} of itself"
    return how if relative else ""


def error_bound(
    network: Network, features: Any, precision: Precision = "fp32"
) -> NDArray[np.float64]:
    """Bound the error of every output of a run, whatever the order of its sums.

    A sum of n products in fp32 is off by at most gamma times the sum of their magnitudes, with
    gamma = k u / (1 - k u), u = 2**-24 and k the roundings on the way of any term (Higham,
    *Accuracy and Stability of Numerical Algorithms*, 2002, section 3.1). Passes may add a term to
    another sum first, so k = 2 n + 8 here. The error of a layer's inputs goes through |W|. An
    activation changes by no more than its slope times its argument's change, and a bounded one by
    no more than the distance of its bounds; its own value is off by a few roundings. Values must
    stay within the range of fp32.

    Where activations are stored as fp16 or bf16, a feature and an output x of a layer are off by
    up to u |x| besides, u = 2**-11 or 2**-9, or by half of the least number that there is; and by
    as much as x lies beyond the largest number. Weights are held to 21 bits or more then, or, for
    fp16, to 2**-39 of the largest of their layer, and sums are cut off instead of rounded, for
    which k is four times as large.

    Parameters
    ----------
    network : Network
    features : array, shape (samples, n_in)
        Anything that `Engine.run` takes.
    precision : {"fp32", "fp16", "bf16"}, default "fp32"
        How activations are stored; see `Options`.

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
    cut = 1 if precision == "fp32" else 4
    error = _after_storing(x, np.abs(x) * UNIT, precision)  # of features rounded
    for layer in network:
        weights = layer.weights.astype(np.float64)
        magnitude = abs(weights)
        bias = np.zeros(layer.n_out) if layer.bias is None else layer.bias
        roundings = cut * (2 * np.diff(weights.tocsc().indptr) + EXTRA) * UNIT
        gamma = roundings / (1 - roundings)
        size = np.abs(x) + error
        error = error @ magnitude + gamma * (size @ magnitude + np.abs(bias))
        if precision == "fp16":
            error += LOST * magnitude.max() * (size @ magnitude.sign())
        x = layer.activation(x @ weights + bias)
        own = CURVE * UNIT * (1 + np.abs(x)) if layer.activation.curve else UNIT * np.abs(x)
        lower, upper = layer.activation.range
        error = np.minimum(error * layer.activation.slope + own, upper - lower)
        error = _after_storing(x, error, precision)
    return error_of_head(network.head, x, error, UNIT)


def _after_storing(
    x: NDArray[np.float64], error: NDArray[np.float64], precision: Precision
) -> NDArray[np.float64]:
    """Return the error of numbers near `x` once they are stored."""
    relative, absolute = STORED[precision]
    if not relative:
        return error
    beyond = np.maximum(np.abs(x) - LARGEST[precision], 0.0)
    return np.asarray(error + beyond + np.maximum(relative * (np.abs(x) + error), absolute))
