"""Layers laid out for the block kernel: read the way it reads them, they are the layer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import teraedge
from teraedge.plan import gpu
from teraedge.plan.block import PANEL, STEP, lay_out_block
from teraedge.plan.block_parts import FIRST_PLACE, UNITS
from teraedge.plan.chains import chains, dealt
from teraedge.plan.kernel_sizes import WARPS
from teraedge.plan.panels import panel_layer
from teraedge.plan.segments import segments
from teraedge.plan.terms import MOST_TERMS, bf16_terms, split

ROOM = 200 * 1024


def laid_out(weights, bias=0.0):
    layer = teraedge.Layer(weights.astype(np.float32), bias)
    found = lay_out_block(panel_layer(layer, gpu._relative(PANEL, gpu.BLOCK_TALL_EDGE)), ROOM)
    assert found is not None
    return found


def value_of(terms):
    """Return the numbers that are sums of bf16 terms, the terms in the last axis."""
    return (terms.astype(np.uint32) << 16).view(np.float32).astype(np.float64).sum(axis=-1)


def fragments(block):
    """Yield (warp, panel, units of the step, fragment) of all products, in the kernel's order."""
    for warp in range(WARPS):
        fragment = warp * block.fragments
        for panel, length in enumerate(block.lengths[warp].tolist()):
            alone, shared = length & 0xFFFF, length >> 16
            for k in range(alone + shared):
                for into in (panel, panel + 1)[: 1 + (k >= alone)]:
                    yield warp, into, block.units[warp, panel, k], fragment
                    fragment += 1


def dense(found):
    """Return the weight matrix as the kernel multiplies it."""
    block = found.block
    neurons = {place: neuron for neuron, place in enumerate(block.places.tolist())}
    matrix = np.zeros((found.n_in, found.n_out))
    terms = block.kind.terms
    words = found.tall.weights.reshape(-1, terms, 8, 4, 2, 2, 2) if terms else None
    for warp, panel, units, fragment in fragments(block):
        for i, k in np.ndindex(STEP, PANEL):
            neuron = neurons.get(int(units[i]) // UNITS)
            output = int(block.outputs[warp, panel, k])
            if neuron is None or output < 0:
                continue
            weight = found.value
            if terms:
                weight = value_of(words[fragment, :, k % 8, i % 8 // 2, i // 8, k // 8, i % 2])
            matrix[neuron, output] += weight
    return matrix


def radix(rng, blocks, equal):
    """Return a layer whose panels of 16 share half of their inputs with each of two others."""
    size = blocks * PANEL
    weights = np.zeros((size, size), np.float32)
    inputs, outputs = rng.permutation(size), rng.permutation(size)
    for k in range(blocks):
        rows = np.concatenate([np.arange(j * STEP, (j + 1) * STEP) for j in (k, (k + 1) % blocks)])
        columns = np.arange(k * PANEL, (k + 1) * PANEL)
        drawn = 0.25 if equal else rng.standard_normal((len(rows), PANEL))
        weights[np.ix_(inputs[rows], outputs[columns])] = drawn
    return weights


@pytest.mark.parametrize("equal", [True, False])
def test_holds_the_layer(equal):
    weights = radix(np.random.default_rng(0), 24, equal)
    found = laid_out(weights)
    assert found.block.kind.terms == (0 if equal else MOST_TERMS["fp32"])
    np.testing.assert_array_equal(dense(found), weights)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 70), st.floats(0, 1))
def test_holds_any_layer(seed, n_in, n_out, density):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n_in, n_out)) * (rng.random((n_in, n_out)) < density)
    found = laid_out(weights)
    np.testing.assert_array_equal(dense(found), weights.astype(np.float32))
    assert sorted(found.block.places - FIRST_PLACE) == list(range(n_in))


def test_shared_inputs_are_read_once_and_never_meet_in_a_bank():
    found = laid_out(radix(np.random.default_rng(1), 64, equal=True))
    block = found.block
    assert block.fragments == 8  # four panels of 32 inputs a warp
    taken = (block.lengths & 0xFFFF) + (block.lengths >> 16)
    np.testing.assert_array_equal(taken.sum(axis=1), 5)
    eights = np.sort(block.units.reshape(-1, 8) // UNITS % 8, axis=1)
    np.testing.assert_array_equal(eights, np.broadcast_to(np.arange(8), eights.shape))


def test_a_layer_that_does_not_fit():
    layer = teraedge.Layer(np.ones((20, 20), np.float32), 0.0)
    panels = panel_layer(layer, gpu._relative(PANEL, gpu.BLOCK_TALL_EDGE))
    assert lay_out_block(panels, 2000) is None


@given(arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_three_terms_hold_every_number(values):
    values[np.abs(values) < 1e-30] = 0.0  # the last term of smaller ones is below what bf16 holds
    terms = bf16_terms(values)
    assert len(terms) <= MOST_TERMS["fp32"]
    np.testing.assert_array_equal(value_of(np.stack(terms, axis=-1)), values)


def test_as_few_terms_as_suffice():
    assert len(bf16_terms(np.array([0.0625, -3.0, 0.0], np.float32))) == 1
    assert len(bf16_terms(np.float16([0.1, 0.7, -12.3]).astype(np.float32))) == 2
    assert len(bf16_terms(np.array([0.1], np.float32))) == 3


@given(
    arrays(np.float32, 20, elements=st.floats(-1, 1, width=32)), st.integers(-130, 126).map(float)
)
def test_two_terms_of_fp16_hold_a_number_to_22_bits(values, exponent):
    values = values * np.float32(2.0**exponent)
    bits, scale = split(values, "fp16")
    assert len(bits) <= MOST_TERMS["fp16"]
    held = sum(term.view(np.float16).astype(np.float64) for term in bits) * scale
    exact, largest = values.astype(np.float64), np.abs(values).max()
    error = np.maximum(2.0**-22 * np.abs(exact), max(2.0**-39 * largest, 2.0**-139))
    assert (np.abs(held - exact) <= error).all()
    assert np.frexp(scale)[0] == 0.5


def test_weights_of_fp16_are_one_term_at_any_scale():
    values = np.float16([0.1, 0.7, -12.3, 0.0]).astype(np.float32)
    for scale in (1.0, 2.0**-40, 2.0**90):
        bits, _ = split(values * np.float32(scale), "fp16")
        assert len(bits) == 1


def test_chains_follow_shared_blocks_and_are_dealt_evenly():
    ring = [[k, (k + 1) % 12] for k in range(12)]
    readers = [[k, (k - 1) % 12] for k in range(12)]
    found = chains(ring, readers)
    assert [len(chain) for chain in found] == [12]
    for a, b in zip(found[0], found[0][1:], strict=False):
        assert set(ring[a]) & set(ring[b])
    given_out = dealt(found, [2] * 12, 4)
    assert [sum(map(len, pieces)) for pieces in given_out] == [3, 3, 3, 3]
    assert sorted(p for pieces in given_out for piece in pieces for p in piece) == list(range(12))


def test_segments_end_where_tiles_and_records_do_not_fit_together():
    """A wide layer has a large tile, a dense one large records; a segment needs room for both."""
    wide = np.zeros((944, 944))
    wide[:16, :16] = 1.0
    tall, full = laid_out(wide), laid_out(np.ones((320, 320)))
    assert tall.block.kind == full.block.kind
    for layers, count in (([tall, tall], 1), ([tall, full], 2), ([full, full], 1)):
        parts = list(segments(layers, [False] * 2, 0))
        assert len(parts) == count
        assert all(part.shared <= ROOM for part in parts)
