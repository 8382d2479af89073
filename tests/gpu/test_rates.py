"""The rates of the GPU that is here."""

import time

import numpy as np
import pytest

import teraedge
from teraedge import Options
from teraedge.engines.cuda import calibrate, driver, measure


def test_measures_in_seconds_and_predicts(monkeypatch):
    found, complete = measure.measure("cuda")  # which may compile kernels
    assert complete
    begin = time.perf_counter()
    again, complete = measure.measure("cuda")
    assert complete
    assert time.perf_counter() - begin < 5
    for name, value in found.to_json().items():
        assert getattr(again, name) == pytest.approx(value, rel=0.5), name
    device = driver.open_device("cuda")
    monkeypatch.setattr(calibrate, "is_typical", lambda: False)
    monkeypatch.setattr(calibrate, "_known", {calibrate._key(device): found})
    rng = np.random.default_rng(0)
    weights = rng.random((1024, 1024), np.float32) * (rng.random((1024, 1024)) < 0.05)
    network = teraedge.Network([teraedge.Layer(weights, 0.1, teraedge.ClippedReLU(32))] * 6)
    features = rng.random((60_000, 1024), np.float32)
    with teraedge.compile(network, "cuda", Options.mode("a")) as engine:
        for _ in range(3):
            engine.run(features)
        assert engine.explain().error < 0.4
    device.close()
