"""Networks every engine must run right, each made to reach some corner of a layout or kernel.

Weights and biases are small integers and features are 0 or 1, so that every sum is exact in
float32 and engines must equal the float64 reference to the last bit, dead samples included.
"""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from teraedge import ClippedReLU, Identity, Layer, Network, ReLU
from teraedge.datasets import radixnet


def weights(rng, n_in, n_out, density=0.15, low=-2, high=3):
    array = sp.random_array(
        (n_in, n_out),
        density=density,
        rng=rng,
        data_sampler=lambda size: _integers(rng, low, high, size),
    )
    return sp.csr_array(array, dtype=np.float32)


def _integers(rng, low, high, size):
    values = rng.integers(low, high, size)
    return np.where(values == 0, 1, values).astype(np.float32)


def chain(rng, sizes, bias, activation, **kwargs):
    pairs = pairwise(sizes)
    return Network([Layer(weights(rng, a, b, **kwargs), bias, activation) for a, b in pairs])


def shared_inputs(rng, groups, height, fan_in, n_in, equal):
    """Groups of neurons that read the same inputs, shuffled."""
    dense = np.zeros((n_in, groups * height), np.float32)
    for group in range(groups):
        inputs = rng.choice(n_in, fan_in, replace=False)
        block = np.ones if equal else lambda shape: _integers(rng, -2, 3, shape)
        dense[np.ix_(inputs, range(group * height, (group + 1) * height))] = block((fan_in, height))
    return sp.csr_array(dense[:, rng.permutation(groups * height)])


def make_networks():
    rng = np.random.default_rng(7)
    relu, clipped = ReLU(), ClippedReLU(8)
    sizes = [40, 70, 30, 90, 20]
    some_bias = [
        Layer(weights(rng, a, b), rng.integers(-2, 2, b), relu) for a, b in [(40, 60), (60, 33)]
    ]
    gaps = weights(rng, 40, 50).tolil()
    gaps[3:9, :] = 0
    gaps[:, 20:33] = 0
    wide = sp.random_array(
        (70_000, 40), density=0.004, rng=rng, data_sampler=lambda size: np.ones(size)
    )
    long_offsets = weights(rng, 40, 25)
    long_offsets.indptr = long_offsets.indptr.astype(np.int64)
    long_offsets.indices = long_offsets.indices.astype(np.int64)
    blocks = [
        Layer(shared_inputs(rng, 6, 7, 5, 40, equal=False), -1, clipped),
        Layer(shared_inputs(rng, 5, 16, 8, 42, equal=True), -2, clipped),
        Layer(shared_inputs(rng, 3, 4, 1, 80, equal=True), None, Identity()),
    ]
    holes = shared_inputs(rng, 6, 8, 10, 40, equal=False)
    holes.data[rng.random(holes.nnz) < 0.1] = 0
    holes.eliminate_zeros()
    single = Layer(weights(rng, 40, 1, density=0.5), -1.0, relu)
    return {
        "rectangular": chain(rng, sizes, -1, relu),
        "no bias": chain(rng, sizes, None, clipped),
        "identity": chain(rng, sizes[:3], None, Identity()),
        "positive bias": chain(rng, sizes, 2, clipped),
        "bias a neuron": Network(some_bias),
        "wakes up": Network(
            [*chain(rng, [40, 30, 30], -1, relu), Layer(weights(rng, 30, 20), 1, relu)]
        ),
        "most die": chain(rng, [40, 40, 40, 40, 40, 40], -2, clipped),
        "empty rows and columns": Network([Layer(gaps, -1, relu), Layer(weights(rng, 50, 9))]),
        "no edges": Network(
            [Layer(sp.csr_array((40, 30)), -1, relu), Layer(sp.csr_array((30, 5)), 3)]
        ),
        "one neuron": Network([single, Layer([[3.0]], -2, relu)]),
        "shared inputs": Network(blocks),
        "nearly shared inputs": Network([Layer(holes, -1, relu), Layer(weights(rng, 48, 9, 0.6))]),
        "wide indices": Network([Layer(wide, -1, relu), Layer(weights(rng, 40, 8), None, relu)]),
        "int64 offsets": Network([Layer(long_offsets, -1, relu)]),
        "dense": Network([Layer(rng.integers(-1, 2, (40, 24)), -1, relu)]),
        "two hundred layers": chain(rng, [40] * 201, -1, ClippedReLU(3), density=0.08, low=1),
    }


NETWORKS = make_networks()
NAMES_FOR_EACH_KERNEL = [
    "rectangular",
    "most die",
    "wakes up",
    "empty rows and columns",
    "no edges",
    "shared inputs",
    "nearly shared inputs",
    "one neuron",
    "dense",
]
"""Those that tests run in every kernel there is, one after the other."""


def make_features(network, samples, seed=0, density=None):
    """0/1 features, sparser for some samples than for others, so that some die early."""
    rng = np.random.default_rng(seed)
    share = rng.random((samples, 1)) ** 2 if density is None else density
    return (rng.random((samples, network.n_in)) < share).astype(np.float32)


RADIX_WEIGHTS = {
    "equal": 1 / 16,
    "random": lambda rng, edges: rng.integers(-2, 9, edges) / 64,
}


def radix(weights, layers=4, bias=-0.3125, width=16, activation=None):
    """Return a RadiX-Net in which samples die, or, with a curve, one in which none does."""
    activation = activation or ClippedReLU(32)
    kwargs = {"width": width, "weights": weights, "bias": bias, "activation": activation}
    return Network(list(radixnet.uniform(1024, 2 * width, layers, relabel=True, **kwargs)))


def radix_features(samples):
    """0/1 features for it, sparser for some samples than for others."""
    rng = np.random.default_rng(samples)
    ones = np.linspace(0.02, 0.4, samples)[rng.permutation(samples)]
    return (rng.random((samples, 1024)) < ones[:, None]).astype(np.float32)
