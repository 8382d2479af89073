"""The layout of the staged kernel, and which kernel a layer gets."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from teraedge import Layer, datasets
from teraedge.plan import gpu, parts, staged
from teraedge.plan.rates import Rates

HOPPER = 227 * 1024
ROOM = HOPPER - 1024


def random_layer(n, **kwargs):
    return next(iter(datasets.random.network([n, n], **kwargs)))


def laid_out(layer, room, buffers):
    panels = gpu.all_single(layer)
    plan = staged.settled(staged.staging(panels, room, buffers))
    return plan, staged.lay_out_staged(panels, plan)


def edges_of(device_layer):
    """Read the lists as the kernel does: for each the rows [step][lane], weights and neurons."""
    single, lists = device_layer.single, staged.LISTS
    words = single.indices.view(np.uint32).reshape(-1, lists, 32)
    weights = single.weights.reshape(-1, lists, 32, 2)
    slices = single.count // device_layer.parts
    targets = single.targets["output"].reshape(slices, lists, 32)
    for number, entry in enumerate(single.lists):
        pairs = slice(entry["begin"], entry["begin"] + entry["length"])
        both = np.stack((words[pairs] & 0xFFFF, words[pairs] >> 16), axis=1)
        assert (both % staged.CHUNKS == 0).all()
        yield (
            number // slices,
            both.reshape(-1, lists, 32) // staged.CHUNKS,
            weights[pairs].transpose(0, 3, 1, 2).reshape(-1, lists, 32),
            targets[number % slices],
        )


@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (40, 700), (1003, 300), (900, 9)])
def test_every_edge_is_there_once(shape, buffers):
    rng = np.random.default_rng(0)
    weights = sp.random_array(shape, density=0.2, rng=rng, dtype=np.float32, format="csr")
    weights.data += 1
    layer = Layer(weights, rng.random(shape[1]), None)
    plan, found = laid_out(layer, buffers * 200 * 32, buffers)
    assert plan.shared <= buffers * 200 * 32
    assert plan.parts == -(-shape[0] // plan.part_rows)
    dense = np.zeros((plan.parts * plan.part_rows, shape[1]), np.float32)
    count = 0
    for part, rows, values, neurons in edges_of(found):
        real = rows < plan.part_rows
        assert (rows < plan.part_rows + 8).all()
        assert not values[~real].any()
        lanes = np.broadcast_to(neurons, rows.shape)
        assert (lanes[real] >= 0).all()
        np.add.at(dense, (part * plan.part_rows + rows[real], lanes[real]), values[real])
        count += real.sum()
    assert count == weights.nnz
    np.testing.assert_array_equal(dense[: shape[0]], weights.toarray())
    neurons = found.single.targets["output"]
    np.testing.assert_array_equal(np.sort(neurons[neurons >= 0]), np.arange(shape[1]))
    bias = found.single.targets["bias"][neurons >= 0]
    np.testing.assert_array_equal(bias, layer.bias.astype(np.float32)[neurons[neurons >= 0]])


def meetings_of(device_layer):
    """Count the reads that meet another in a bank: lanes k, k + 2, ... of eight read together."""
    count = 0
    for _, rows, _, _ in edges_of(device_layer):
        groups = rows.reshape(-1, 4, 8 // staged.CHUNKS) if staged.CHUNKS == 1 else rows
        groups = groups.reshape(-1, staged.GROUP, 8 // staged.GROUP).transpose(0, 2, 1)
        residues = np.sort(groups.reshape(-1, staged.GROUP) % staged.GROUP, axis=1)
        count += (np.diff(residues, axis=1) == 0).sum()
    return count


@pytest.mark.parametrize("buffers", [1, 2])
def test_few_reads_meet_in_a_bank(buffers):
    layer = random_layer(8192, fan_in=32)
    plan, found = laid_out(layer, ROOM, buffers)
    assert plan.meetings <= meetings_of(found) < 0.025 * layer.edges


def test_no_reads_meet_where_there_are_steps():
    rng = np.random.default_rng(0)
    regular = np.stack([np.arange(8) * 4 + rng.permutation(8) % 4 for _ in range(256)])
    weights = np.zeros((32, 256), np.float32)
    weights[regular.T, np.arange(256)] = 1 + rng.random((8, 256))
    plan, found = laid_out(Layer(weights), ROOM, 1)
    assert plan.meetings == meetings_of(found) == 0


def test_lists_are_longer_where_all_reads_would_meet():
    """All inputs are multiples of four: one bank group serves them, one after the other."""
    rng = np.random.default_rng(0)
    weights = np.zeros((400, 256), np.float32)
    weights[::4] = 1 + rng.random((100, 256))
    plan, found = laid_out(Layer(weights), ROOM, 1)
    assert plan.lengths.min() > 100
    assert meetings_of(found) <= 3 * 100 * 256 / 4


@pytest.mark.parametrize(
    ("n", "fan_in", "buffers", "padding"),
    [(8192, 32, 1, 0.1), (8192, 32, 2, 0.15), (16384, 32, 1, 0.12), (16384, 32, 2, 0.32)],
)
def test_padding(n, fan_in, buffers, padding):
    _, found = laid_out(random_layer(n, fan_in=fan_in), ROOM, buffers)
    assert 0 < found.padding < padding


def test_slices_of_similar_neurons():
    """Neurons of which each reads one part only: no slice mixes them."""
    lengths = np.zeros((1024, 4), np.int64)
    lengths[np.arange(1024), np.random.default_rng(0).permutation(1024) % 4] = 5
    order = parts.similar_slices(lengths, 128)
    np.testing.assert_array_equal(np.sort(order), np.arange(1024))
    slices = lengths[order].reshape(8, 128, 4)
    assert (slices.max(axis=1).sum(axis=1) == 5).all()


def test_which_kernel():
    def kernel(layer):
        return gpu.lay_out(layer, HOPPER).kernel

    assert kernel(random_layer(4096, fan_in=8)) == "resident"
    assert kernel(random_layer(16384, fan_in=32)) == "staged"
    assert kernel(random_layer(40000, fan_in=2)) == "wide"  # lists of less than an edge
    blocks = sp.kron(sp.eye_array(2048), np.ones((8, 8), np.float32), format="csr")
    assert kernel(Layer(blocks)) == "wide"  # inputs are shared


def test_too_many_parts():
    panels = gpu.all_single(random_layer(4000, fan_in=2))
    assert staged.staging(panels, (128 + 8) * 32, 1).parts == 32
    assert staged.staging(panels, (120 + 8) * 32, 1) is None
    assert staged.staging(panels, 15 * 32, 1) is None  # not even the rows of zeros and eight more


def test_costs_fall_with_padding():
    panels = gpu.all_single(random_layer(16384, fan_in=32))
    one = staged.staging(panels, ROOM, 1)
    worse = replace(one, lengths=one.lengths + 2)
    rates = Rates()
    assert rates.staged_seconds(panels, one) < rates.staged_seconds(panels, worse)
    assert rates.staged_at_best(panels) < rates.staged_seconds(panels, one)


def test_resident_layers_are_padded_little():
    """Groups of four lanes whose inputs are about evenly in four banks: 10 % without swaps."""
    found = gpu.lay_out(random_layer(4096, fan_in=32), HOPPER)
    assert (found.kernel, found.samples) == ("resident", 8)
    assert found.padding < 0.03
