"""Drop neurons that nothing reads.

Proof: the next layer computes x W + b. If row j of W is empty, x_j appears in no sum, so whatever
neuron j computes, no output depends on it.

Only the next layer is looked at, so that a lazy network is read with two layers in memory. The
neurons of the last layer are the answer and are always read.
"""

import numpy as np

from teraedge.network import Layer
from teraedge.passes.draft import NONE, Draft


def drop_unread(draft: Draft, following: Layer) -> None:
    """Drop the columns that the following layer has no edges for."""
    unread = np.diff(following.weights.indptr) == 0
    if not unread.any():
        return
    read = np.zeros(draft.weights.shape[1], np.bool_)
    read[draft.column[~unread & (draft.column != NONE)]] = True
    if not read.all():
        draft.drop(~read)
