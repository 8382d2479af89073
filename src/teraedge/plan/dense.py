"""Layers as the dense kernel reads them: all edges, zeros too, as fragments for tensor cores."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from teraedge.errors import ModelError
from teraedge.network import Layer
from teraedge.options import Precision
from teraedge.plan.choice import Choice
from teraedge.plan.device import TARGET, DeviceLayer, DevicePanels, list_table
from teraedge.plan.terms import MOST_TERMS, Terms, split

HEIGHTS: dict[Precision, int] = {"fp32": 96, "fp16": 128, "bf16": 128}
"""Neurons of a panel: of a block, as registers allow."""
STEP = 16
"""Inputs of a product."""
ROUND = 4 * STEP
"""Inputs whose weights come into shared memory together."""
WHY = "dense enough that all edges, zeros included, are faster on tensor cores"


def dense_terms(layer: Layer, precision: Precision = "fp32") -> Terms:
    """Return the terms of every weight of a layer, as they are stored."""
    return split(_float32(layer.weights.data, "weight"), precision)


def dense_edges(layer: Layer, precision: Precision = "fp32") -> int:
    """Return the edges that the dense kernel runs, padding included."""
    return _whole(layer.n_in, STEP) * _whole(layer.n_out, HEIGHTS[precision])


def dense_stages(terms: int) -> int:
    """Return the rounds in the ring of a block."""
    return max(3, 2 * MOST_TERMS["fp32"] // terms)


def dense_shared(terms: int, precision: Precision = "fp32") -> int:
    """Return the shared memory of a block, in bytes."""
    return dense_stages(terms) * ROUND * HEIGHTS[precision] * 2 * terms


def lay_out_dense(layer: Layer, terms: Terms, precision: Precision = "fp32") -> DeviceLayer:
    """Lay a layer out for the dense kernel.

    Parameters
    ----------
    layer : Layer
    terms : Terms
        As `dense_terms` returns.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.

    Raises
    ------
    ModelError
        If a weight or bias is too large for float32.
    """
    count = len(terms.bits)
    given = layer.weights
    columns = [
        csr_array((bits, given.indices, given.indptr), given.shape).tocsc() for bits in terms.bits
    ]
    height = HEIGHTS[precision]
    panels, rounds = -(-layer.n_out // height), -(-layer.n_in // ROUND)
    weights = np.zeros((panels, rounds * ROUND * height * count), np.uint16)
    for panel in range(panels):
        full = np.zeros((count, rounds * ROUND, height), np.uint16)
        for into, term in zip(full, columns, strict=True):
            some = term[:, panel * height : (panel + 1) * height].toarray()
            into[: some.shape[0], : some.shape[1]] = some
        weights[panel] = _fragments(full)
    bias = np.zeros(layer.n_out, np.float32)
    if layer.bias is not None:
        bias = np.ascontiguousarray(_float32(np.asarray(layer.bias), "bias"))
    targets = np.zeros(panels * height, TARGET)
    targets["output"] = -1
    targets["output"][: layer.n_out] = np.arange(layer.n_out)
    targets["bias"][: layer.n_out] = bias
    tall = DevicePanels(
        height=height,
        lists=list_table(
            np.arange(panels, dtype=np.int64) * rounds, np.full(panels, rounds, np.int64)
        ),
        indices=np.empty(0, np.uint16),
        weights=weights.ravel(),
        targets=targets.reshape(panels, height),
        slots=dense_edges(layer, precision),
    )
    return DeviceLayer(
        kernel="dense",
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        samples=0,
        shared=dense_shared(count, precision),
        tall=tall,
        single=DevicePanels.none(),
        value=None,
        bias=bias,
        clamp=layer.activation.clamp,
        choice=Choice("dense", "dense", None, None, WHY),
        curve=layer.activation.curve,
        terms=count,
        precision=precision,
        scale=terms.scale,
    )


def _fragments(full: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return terms, (terms, inputs, neurons), as [step][fragment][term][lane][8].

    Lane 4 g + q has of neurons g and g + 8, inputs 2 q, 2 q + 1, 2 q + 8 and 2 q + 9, as
    ``mma.m16n8k16`` reads its first matrix.
    """
    # [term][step, half, q, low][fragment, half, g]
    parts = full.reshape(len(full), -1, 2, 4, 2, full.shape[2] // 16, 2, 8)
    return np.ascontiguousarray(parts.transpose(1, 5, 0, 7, 3, 2, 6, 4)).ravel()


def _whole(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _float32(values: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    if not np.isfinite(single).all():
        raise ModelError(f"a {what} is too large for fp32; scale the layer to within 3.4e38")
    return single
