"""Rows of result files, sittings of GPU benchmarks, their networks, and the tables made of them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import teraedge
from teraedge.bench.gpu import limit_seconds, share_of_limit
from teraedge.bench.machine import machine, provenance, versions
from teraedge.bench.record import row, write_results
from teraedge.bench.session import Session, repeat, repetitions
from teraedge.datasets import radixnet

ROOT = Path(__file__).parents[2]
GPU = SimpleNamespace(
    name="NVIDIA H200",
    driver_version="580.65 (CUDA 13.0)",
    arch="sm_90",
    multiprocessors=132,
    clock_hz=1.98e9,
    memory_bytes=150 * 10**9,
    l2_bytes=50 * 2**20,
)
PEAKS = {"gathers_per_s": 100.0, "copy_bytes_per_s": 1000.0}


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a script of the folder benchmarks, whose files import one another."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield lambda name: __import__(name)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]


def test_row_of_a_cpu_says_with_how_many_threads():
    made = row("1024-120", [2.0, 1.0, 4.0], mode="b", nominal_edges=10, executed_edges=4)
    assert made["gpus"] == 0
    assert made["threads"] >= 1
    assert made["seconds"] == {"median": 2.0, "min": 1.0, "max": 4.0, "runs": [2.0, 1.0, 4.0]}
    assert (made["nominal_edges_per_s"], made["executed_edges_per_s"]) == (5.0, 2.0)


def test_row_of_a_gpu():
    made = row("n", [1.0], mode="a", nominal_edges=1, device=GPU.name, gpus=1, share_of_limit=0.5,
               limit="HBM", passed=True)  # fmt: skip
    assert (made["device"], made["gpus"], made["precision"]) == ("NVIDIA H200", 1, "fp32")
    assert (made["share_of_limit"], made["limit"]) == (0.5, "HBM")
    assert "threads" not in made


def test_rows_that_say_too_little():
    with pytest.raises(ValueError, match="no runs"):
        row("n", [], mode="a", nominal_edges=1)
    with pytest.raises(ValueError, match="give device"):
        row("n", [1.0], mode="a", nominal_edges=1, gpus=1)


def test_files_describe_the_gpu_that_was_measured(tmp_path):
    path = tmp_path / "r.json"
    write_results(path, [], gpu=GPU, peaks=PEAKS)
    record = json.loads(path.read_text())
    assert record["machine"]["device"] == "NVIDIA H200"
    assert record["machine"]["driver"] == "580.65 (CUDA 13.0)"
    assert record["machine"]["device_memory_bytes"] == 150 * 10**9
    assert record["machine"]["cpu"] == machine()["device"]
    assert record["peaks"] == PEAKS


def test_gpu_libraries_are_told_only_if_something_imported_them(monkeypatch):
    for name in ("torch", "cupy", "cuda.core", "cuda.bindings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not {"torch", "cupy", "cuda-core", "nvrtc"} & set(versions())
    torch = SimpleNamespace(__version__="2.11.0+cu130", version=SimpleNamespace(cuda="13.0"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.0"))
    found = versions()
    assert (found["torch"], found["torch cuda"], found["cupy"]) == ("2.11.0+cu130", "13.0", "14.0")


def test_commands_tell_no_folders_of_the_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/b.py", "--output", "/else/where/r.json", "-n"])
    assert provenance()["command"] == "b.py --output r.json -n"


@pytest.mark.parametrize(
    ("only", "name", "wanted"),
    [
        (None, "1024-120", True),
        ("1024-120,4096-120", "4096-120", True),
        ("1024-120, 4096-120", "4096-120", True),
        ("1024-120", "1024-1920", False),
        ("1024-*", "1024-1920", True),
        ("*-120", "1024-1920", False),
        ("random-*-5%", "random-4096-5%", True),
    ],
)
def test_only(only, name, wanted):
    assert Session(only=only).starts(name) is wanted


def test_no_row_starts_that_the_budget_does_not_hold(capsys):
    session = Session(budget_seconds=100)
    assert session.starts("small", 10)
    assert not session.starts("large", 1000)
    assert "large: left out" in capsys.readouterr().out
    assert not Session(budget_seconds=0).starts("any")


def test_files_are_written_after_every_row(tmp_path):
    path = tmp_path / "r.json"
    session = Session(path, gpu=GPU, failed=[])
    for count in (1, 2):
        session.add(row("n", [1.0], mode="a", nominal_edges=1))
        assert len(json.loads(path.read_text())["rows"]) == count
    session.write(failed=["m"])
    assert json.loads(path.read_text())["failed"] == ["m"]


def test_repetitions():
    assert repetitions(0.001) == 50
    assert repetitions(0.5) == 10
    assert repetitions(1.5) == 3
    calls = []
    runs = repeat(lambda: calls.append(0) or 2.0)
    assert (runs, len(calls)) == ([2.0] * 3, 4)


def test_share_of_limit():
    limits = limit_seconds(PEAKS, edges=100, moved_bytes=4000)
    assert limits == {"gather": 1.0, "HBM": 4.0}
    assert share_of_limit(2.0, limits)["share_of_limit"] == 0.5
    assert share_of_limit(2.0, {}) == {"share_of_limit": None, "limit": None}
    assert limit_seconds(PEAKS, edges=100, moved_bytes=None) == {"gather": 1.0}


@pytest.mark.parametrize(
    ("rows", "population", "count"),
    [(1, 1, 1), (7, 19, 1), (19, 33, 33), (989, 100, 5), (50, 5000, 300), (300, 3000, 600)],
)
def test_distinct(benchmark_module, rows, population, count):
    distinct = benchmark_module("cuda_networks").distinct
    drawn = distinct(np.random.default_rng(3), rows, population, count)
    assert drawn.shape == (rows, count)
    assert drawn.min() >= 0
    assert drawn.max() < population
    assert (np.diff(drawn, axis=1) > 0).all()


def test_distinct_prefers_nothing(benchmark_module):
    distinct = benchmark_module("cuda_networks").distinct
    for count in (3, 30):  # both ways to draw
        drawn = distinct(np.random.default_rng(3), 20_000, 100, count)
        hits = np.bincount(drawn.ravel(), minlength=100)
        expected = 20_000 * count / 100
        assert (abs(hits - expected) < 6 * np.sqrt(expected)).all()


def test_cases(benchmark_module):
    networks = benchmark_module("cuda_networks")
    cases = networks.cases()
    assert len({case.name for case in cases}) == len(cases)
    assert {case.neurons for case in cases} == {1024, 4096, 16384, 65536}
    assert {case.fan_in for case in cases if case.neurons == 1024} == {5, 10, 20, 32, 51, 102, 205}
    for case in cases:
        if case.width:
            radixnet.uniform(case.neurons, case.fan_in, case.layers, width=None)
    assert sum(case.width > 0 for case in cases) == 6


@pytest.mark.parametrize("width", [0, 1, 16])
def test_drawn_networks(benchmark_module, width):
    networks = benchmark_module("cuda_networks")
    case = networks.Case("n", 1024, 32, 3, 10, width)
    drawn, again = networks.draw(case), networks.draw(case)
    assert drawn.network.edges == case.edges
    for layer, other, weights, bias in zip(
        drawn.network, again.network, drawn.weights, drawn.bias, strict=True
    ):
        assert (np.diff(weights.indptr) == 32).all()
        assert weights.has_sorted_indices
        assert abs(layer.weights.T - weights).max() == 0
        assert abs(layer.weights - other.weights).max() == 0
        np.testing.assert_array_equal(layer.bias, bias)
    assert abs(drawn.weights[0] - drawn.weights[1]).max() > 0


def test_torch_rivals_give_the_answer(benchmark_module):
    torch = pytest.importorskip("torch")
    networks = benchmark_module("cuda_networks")
    general, rivals = benchmark_module("general_cuda"), benchmark_module("cuda_rivals")
    case = networks.Case("n", 256, 20, 4, 33)
    drawn = networks.draw(case)
    features = torch.from_numpy(general.draw_features(case.samples, case.neurons, "cpu"))
    ids, expected = general.reference(case, drawn, features)
    for label in ("torch CSR", "torch CSR addmm", "torch dense"):
        rival = rivals.RIVALS[label](drawn, features)
        general.error_of(rival.rows(rival.run(), ids), expected)


def test_wrong_answers_are_seen(benchmark_module):
    general = benchmark_module("general_cuda")
    right = np.linspace(1, 2, 50).reshape(5, 10)
    assert general.error_of(right.astype(np.float32), right) < 1e-6
    for wrong in (right * 1.001, right * np.nan, right * 0):
        with pytest.raises(general.FailedError):
            general.error_of(wrong, right)


def test_networks_that_die_are_no_use(benchmark_module):
    networks, general = benchmark_module("cuda_networks"), benchmark_module("general_cuda")
    case = networks.Case("n", 64, 8, 2, 20)
    drawn = networks.draw(case)
    dead = [teraedge.Layer(-abs(w.T.tocsr()), 0, teraedge.ReLU()) for w in drawn.weights]
    features = general.draw_features(case.samples, case.neurons, "cpu")
    with pytest.raises(general.FailedError, match="die"):
        general.reference(case, networks.Drawn(teraedge.Network(dead), [], []), features)


def gpu_row(network, mode, seconds=0.01, **fields):
    extra = {"passed": True, "compile_seconds": 1.0, "device_memory_bytes": 2e9} | fields
    return row(network, [seconds] * 3, mode=mode, nominal_edges=10**11, executed_edges=10**10,
               device=GPU.name, gpus=1, **extra)  # fmt: skip


def test_tables_of_gpus(benchmark_module, tmp_path, monkeypatch):
    tables = benchmark_module("readme_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    names = ("challenge-cuda", "general-cuda", "stream-cuda")
    text = "\n".join(f"<!-- table: {name} -->\nold\n<!-- end -->" for name in names)
    empty = tables.with_tables(text)
    assert "old" not in empty
    assert tables.with_tables(empty) == empty
    limit = {"share_of_limit": 0.5, "limit": "HBM"}
    challenge = [gpu_row("4096-120", "b", features="device", **limit),
                 gpu_row("1024-120", "b", features="host", **limit),
                 gpu_row("1024-120", "c", features="device")]  # fmt: skip
    write_results(tmp_path / "2030-01-01-cuda-challenge.json", challenge, gpu=GPU)
    shape = {"neurons": 1024, "fan_in": 32, "layers": 9}
    rivals = {"cuSPARSE": 0.05, "torch CSR": 0.04, "torch CSR addmm": 0.03}
    general = [gpu_row("random-1024-32", "a", label="teraedge", **shape, **limit)]
    general += [gpu_row("random-1024-32", "a", seconds, label=label, rival="r", **shape)
                for label, seconds in rivals.items()]  # fmt: skip
    write_results(tmp_path / "2030-01-01-cuda-general.json", general, gpu=GPU)
    stream = [gpu_row("w", "a", 0.011, label="streamed", streamed_bytes=10**9),
              gpu_row("w", "a", 0.01, label="resident", streamed_bytes=0)]  # fmt: skip
    write_results(tmp_path / "2030-01-01-cuda-stream.json", stream, gpu=GPU)
    made = tables.with_tables(empty)
    assert made.index("| 1024-120 | 10 ms*, 10 TE/s nominal") < made.index("| 4096-120 |")
    assert "3.00 times" in made
    assert "1.10 times as long" in made
    assert "2030-01-01-cuda-general.json" in made
    assert tables.with_tables(made) == made
