"""Fold neurons that are the same for every sample into the next layer's bias.

Proof: a neuron without incoming edges has the value c = f(b) for every sample. The next layer adds
c w to the sum of each neuron it feeds, for every sample: adding c w to that neuron's bias instead
gives the same sum.

The value is found with the activation in float64; the sum of constants is rounded to fp32 once,
with the bias. The neurons of the last layer are the answer and stay.
"""

import numpy as np

from teraedge.passes.draft import NONE, Draft


def fold_constants(draft: Draft) -> None:
    """Drop the columns without edges and remember their value."""
    empty = np.diff(draft.weights.indptr) == 0
    if not empty.any():
        return
    values = draft.activation(draft.bias)
    members = np.flatnonzero(draft.column != NONE)
    members = members[empty[draft.column[members]]]
    draft.constant[members] = values[draft.column[members]]
    draft.drop(empty)
