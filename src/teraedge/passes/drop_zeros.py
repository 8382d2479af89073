"""Drop edges whose weight is zero.

Proof: an edge adds x w to a sum, and x 0 = 0 for every finite x; adding 0 changes no sum.
"""

from teraedge.network import Layer


def drop_zeros(layer: Layer) -> Layer:
    """Return the layer without explicit zeros; the same object where there are none."""
    if layer.weights.data.all():
        return layer
    weights = layer.weights.copy()
    weights.eliminate_zeros()
    return Layer(weights, layer.bias, layer.activation)
