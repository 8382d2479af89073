"""A fingerprint of a network, taken while its layers come by: another network has another."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.network import Layer, Network


class Fingerprint:
    """Hashes layers in their order: shapes, places and values of weights, bias, activation.

    The dtype of indices does not count, that of weights does.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, layer: Layer) -> None:
        """Take in the next layer."""
        weights = layer.weights
        about = (weights.shape, weights.dtype.str, layer.activation.to_spec())
        self._digest.update(repr(about).encode())
        index = np.uint32 if max(weights.shape) < 2**32 else np.uint64
        self._update(weights.indptr.astype(np.int64, copy=False))
        self._update(weights.indices.astype(index, copy=False))
        equal = weights.nnz > 1 and (weights.data == weights.data[0]).all()
        self._update(weights.data[:1] if equal else weights.data)  # as many as there are indices
        if layer.bias is not None:
            scalar = layer.bias.strides == (0,)  # see Layer
            self._update(layer.bias[:1] if scalar else layer.bias)

    def add_head(self, head: str | None) -> None:
        """Take in the head of the network, after the last layer."""
        if head is not None:
            self._digest.update(head.encode())

    def _update(self, array: NDArray[Any]) -> None:
        values = np.ascontiguousarray(array)
        self._digest.update(f"{values.dtype.str}{values.shape}".encode())
        self._digest.update(values.tobytes())

    def hexdigest(self) -> str:
        """Return the fingerprint of what was taken in so far."""
        return self._digest.hexdigest()


def fingerprint(network: Network) -> str:
    """Return the fingerprint of a network; reads its layers one at a time."""
    digest = Fingerprint()
    for layer in network:
        digest.add(layer)
    digest.add_head(network.head)
    return digest.hexdigest()
