"""A GPU's rates: measured end to end, solved for, and kept in the cache folder."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cuda_emulator import build
from cuda_emulator.device import EmulatedDevice

import teraedge
from teraedge.engines.cuda import calibrate, driver, measure
from teraedge.engines.cuda.trials import SIZES, Sizes, makers
from teraedge.errors import DataError, DeviceError
from teraedge.plan.cost import VARIABLE
from teraedge.plan.rates import Rates

EMULATED = pytest.mark.skipif(not build.available(), reason=build.REASON)
TINY = Sizes(neurons=64, rounds=1, wide_neurons=256, wide_samples=64, seconds=0.0, copied=2**16)
ROOM = 225 * 1024
MEASURED = {name for names, _ in measure.UNKNOWN.values() for name in names}


@EMULATED
def test_measures_end_to_end(monkeypatch):
    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    found, complete = measure.measure("cuda", TINY)
    assert complete
    assert Rates.from_json(found.to_json()) == found
    before = calibrate.typical(EmulatedDevice())
    assert (found.multiprocessors, found.clock) == (before.multiprocessors, before.clock)
    changed = {name for name in MEASURED if getattr(found, name) != getattr(before, name)}
    # The emulator's clock is too coarse for the small kernel.
    assert changed | {"small_edge", "small_neuron"} == MEASURED


@EMULATED
def test_what_cannot_be_measured_keeps_the_typical_rates(monkeypatch):
    def fail(*_arguments):
        raise DeviceError("out of memory")

    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    monkeypatch.setattr(measure, "_prepared", fail)
    found, complete = measure.measure("cuda", TINY)
    assert not complete
    before = calibrate.typical(EmulatedDevice())
    assert found == replace(before, hbm_bytes=found.hbm_bytes, host_bytes=found.host_bytes)


@EMULATED
def test_a_gpu_without_free_memory_has_typical_rates(monkeypatch):
    full = partial(EmulatedDevice, memory_bytes=2**12)
    monkeypatch.setattr(driver, "open_device", full)
    found, complete = measure.measure("cuda", TINY)
    assert not complete
    assert found == calibrate.typical(EmulatedDevice())


def trials(room=ROOM, multiprocessors=132, tensor_cores=True):
    found = makers(SIZES, room, multiprocessors, tensor_cores)
    return {kernel: make() for kernel, make in found.items()}


@pytest.mark.parametrize("seed", range(4))
def test_known_rates_are_found_again(seed):
    """From times with 2 % of noise, all rates being up to 1.6 times faster or slower."""
    rng = np.random.default_rng(seed)
    drawn = {name: getattr(Rates(), name) * 1.6 ** rng.uniform(-1, 1) for name in sorted(MEASURED)}
    # What hides behind them in the trials has to.
    truth = replace(Rates(), **drawn | {"list_bytes": Rates().list_bytes / 1.6})
    truth = replace(truth, single_reads=max(truth.single_reads, Rates().single_reads))
    found = Rates()
    for kernel, several in trials().items():
        measured = [(trial, times(trial, hidden(truth, kernel), rng)) for trial in several]
        found = measure.fitted(measured, found)
        for trial, taken in measured:
            for layer, seconds in zip(trial.layers, taken, strict=True):
                assert hidden(found, kernel).seconds(layer) == pytest.approx(seconds, rel=0.12)
    alone = ("single_reads", "tall_reads", "list_bytes", "wide_bytes", "tall_bytes", "staged_reads")
    for name in alone:
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.15)


def hidden(rates, kernel):
    """Return rates of which those that hide in a kernel's trials take no time."""
    if kernel.startswith("resident, of four"):
        return replace(rates, single_reads=1e20)
    return replace(rates, list_bytes=1e20)


def times(trial, rates, rng):
    return [rates.seconds(layer) * rng.uniform(0.98, 1.02) for layer in trial.layers]


def test_one_layer_makes_all_that_it_tells_of_as_much_slower():
    parts = {"small_edge": 1024.0, "small_neuron": 256.0}
    seconds = sum(getattr(Rates(), name) * amount for name, amount in parts.items())
    found = measure.solved([measure.Equation(parts, 2 * seconds)], Rates())
    for name in parts:
        assert getattr(found, name) == pytest.approx(2 * getattr(Rates(), name), rel=0.1)


@pytest.mark.parametrize("shared", [48, 64, 99, 163])
def test_small_gpus_get_the_trials_that_they_can_run(shared):
    found = trials(shared * 1024 - 1792, multiprocessors=20, tensor_cores=False)
    assert "block" not in found
    assert "dense" not in found
    assert found["wide"]
    for several in found.values():
        for trial in several:
            assert all(layer.shared <= shared * 1024 - 1792 for layer in trial.layers)
            assert trial.samples > 0
    assert bool(found["resident"])


def test_trials_take_less_than_a_gigabyte():
    for several in trials().values():
        for trial in several:
            width = max(layer.n_out for layer in trial.layers)
            layers = sum(layer.nbytes for layer in {id(one): one for one in trial.layers}.values())
            assert 3 * trial.samples * width * 4 + layers < 1e9


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Count measurements, which take no time here, and keep them in a folder of their own."""
    calls = []

    def measured(name, *_):
        calls.append(name)
        return replace(calibrate.typical(DEVICE), border=1e-6 * len(calls)), True

    monkeypatch.setattr(measure, "measure", measured)
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(calibrate, "_known", {})
    return calls


class Device:
    name = "a GPU"
    multiprocessors, clock_hz, shared_bytes = 20, 1e9, 99 * 1024
    driver_version = "1.2"


DEVICE = Device()


def again(device=DEVICE):
    """As another process would."""
    calibrate._known.clear()
    return calibrate.rates_of(device, "cuda:0")


def test_measured_once(fake, caplog):
    with caplog.at_level("INFO"):
        first = calibrate.rates_of(DEVICE, "cuda:0")
    assert caplog.text.count("measured the speeds of a GPU") == 1
    assert calibrate.rates_of(DEVICE, "cuda:0") == again() == first
    assert fake == ["cuda:0"]
    assert calibrate.kept(DEVICE).rates == first
    assert calibrate.kept(DEVICE).measured.startswith("20")


def test_typical_measures_nothing(fake, monkeypatch):
    monkeypatch.setenv(VARIABLE, "typical")
    assert again() == Rates().scaled(20, 1e9)
    assert fake == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"rates": {}, "measured": "now"}', "\x00\xff", "[" * 100_000]
)
def test_a_damaged_file_is_measured_again(fake, text):
    again()
    path = calibrate._path(DEVICE)
    path.write_text(text)
    found = again()
    assert len(fake) == 2
    assert json.loads(path.read_text())["rates"]["border"] == found.border  # and mended
    assert again() == found


@pytest.mark.parametrize(
    "change", [{"border": 0}, {"border": float("nan")}, {"multiprocessors": 21}, {"more": 1.0}]
)
def test_a_foreign_file_is_measured_again(fake, change):
    again()
    path = calibrate._path(DEVICE)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "rates": {**content["rates"], **change}}))
    again()
    assert len(fake) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("name", "another"), ("multiprocessors", 21), ("clock_hz", 2e9)),
        *(("shared_bytes", 1), ("driver_version", "1.3")),
    ],
)
def test_the_key_names_the_gpu(fake, name, value):
    other = Device()
    setattr(other, name, value)
    assert calibrate._path(other) != calibrate._path(DEVICE)


def test_what_is_incomplete_is_not_kept(fake, monkeypatch):
    rates = calibrate.typical(DEVICE)
    monkeypatch.setattr(measure, "measure", lambda *_: (rates, False))
    assert again() == rates
    assert calibrate.kept(DEVICE) is None


def test_a_cache_that_cannot_be_written(fake, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert again().border == 1e-6
    assert again().border == 2e-6  # measured again, since it could not be kept


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_read_only_cache(fake, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert again().border == 1e-6


def test_no_home(fake, monkeypatch):
    def no_home():
        raise DataError("there is no home folder")

    monkeypatch.setattr(calibrate, "cache_dir", no_home)
    assert again().border == 1e-6


PROCESS = """
import os, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from test_rates import DEVICE, calibrate, measure
os.environ["TERAEDGE_CACHE"] = sys.argv[3]
rates = calibrate.typical(DEVICE)
measure.measure = lambda *_: (replace(rates, border=float(sys.argv[2])), True)
for _ in range(200):
    calibrate._known.clear()
    calibrate._path(DEVICE).unlink(missing_ok=True)
    assert calibrate.rates_of(DEVICE, "cuda").border in (1.0, 2.0, 3.0)
"""


def test_many_processes_at_once(tmp_path):
    """Each measures again and again, as others take its file away."""
    here = Path(__file__).parent
    environment = {**os.environ, VARIABLE: ""}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, here, str(number), tmp_path],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (1.0, 2.0, 3.0)
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


@EMULATED
def test_the_first_compile_measures(fake, monkeypatch):
    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    rates = calibrate.typical(EmulatedDevice())
    monkeypatch.setattr(measure, "measure", lambda *_: fake.append(1) or (rates, True))
    network = teraedge.Network([teraedge.Layer(np.eye(40, dtype=np.float32))])
    for _ in range(2):
        with teraedge.compile(network, "cuda") as engine:
            np.testing.assert_array_equal(engine.run(np.eye(40)).outputs, np.eye(40))
            explained = engine.explain()
    assert fake == [1]
    assert explained.predicted is not None
    assert explained.to_json()["mean_error"] == explained.error


@EMULATED
def test_doctor_tells_of_them(fake, monkeypatch):
    from teraedge.cli import doctor_cuda

    monkeypatch.setattr(driver, "open_device", EmulatedDevice)
    assert "not kept" in doctor_cuda.rates("cuda:0").text
    calibrate.rates_of(EmulatedDevice(), "cuda:0")
    # the fake is of another GPU, whose file this one does not take
    assert doctor_cuda.rates("cuda:0").value["measured"] is None
    monkeypatch.setattr(measure, "measure", lambda *_: (calibrate.typical(EmulatedDevice()), True))
    again(EmulatedDevice())
    found = doctor_cuda.rates("cuda:0")
    assert found.text.startswith("measured 20")
    assert found.value["multiprocessors"] == 3
    monkeypatch.setenv(VARIABLE, "typical")
    assert "typical" in doctor_cuda.rates("cuda:0").text
