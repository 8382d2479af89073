"""What passes work on: one layer between its inputs that run and its outputs as given."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from teraedge.activations import Activation
from teraedge.grouping import pick_columns
from teraedge.network import Layer

NONE = -1


@dataclass(frozen=True)
class Wiring:
    """How the neurons a layer was given as come from the neurons that run.

    Neuron j of the given layer has the value of running neuron ``source[j]``, or, where that is
    `NONE`, the constant ``constant[j]`` for every sample.

    Attributes
    ----------
    source : ndarray of int64, shape (given,)
    constant : ndarray of float64, shape (given,)
    running : int
        Neurons that run.
    """

    source: NDArray[np.int64]
    constant: NDArray[np.float64]
    running: int

    @classmethod
    def identity(cls, neurons: int) -> Self:
        """Every neuron runs as given."""
        return cls(np.arange(neurons), np.zeros(neurons), neurons)

    @property
    def trivial(self) -> bool:
        """Whether every neuron runs, in its own place."""
        return self.running == len(self.source) and bool(
            (self.source == np.arange(self.running)).all()
        )

    def spread(self) -> sp.csr_array:
        """Return the 0/1 matrix (running, given) that turns running values into given ones."""
        fed = np.flatnonzero(self.source != NONE)
        positions = self.source[fed], fed
        return sp.csr_array((np.ones(len(fed)), positions), shape=(self.running, len(self.source)))


@dataclass
class Draft:
    """A layer while passes rewrite it.

    Attributes
    ----------
    weights : csc_array, shape (inputs, columns)
        `inputs` are the neurons as given until `absorb`, and those that run after it.
    bias : ndarray of float64, shape (columns,)
    activation : Activation
    inputs : Wiring
        Of the neurons the layer reads.
    column : ndarray of int64, shape (n_out,)
        The column that computes each output as given, or `NONE`.
    constant : ndarray of float64, shape (n_out,)
        The value of an output without a column.
    given : csc_array
        The weights before `absorb`, with the columns of now.
    untouched : bool
        Whether the layer is still as it came.
    """

    weights: sp.csc_array
    bias: NDArray[np.float64]
    activation: Activation
    inputs: Wiring
    column: NDArray[np.int64]
    constant: NDArray[np.float64]
    given: sp.csc_array
    untouched: bool = True

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """Start from a layer as given, all of whose inputs run."""
        weights = layer.weights.tocsc()
        bias = np.zeros(layer.n_out)
        if layer.bias is not None:
            bias += layer.bias
        column = np.arange(layer.n_out)
        inputs = Wiring.identity(layer.n_in)
        return cls(weights, bias, layer.activation, inputs, column, np.zeros(layer.n_out), weights)

    @property
    def edges(self) -> int:
        """Edges a sample executes."""
        return int(self.weights.nnz)

    def keep(self, columns: NDArray[Any], replaced_by: NDArray[Any]) -> None:
        """Keep some columns; `replaced_by` says for each old column its new one, or `NONE`."""
        self.untouched = False
        absorbed = self.given is not self.weights
        self.weights = pick_columns(self.weights, columns)
        self.given = pick_columns(self.given, columns) if absorbed else self.weights
        self.bias = self.bias[columns]
        self.column = np.where(self.column == NONE, NONE, replaced_by[self.column])

    def drop(self, columns: NDArray[np.bool_]) -> None:
        """Drop the columns of a mask; the first stays, unused, where the mask covers all."""
        kept = np.flatnonzero(~columns)
        replaced_by = np.where(columns, NONE, np.cumsum(~columns) - 1)
        self.keep(kept if len(kept) else np.zeros(1, np.int64), replaced_by)

    def absorb(self) -> None:
        """Read the neurons that run, x' with x = x' E + c: W becomes E W, and b becomes c W + b.

        The product is formed in float64.
        """
        if self.inputs.trivial:
            return
        self.untouched = False
        weights, inputs = self.weights, self.inputs
        source = inputs.source[weights.indices]
        if (source == NONE).any():
            self.bias = self.bias + weights.T @ inputs.constant
        self.weights = _joined(weights, source, inputs.running)

    def outputs(self) -> Wiring:
        """Return where the outputs as given come from."""
        return Wiring(self.column, self.constant, self.weights.shape[1])


def _joined(weights: sp.csc_array, rows: NDArray[np.int64], running: int) -> sp.csc_array:
    """Return the matrix with its entries moved to other rows, where those that meet are added.

    Parameters
    ----------
    weights : csc_array
    rows : ndarray of int64, shape (entries,)
        Where each entry goes; `NONE` for nowhere.
    running : int
        Rows of the new matrix.
    """
    data, indptr = weights.data.astype(np.float64), weights.indptr.copy()  # changed in place
    kept = rows != NONE
    if not kept.all():
        indptr = np.concatenate(([0], np.cumsum(kept)))[indptr]
        data, rows = data[kept], rows[kept]
    shape = running, weights.shape[1]
    joined = sp.csc_array((data, rows.astype(weights.indices.dtype), indptr), shape=shape)
    joined.sum_duplicates()
    return joined
