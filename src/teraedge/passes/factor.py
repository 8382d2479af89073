"""Factor a layer whose rows repeat: W = R K.

Proof: if rows i and k of W are equal, then x_i W_i + x_k W_k = (x_i + x_k) W_i. With R the 0/1
matrix that sends every input to its group of equal rows, and K one row of each group, W = R K, so
x W = (x R) K: an adding layer with the identity as activation and no bias, and a layer as narrow
as there are different rows. Where columns repeat as well, `merge_neurons` has made K narrow on the
other side, W = R K C, and C joins the next layer's R.

Sums are only bracketed in another way. The inputs that run may each stand for several neurons as
given: E of `Draft.absorb` makes the adding layer E R, whose weights are small whole numbers.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from teraedge.grouping import equal_columns, lengths
from teraedge.passes.draft import NONE, Draft

NEURON_COST = 4
"""What a neuron more costs (a bias, an activation, a store), in edges."""


@dataclass(frozen=True)
class Factored:
    """W = adding @ kernel: shapes (inputs that run, groups) and (groups, columns)."""

    adding: sp.csr_array
    kernel: sp.csr_array


def factor(draft: Draft) -> Factored | None:
    """Return the two factors where they cost less than the layer as it is."""
    given = draft.given.tocsr()
    read = np.flatnonzero((draft.inputs.source != NONE) & (lengths(given.indptr) > 0))
    first = equal_columns(given.indptr, given.indices, given.data)
    rows, group = np.unique(first[read], return_inverse=True)
    if len(rows) == len(read):
        return None
    edges = int(lengths(given.indptr)[rows].sum())
    if edges + len(rows) * (1 + NEURON_COST) >= draft.edges:
        return None  # there is at least one adding edge a group
    adding = sp.csr_array(
        (np.ones(len(read)), (draft.inputs.source[read], group)),
        shape=(draft.inputs.running, len(rows)),
    )  # duplicates are added: an input that runs may stand for several of a group
    adding.sum_duplicates()
    if adding.nnz + edges + len(rows) * NEURON_COST >= draft.edges:
        return None
    return Factored(adding, given[rows])
