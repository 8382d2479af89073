"""What only the CPU engine promises: memory, threads, and every vector width."""

import os
import platform
import re
import subprocess
import sys
import tracemalloc

import llvmlite.binding as llvm
import numpy as np
import pytest
import scipy.sparse as sp
from engines_networks import NETWORKS, chain, make_features, weights

import teraedge
from teraedge import ClippedReLU, Options
from teraedge.engines.cpu.first import CACHE
from teraedge.engines.cpu.pool import TILES, Pool
from teraedge.engines.cpu.simd import LANES, TILE
from teraedge.rounding import error_bound


def test_a_second_run_allocates_only_its_result():
    rng = np.random.default_rng(0)
    network = chain(rng, [300] * 10, -3, ClippedReLU(4), density=0.02)
    features = teraedge.PackedFeatures.from_dense(make_features(network, 4000, density=0.01))
    engine = teraedge.compile(network, options=Options(threads=2))
    result = engine.run(features)
    rows = len(result.live) * network.n_out * 4
    assert rows < 1e6
    pools = list(engine._pools)
    tracemalloc.start()
    try:
        result = engine.run(features)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert engine._pools == pools
    tile = network.n_in * TILE * 4
    assert peak < rows + 4000 * 8 * 4 + tile  # the result, ids, and less than one tile on top


def test_parking_when_the_pool_is_full():
    """Samples die a few a layer over more layers than tiles can be parked at."""
    rng = np.random.default_rng(2)
    layers = 3 * TILES
    width = layers + 1
    # Neuron k is alive until layer k: sample i starts at neuron i % width and steps down.
    step = np.diag(np.ones(width - 1, np.float32), 1)[::-1, ::-1]
    network = teraedge.Network([teraedge.Layer(step)] * layers)
    features = np.zeros((4000, width), np.float32)
    features[np.arange(4000), rng.integers(0, width, 4000)] = 1
    expected = teraedge.reference.run(network, features)
    result = teraedge.compile(network, options=Options(threads=2, passes=False)).run(features)
    np.testing.assert_array_equal(result.outputs, expected.outputs)
    assert [layer.live for layer in result.trace] == [layer.live for layer in expected.trace]
    assert len({layer.live for layer in result.trace}) == layers


def test_few_samples_are_spread_over_threads():
    network = NETWORKS["two hundred layers"]  # of a shallow one, threads share the layers
    engine = teraedge.compile(network, options=Options(threads=2))
    engine.run(make_features(network, TILE))  # one tile, were it not for the other thread
    assert len(engine._pools) == 2


def test_pool_rows_start_at_cache_lines():
    assert Pool(33, 1).tiles.ctypes.data % 64 == 0


def wide_layer(rng, per_neuron, height, equal=False):
    """A layer of 9000 inputs, more than a tile in cache holds, in groups of equal inputs."""
    dense = np.zeros((9000, 20 * height), np.float32)
    for group in range(20):
        inputs = rng.choice(9000, per_neuron, replace=False)
        block = 1 if equal else rng.integers(1, 4, (per_neuron, height))
        dense[inputs, group * height : (group + 1) * height] = block
    return teraedge.Layer(dense[:, rng.permutation(20 * height)], -3, teraedge.ReLU())


@pytest.mark.parametrize("mode", ["a", "b", "c"])
@pytest.mark.parametrize(("per_neuron", "height"), [(40, 1), (300, 4), (50, 7), (1600, 4)])
def test_first_layer_in_chunks(per_neuron, height, mode):
    rng = np.random.default_rng(per_neuron)
    first = wide_layer(rng, per_neuron, height, equal=per_neuron == 50)
    network = teraedge.Network([first, teraedge.Layer(np.eye(20 * height))])
    features = teraedge.PackedFeatures.from_dense((rng.random((200, 9000)) < 0.02) * 1)
    engine = teraedge.compile(network, options=Options.mode(mode))
    chunks = engine._resident.chunks
    assert len(chunks.starts) > 1
    assert np.diff(chunks.starts).max() <= max(CACHE // (4 * TILE), per_neuron)
    result = engine.run(features)
    np.testing.assert_array_equal(result.outputs, engine.run(np.asarray(features)).outputs)
    np.testing.assert_array_equal(result.outputs, teraedge.reference.run(network, features).outputs)


def test_no_chunks_where_they_do_not_pay():
    rng = np.random.default_rng(3)
    narrow = teraedge.Layer(rng.random((1000, 30)))
    scattered = teraedge.Layer(sp.random_array((9000, 4000), density=0.01, rng=rng))
    for layer in (narrow, scattered):
        engine = teraedge.compile(teraedge.Network([layer]))
        assert len(engine._resident.chunks.inputs) == 0


def test_rows_move_through_squares_of_registers():
    """Sizes around whole squares, and memory that is not in order."""
    rng = np.random.default_rng(4)
    for neurons in (1, LANES - 1, LANES, 3 * LANES + 1, 37):
        network = teraedge.Network([teraedge.Layer(np.eye(neurons))])
        features = rng.random((2 * TILE + LANES + 1, 2 * neurons), dtype=np.float32)
        engine = teraedge.compile(network)
        for given in (features[:, :neurons], features[:, ::2], features.T.copy().T[:, :neurons]):
            np.testing.assert_array_equal(engine.run(given).outputs, given)


SUITE = """
import sys, numpy as np, teraedge
from engines_networks import NETWORKS, make_features
from teraedge.engines.cpu.simd import LANES, TILE
assert (LANES, TILE) == ({lanes}, {tile}), (LANES, TILE)
for name, network in NETWORKS.items():
    for samples in (1, 19, 150):
        features = make_features(network, samples)
        expected = teraedge.reference.run(network, features)
        for given in (features, teraedge.PackedFeatures.from_dense(features)):
            result = teraedge.compile(network).run(given)
            np.testing.assert_array_equal(result.outputs, expected.outputs, err_msg=name)
            np.testing.assert_array_equal(result.live, expected.live, err_msg=name)
print("all equal")
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU names below are x86-64")
@pytest.mark.parametrize(
    ("cpu", "features", "lanes", "tile"),
    [("x86-64", "", 4, 48), ("x86-64-v3", "+avx,+avx2,+fma", 8, 48)],
)
def test_other_vector_widths(cpu, features, lanes, tile, tmp_path):
    """Machines of narrower vectors than this one, as far as this one can stand in for them."""
    settings = {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "TERAEDGE_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(["tests", *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SUITE.format(lanes=lanes, tile=tile)],
        env=os.environ | settings, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout


NEON = """
import importlib.util, pathlib, re, sys, types
import llvmlite.binding as llvm
from llvmlite import ir

# the folder without its engine, which would compile everything for this machine
package = types.ModuleType("teraedge.engines.cpu")
folder = pathlib.Path(importlib.util.find_spec("teraedge").origin).parent
package.__path__ = [str(folder / "engines" / "cpu")]
sys.modules["teraedge.engines.cpu"] = package
from teraedge.engines.cpu import panels, simd
assert simd.SHAPE == simd.VectorShape(lanes=4, tile=48, tall=4, single=6), simd.SHAPE

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
i64, f32 = ir.IntType(64), ir.FloatType()
module = ir.Module("panels")
module.triple = "aarch64-unknown-linux-gnu"
kind = ir.FunctionType(ir.VoidType(), [i64] * 10 + [f32] * 3 + [simd.BITS.as_pointer()])
for height in (1, simd.HEIGHT):
    function = ir.Function(module, kind, f"panels_{height}")
    builder = ir.IRBuilder(function.append_basic_block())
    vectors = simd.vector_counts(height)[-1]
    *arguments, seen = function.args
    panels._Panels(builder, height, vectors, equal=False).emit(arguments, seen)
    builder.ret_void()
machine = llvm.Target.from_triple(module.triple).create_target_machine(features="+neon", opt=3)
code = llvm.parse_assembly(str(module))
code.verify()
options = llvm.create_pipeline_tuning_options(speed_level=3)
passes = llvm.create_pass_builder(machine, options)
passes.getModulePassManager().run(code, passes)
print(machine.emit_assembly(code))
"""


def test_neon_code():
    """The kernels compile to NEON: two edges x 4 neurons x 4 registers of multiply-adds."""
    try:
        llvm.initialize_all_targets()
        llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    except (AttributeError, RuntimeError):
        pytest.skip("this llvmlite cannot compile for aarch64")
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+neon"}
    done = subprocess.run(
        [sys.executable, "-c", NEON], env=os.environ | settings,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    single, tall = done.stdout.split("panels_4:")[-2:]
    assert tall.count("fmla") >= 2 * 4 * 4
    assert single.count("fmla") >= 2 * 6
    loop = re.split(r"\n\.L\w+:", tall)
    body = max(loop, key=lambda block: block.count("fmla"))
    assert "[sp" not in body  # all accumulators stay in registers


def test_features_are_converted_a_piece_at_a_time():
    """Bytes would be four times as large as float32."""
    network = teraedge.Network([teraedge.Layer(np.eye(512), -1, teraedge.ReLU())])
    engine = teraedge.compile(network, options=Options(threads=1))
    features = np.zeros((20_000, 512), np.uint8)
    features[3, 5] = 3
    engine.run(features)
    tracemalloc.start()
    try:
        result = engine.run(features)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.live.tolist() == [3]
    assert peak < features.nbytes


@pytest.mark.parametrize("changed", [None, "bias", "weights", "activation"])
def test_equal_layers_lie_in_memory_once(changed):
    """Layers with shared weights, one of which may differ a little."""
    rng = np.random.default_rng(0)
    matrix = weights(rng, 40, 40, density=0.3)
    layers = [teraedge.Layer(matrix.copy(), 1.0, teraedge.ReLU()) for _ in range(4)]
    other = matrix * (2 if changed == "weights" else 1)
    activation = ClippedReLU(8) if changed == "activation" else teraedge.ReLU()
    layers[1] = teraedge.Layer(other, 2.0 if changed == "bias" else 1.0, activation)
    network = teraedge.Network(layers)
    features = make_features(network, 33)
    with teraedge.compile(network, options=Options(passes=False)) as engine:
        kept = engine._plan.resident
        outputs = engine.run(features).outputs
    assert [layer is kept[0] for layer in kept] == [True, changed is None, True, True]
    expected = teraedge.reference.run(network, features).outputs
    assert (np.abs(outputs - expected) <= error_bound(network, features)).all()
