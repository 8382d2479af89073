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
from teraedge.grouping import entries_of, equal_columns, lengths
from teraedge.network import Layer
from teraedge.plan.choice import Choice
from teraedge.plan.cost import Constants, Reads, Work, reads
from teraedge.plan.similar import Columns, fill_columns, pad_similar

UNSURE = 1.1
"""Padding is preferred where it is predicted to take at most so much longer: panels compute, which
is sure, while what loads take beyond L1 depends on how a machine fetches ahead."""


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
        The bounds of the activation: outputs are held between the two.
    choice : Choice
        Why it is laid out like this.
    curve : str
        Of the activation, one of `activations.CURVES`.
    """

    n_in: int
    n_out: int
    edges: int
    tall: Panels
    single: Panels
    value: float | None
    bias: NDArray[np.float32]
    clamp: tuple[float, float]
    choice: Choice
    curve: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays: list[NDArray[Any]] = [self.bias]
        for panels in (self.tall, self.single):
            arrays += [panels.starts, panels.indices, panels.weights, panels.outputs]
        return sum(array.nbytes for array in arrays)


def panel_layer(layer: Layer, constants: Constants) -> PanelLayer:
    """Lay a layer out in panels, in the way that is predicted to be the fastest.

    Parameters
    ----------
    layer : Layer
    constants : Constants
        Of the machine that will run it.

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
    found = _candidates(parts, layer, constants)
    unsure = UNSURE if constants.level(layer.n_in + layer.n_out) else 1.0
    best = min(found, key=lambda candidate: candidate.seconds * unsure ** (not candidate.padded))
    parts, value = best.columns, best.value
    if value is not None:
        parts = parts._replace(weights=np.empty(0, np.float32))
    return PanelLayer(
        n_in=layer.n_in,
        n_out=layer.n_out,
        edges=layer.edges,
        tall=_panels(best.tall, constants.height, parts),
        single=_panels(best.single, 1, parts),
        value=value,
        bias=bias,
        clamp=layer.activation.clamp,
        choice=_choice(best, found, constants),
        curve=layer.activation.curve,
    )


@dataclass(frozen=True)
class _Candidate:
    """One way to lay a layer out."""

    layout: str
    columns: Columns
    tall: NDArray[np.int64]
    single: NDArray[np.int64]
    value: float | None
    work: Work
    seconds: float

    @property
    def padded(self) -> bool:
        """Whether zeros may have been added so that inputs are shared."""
        return self.layout in ("padded", "dense")


def _candidates(columns: Columns, layer: Layer, constants: Constants) -> list[_Candidate]:
    """Return the ways to lay a layer out that may be the fastest, the plainest first."""
    height, rows = constants.height, layer.n_in + layer.n_out

    def candidate(
        layout: str, columns: Columns, tall: NDArray[np.int64], single: NDArray[np.int64]
    ) -> _Candidate:
        value = _equal_value(columns.weights)
        work = _work(columns, tall, single, layer, value, constants)
        return _Candidate(layout, columns, tall, single, value, work, work.seconds(constants))

    order, group = _same_inputs(columns)
    tall, single = _split(order, group, height)
    found = [candidate("single", columns, order[:0], order)]
    if len(tall):
        name = "dense" if layer.edges == layer.n_in * layer.n_out else "panels"
        found.append(candidate(name, columns, tall, single))
    padded = pad_similar(columns, single, height, constants.tall_ratio(rows))
    if padded is not None:
        found.append(candidate("padded", padded, *_split(*_same_inputs(padded), height)))
    if _may_be_dense(layer, UNSURE * min(one.seconds for one in found), constants):
        full = fill_columns(columns, layer.n_in, height)
        found.append(candidate("dense", full, *_split(*_same_inputs(full), height)))
    return found


def _may_be_dense(layer: Layer, best: float, constants: Constants) -> bool:
    """Tell whether panels over all inputs may be as fast as the best so far."""
    panels = layer.n_out // constants.height
    seconds = 1e-9 * panels * layer.n_in * min(constants.tall_edge[0], constants.tall_run)
    return panels > 0 and layer.edges < layer.n_in * layer.n_out and seconds < best


def _work(
    columns: Columns,
    tall: NDArray[np.int64],
    single: NDArray[np.int64],
    layer: Layer,
    value: float | None,
    constants: Constants,
) -> Work:
    """Count what a core does for a sample of the layer."""
    leaders = tall[:: constants.height]
    counts = lengths(columns.indptr)
    tall_inputs, single_inputs = int(counts[leaders].sum()), int(counts[single].sum())
    rows = layer.n_in + layer.n_out
    tall_reads, single_reads = (
        reads(columns.indices[entries_of(some, columns.indptr)], rows, constants)
        if constants.level(rows)
        else Reads((1.0, 0.0, 0.0), 0.0)
        for some in (leaders, single)
    )
    weights = 0 if value is not None else tall_inputs * constants.height + single_inputs
    nbytes = 4 * weights + columns.indices.itemsize * (tall_inputs + single_inputs)
    nbytes += 8 * (len(leaders) + len(single)) + 8 * layer.n_out
    return Work(
        edges=layer.edges,
        tall_inputs=tall_inputs,
        single_inputs=single_inputs,
        tall_neurons=len(tall),
        single_neurons=len(single),
        nbytes=nbytes,
        rows=rows,
        tall_reads=tall_reads,
        single_reads=single_reads,
    )


def _choice(best: _Candidate, found: list[_Candidate], constants: Constants) -> Choice:
    """Say what was chosen, and why."""
    height = constants.height
    whys = {
        "single": "too few neurons share inputs: each reads its own",
        "panels": f"{height} neurons share each input they load",
        "padded": f"padding neurons of similar inputs to {height} that share them is cheaper",
        "dense": f"so dense that {height} neurons share all inputs, zeros included where needed",
    }
    return Choice(
        layout=best.layout,
        kernel=_kernel(best, height),
        seconds=best.seconds,
        limit=best.work.limit(constants),
        why=whys[best.layout],
        candidates={one.layout: one.seconds for one in found},
    )


def _kernel(best: _Candidate, height: int) -> str:
    """Name the kernels: neurons computed together."""
    names = [f"x{height}"] * bool(len(best.tall)) + ["x1"] * bool(len(best.single))
    return "+".join(names)


def _equal_value(weights: NDArray[np.float32]) -> float | None:
    """Return the weight, where all are equal."""
    return float(weights[0]) if len(weights) and (weights == weights[0]).all() else None


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
    filled = np.flatnonzero(lengths(indptr))
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
