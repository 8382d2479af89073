"""Merge neurons with equal incoming weights, bias and activation.

Proof: neurons j and k of a layer with equal columns of W and b_j = b_k compute f of the same sum,
so x_j = x_k for every sample. The next layer's x_j v_j + x_k v_k is x_j (v_j + v_k): one neuron
with the added outgoing weights. Merging makes columns of the next layer equal that were not, so
the pass goes on from layer to layer.

The added weights are formed in float64 and rounded to fp32 once; the sum over a merged group is
one product instead of several, so results differ in the rounding of that sum.
"""

import numpy as np

from teraedge.grouping import equal_columns
from teraedge.passes.draft import Draft


def merge_neurons(draft: Draft) -> None:
    """Keep one column of every group of equal ones."""
    weights = draft.weights
    first = equal_columns(weights.indptr, weights.indices, weights.data, labels=draft.bias)
    kept = first == np.arange(len(first))
    if not kept.all():
        draft.keep(np.flatnonzero(kept), (np.cumsum(kept) - 1)[first])
