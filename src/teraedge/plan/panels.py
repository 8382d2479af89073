"""The panel layout: neurons that read the same inputs side by side, so that inputs are read once.

A *panel* is a group of neurons with the same list of inputs. Its edges are stored as one list of
inputs, and for each of those the weights into every neuron of the panel. Neurons of RadiX-Nets,
Kronecker nets and block-pruned layers fall into panels of many neurons; where no two neurons share
their inputs, every panel is one neuron high and the layout is plain compressed columns. Neurons
that read nearly the same inputs are padded to read the same where that pays (`similar`).

Panels are ordered by their first input, so that neighbours in the order, which tend to read the
same inputs, find them in the nearest cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.errors import ModelError
from teraedge.grouping import entries_of, equal_columns
from teraedge.network import Layer
from teraedge.plan.similar import Columns, pad_similar


@dataclass(frozen=True)
class Panels:
    """Panels of one height.

    Attributes
    ----------
    height : int
        Neurons a panel.
    starts : ndarray of int64, shape (panels + 1,)
        Edges of panel p are ``starts[p]`` to ``starts[p + 1]``.
    indices : ndarray of uint16 or uint32, shape (edges,)
        The input neuron of each edge; one more lies behind the last, for reads of fixed width.
    weights : ndarray of float32, shape (edges * height,), or empty
        The weights of each edge into the neurons of the panel, one after the other; empty where
        all weights of the layer are equal.
    outputs : ndarray of int32, shape (panels * height,)
        The neurons of each panel.
    """

    height: int
    starts: NDArray[np.int64]
    indices: NDArray[Any]
    weights: NDArray[np.float32]
    outputs: NDArray[np.int32]


@dataclass(frozen=True)
class PanelLayer:
    """A layer in the panel layout.

    Attributes
    ----------
    n_in, n_out, edges : int
    tall, single : Panels
        Panels as high as the engine asked for, and the neurons left over, one a panel.
    value : float or None
        The weight, where all are equal.
    bias : ndarray of float32, shape (n_out,)
    clamp : (float, float)
        The activation: outputs are held between the two.
    """

    n_in: int
    n_out: int
    edges: int
    tall: Panels
    single: Panels
    value: float | None
    bias: NDArray[np.float32]
    clamp: tuple[float, float]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays: list[NDArray[Any]] = [self.bias]
        for panels in (self.tall, self.single):
            arrays += [panels.starts, panels.indices, panels.weights, panels.outputs]
        return sum(array.nbytes for array in arrays)


def panel_layer(layer: Layer, height: int, tall_edge: float) -> PanelLayer:
    """Lay a layer out in panels.

    Parameters
    ----------
    layer : Layer
    height : int
        Neurons a tall panel.
    tall_edge : float
        What an edge of a tall panel costs the engine, in edges of a single neuron.

    Raises
    ------
    ModelError
        If a weight or bias is too large for float32.
    """
    columns = layer.weights.tocsc()  # sorted, because the rows are
    weights = _float32(columns.data, "weight")
    bias = np.zeros(layer.n_out, np.float32)
    if layer.bias is not None:
        bias = np.ascontiguousarray(_float32(layer.bias, "bias"))
    indices = columns.indices.astype(np.uint16 if layer.n_in <= 2**16 else np.uint32)
    parts = Columns(columns.indptr.astype(np.int64), indices, weights)
    tall, single = _split(*_same_inputs(parts), height)
    padded = pad_similar(parts, single, height, tall_edge)
    if padded is not None:
        parts = padded
        tall, single = _split(*_same_inputs(parts), height)
    value = None
    if layer.edges and (parts.weights == parts.weights[0]).all():
        value = float(parts.weights[0])
        parts = parts._replace(weights=np.empty(0, np.float32))
    return PanelLayer(
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        tall=_panels(tall, height, parts),
        single=_panels(single, 1, parts),
        value=value,
        bias=bias,
        clamp=layer.activation.clamp,
    )


def _float32(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    if not np.isfinite(single).all():
        raise ModelError(f"a {what} is too large for fp32; scale the layer to within 3.4e38")
    return single


def _same_inputs(columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order the columns so that those with equal lists of inputs are neighbours.

    Returns
    -------
    order : ndarray of int64, shape (n_out,)
        The columns, by first input, those with equal inputs together.
    group : ndarray of int64, shape (n_out,)
        Group number of each column of `order`, ascending; equal where the lists are equal.
    """
    indptr, indices, _ = columns
    filled = np.flatnonzero(np.diff(indptr))
    first = np.zeros(len(indptr) - 1, np.int64)
    first[filled] = indices[indptr[filled]]
    leader = equal_columns(indptr, indices)
    order = np.lexsort((leader, first))
    changes = np.diff(leader[order]) != 0
    return order, np.concatenate(([0], np.cumsum(changes)))


def _split(
    order: NDArray[np.int64], group: NDArray[np.int64], height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut every group into panels of `height` neurons; what is left over stays single."""
    sizes = np.bincount(group)
    within = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tall = within < np.repeat(sizes // height * height, sizes)
    return order[tall], order[~tall]


def _panels(neurons: NDArray[np.int64], height: int, columns: Columns) -> Panels:
    """Gather the panels of `neurons`, `height` after `height` of which read the same inputs."""
    indptr, indices, weights = columns
    leaders = neurons[::height]
    counts = indptr[leaders + 1] - indptr[leaders]
    values = weights
    if len(weights):
        members = [weights[entries_of(neurons[k::height], indptr)] for k in range(height)]
        values = np.ascontiguousarray(np.stack(members, axis=1)).ravel()
    entries = entries_of(leaders, indptr)
    spare = np.zeros(len(entries) + 1, indices.dtype)
    np.take(indices, entries, out=spare[:-1])
    return Panels(
        height=height,
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        indices=spare[:-1],
        weights=values,
        outputs=neurons.astype(np.int32),
    )
