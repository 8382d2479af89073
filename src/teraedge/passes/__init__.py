"""Passes: rewrites of a network, layer by layer, that keep its function.

Each pass is a file with its proof. `Rewriter` takes a network through those that are switched on.
"""

PASSES = ("drop_zeros", "drop_unread", "fold_constants", "merge_neurons", "factor")
"""The names of all passes, in the order they run."""
