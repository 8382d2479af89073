"""The GPU benchmarks at tiny sizes on the emulator: everything but the rivals runs."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

import teraedge
from teraedge.bench.gpu import peaks
from teraedge.bench.session import Session
from teraedge.datasets import challenge
from teraedge.engines.cuda import driver
from teraedge.plan import resident
from teraedge.plan.rates import Rates

pytestmark = pytest.mark.skipif(not build.available(), reason=build.REASON)

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
QUICK = {"total": 0, "least": 2}


@pytest.fixture
def gpu(monkeypatch):
    """Put an emulated GPU in place of the real one, and the benchmarks on the path."""
    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    monkeypatch.syspath_prepend(BENCHMARKS)
    for library in ("torch", "cupy"):  # which have no GPU either
        monkeypatch.setitem(sys.modules, library, None)
    before = set(sys.modules)
    yield EmulatedDevice()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(BENCHMARKS):
            del sys.modules[name]


def test_challenge(gpu, capsys):
    from challenge_cuda import FailedError, line, measure

    network, features = challenge.network(1024, 3), challenge.features(1024, 70)
    truth = teraedge.reference.run(network, features).live
    limits = peaks(gpu, 1 << 16)
    found = measure(network, features, truth, "b", gpu, limits, **QUICK)
    assert found["passed"]
    assert found["network"] == "1024-3"
    assert found["features"] == "host"
    assert found["share_of_limit"] is None  # a kernel that neither limit is for
    assert len(found["compile_seconds_all"]) in (1, 2)
    assert found["trace"]["live_last"] == len(truth)
    assert "1024-3 b" in line(found)
    assert "features stay on the host" in capsys.readouterr().out
    with pytest.raises(FailedError, match="1 ids"):
        measure(network, features, truth[1:], "b", gpu, limits, **QUICK)


def test_challenge_in_the_wide_kernel_has_a_share_of_its_limit(gpu, monkeypatch):
    from challenge_cuda import measure

    monkeypatch.setattr(resident, "SAMPLES", ())  # none of the kernels that stay on chip
    monkeypatch.setattr(Rates, "staged_at_best", lambda *_: np.inf)
    network, features = challenge.network(1024, 2), challenge.features(1024, 40)
    truth = teraedge.reference.run(network, features).live
    found = measure(network, features, truth, "b", gpu, peaks(gpu, 1 << 16), **QUICK)
    assert found["share_of_limit"] > 0


def test_general(gpu, tmp_path):
    import general_cuda
    from cuda_networks import Case
    from cuda_rivals import RIVALS

    session = Session(tmp_path / "r.json", gpu=gpu)
    case = Case("random-256-8", 256, 8, 2, 33)
    general_cuda.measure(case, gpu, peaks(gpu, 1 << 16), session, rivals=list(RIVALS), **QUICK)
    (found,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (found["label"], found["passed"], found["limit"]) == ("teraedge", True, "gather")
    assert found["error"] < 1e-6
    assert "random-256-8" in general_cuda.table(session.rows)
    general_cuda.measure(
        case, gpu, peaks(gpu, 1 << 16), session, rivals=[], precision="fp16", **QUICK
    )
    assert [row["precision"] for row in session.rows] == ["fp32", "fp16"]
    assert 1e-5 < session.rows[1]["error"] < 5e-3


def test_stream(gpu):
    import stream_cuda
    from cuda_networks import Case

    rows = []
    stream_cuda.measure(Case("w", 256, 32, 40, 65), gpu, peaks(gpu, 1 << 16), rows.append, **QUICK)
    streamed, few, resident = rows
    assert streamed["streamed_bytes"] > 0
    assert few["limit"] == "copy from the host"
    assert resident["streamed_bytes"] == 0
    assert resident["resident_layers"] == 40


def test_an_official_network_streams(gpu, monkeypatch):
    import stream_cuda

    from teraedge.engines.cuda import engine

    monkeypatch.setattr(engine, "HOST_SHARE", engine.HOST_SHARE)  # the benchmark changes it
    found = stream_cuda.official("1024-120", "300KB", gpu, 33, seconds=0.05)
    assert found["passed"]
    assert found["streamed_bytes"] > 0
    assert 0 < found["host_bytes"][0] <= found["host_bytes"][1]


def test_predictions(gpu, tmp_path):
    import predict_cuda
    from cuda_networks import Case

    session = Session(tmp_path / "r.json", gpu=gpu)
    made = partial(predict_cuda._drawn, Case("random-128-8", 128, 8, 2, 64))
    cell = predict_cuda.Cell("random-128-8", 64, made)
    for precision in ("fp32", "fp16"):
        predict_cuda.measure(cell, precision, gpu, session, "cuda")
    exact, half = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert exact["predicted_seconds"] > 0
    assert len(exact["seconds"]["runs"]) == predict_cuda.REPEAT
    first, second = exact["compared"]
    assert first["kernel"] == exact["kernels"] != second["kernel"]
    assert half["kernels"] == "resident"
    assert "mean error of 2 cells" in predict_cuda.table(session.rows)


def test_the_networks_of_predictions_are_made(gpu):
    from predict_cuda import cells

    networks = {cell.name: cell for cell in cells()}
    assert len(networks) == len(cells())
    assert [layer.n_out for layer in networks["mixed"].make()][-1] == 128
    assert networks["mlp-256-16"].make()[0].edges == 256 * 16
