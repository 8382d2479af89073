"""The official challenge, by ids."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import teraedge
from teraedge import Options, reference
from teraedge.datasets import challenge

SHARED = Path(__file__).parents[2].parent / "shared" / "challenge"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the float64 truth, ../shared/challenge, is not here"
)


def official_ids(neurons):
    return np.loadtxt(SHARED / f"categories-{neurons}.txt", dtype=np.int64) - 1


@pytest.mark.parametrize("mode", ["b", "c"])
@pytest.mark.parametrize("layers", [120, 480])
def test_1024(mode, layers):
    network, features = challenge.network(1024, layers), challenge.features(1024)
    result = teraedge.compile(network, options=Options.mode(mode)).run(features)
    np.testing.assert_array_equal(result.live, challenge.categories(1024))
    assert len(result.live) == 1812
    live = [layer.live for layer in result.trace]
    assert all(a >= b for a, b in pairwise(live))
    assert result.nominal_edges == 60_000 * 32 * 1024 * layers


@needs_shared
@pytest.mark.parametrize("mode", ["a", "b", "c"])
def test_1024_against_the_float64_truth(mode):
    network, features = challenge.network(1024, 120), challenge.features(1024, 20_000)
    result = teraedge.compile(network, options=Options.mode(mode)).run(features)
    ids = official_ids(1024)
    np.testing.assert_array_equal(result.live, ids[ids < 20_000])
    # At the end all neurons of a live sample are at the upper bound, exactly.
    assert (result.live_outputs == 32).all()


@needs_shared
@pytest.mark.slow
def test_reference_against_the_float64_truth():
    """Ids only: live counts of the first layers hang on the order in which a sum is rounded."""
    result = reference.run(challenge.network(1024, 120), challenge.features(1024, 20_000))
    ids = official_ids(1024)
    np.testing.assert_array_equal(result.live, ids[ids < 20_000])


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["b", "c"])
@pytest.mark.parametrize("neurons", [4096, 16384, 65536])
def test_larger_sizes(neurons, mode):
    source = SHARED.parent / "mnist"
    features = challenge.features(neurons, source=source)
    network = challenge.network(neurons, 120)
    result = teraedge.compile(network, options=Options.mode(mode)).run(features)
    np.testing.assert_array_equal(result.live, official_ids(neurons))
