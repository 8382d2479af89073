import numpy as np
import pytest

from teraedge.datasets import random
from teraedge.errors import OptionsError


@pytest.mark.parametrize("fan_in", [1, 3, 10, 19, 20])
def test_fan_in(fan_in):
    network = random.network([20, 33, 20], fan_in=fan_in)
    assert network.edges == fan_in * (33 + 20)
    for layer in network:
        assert (np.bincount(layer.weights.indices, minlength=layer.n_out) == fan_in).all()
        assert layer.weights.has_canonical_format


@pytest.mark.parametrize("density", [1e-9, 0.01, 0.5, 0.77, 1.0])
def test_density(density):
    network = random.network([20, 33, 7], density=density)
    assert [layer.edges for layer in network] == [
        max(1, round(density * 660)),
        max(1, round(density * 231)),
    ]
    assert network.edges == sum(layer.edges for layer in network)
    assert all(layer.weights.has_canonical_format for layer in network)


@pytest.mark.parametrize(
    ("amount", "share"),
    [({"fan_in": 3}, 0.3), ({"fan_in": 6}, 0.6), ({"density": 0.3}, 0.3), ({"density": 0.7}, 0.7)],
)
def test_every_place_is_equally_likely(amount, share):
    network = random.network([10] * 2001, **amount, weights=1.0, seed=5)
    edges = sum((layer.weights.toarray() for layer in network), np.zeros((10, 10)))
    # five standard deviations of a binomial share
    np.testing.assert_allclose(edges / 2000, share, atol=5 * (share * (1 - share) / 2000) ** 0.5)


def test_layers_are_the_same_whenever_they_are_made():
    network = random.network([50] * 4, fan_in=5, seed=9)
    in_order = list(network)
    for index in (2, 0):
        assert not (network[index].weights != in_order[index].weights).nnz
    assert (in_order[0].weights != in_order[1].weights).nnz
    assert (random.network([50] * 4, fan_in=5, seed=8)[0].weights != in_order[0].weights).nnz


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([5], {"fan_in": 1}, "two at least"),
        (5, {"fan_in": 1}, "give a list"),
        ([5, 0], {"fan_in": 1}, "a size is 0"),
        ([5, 5], {}, "give one and leave out the other"),
        ([5, 5], {"fan_in": 1, "density": 0.1}, "give one and leave out the other"),
        ([9, 5, 9], {"fan_in": 6}, "give at most 5"),
        ([5, 5], {"fan_in": 0}, "fan_in is 0"),
        ([5, 5], {"density": 0.0}, "above 0 and at most 1"),
        ([5, 5], {"density": 1.1}, "density is 1.1"),
        ([5, 5], {"density": float("nan")}, "density is nan"),
        ([5, 5], {"fan_in": 1, "weights": None}, "weights is None"),
        ([5, 5], {"fan_in": 1, "seed": 1.5}, "seed is 1.5"),
    ],
)
def test_errors(sizes, options, message):
    with pytest.raises(OptionsError, match=message):
        random.network(sizes, **options)
