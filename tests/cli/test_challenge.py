"""``teraedge challenge``: the verdict, the table, the JSON and the exit status."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import teraedge as package
from teraedge.cli import verdict as verdicts
from teraedge.datasets import challenge

SAMPLES = 600  # enough for some live ones at the end: the first of the official ids are 286 and 294


def test_passes(teraedge):
    done = teraedge("challenge", "--samples", SAMPLES)
    assert done.returncode == 0, done
    assert not done.stderr
    expected = int((challenge.categories(1024) < SAMPLES).sum())
    assert expected
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "Graph Challenge 1024-120, 600 samples, mode c"
    assert lines[-1] == f"PASSED, {expected} of {expected} ids"
    assert "█" in done.stdout
    assert max(map(len, lines)) <= 80


def test_output_without_unicode(teraedge):
    done = teraedge("challenge", "--samples", 40, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done
    assert done.stdout.isascii()


@pytest.mark.parametrize("mode", ["a", "b", "c"])
def test_json_is_a_row_of_a_result_file(teraedge, mode):
    done = teraedge("challenge", "--samples", SAMPLES, "--mode", mode, "--threads", 1, "--json")
    assert done.returncode == 0, done
    row = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (row["network"], row["mode"], row["samples"]) == ("1024-120", mode, SAMPLES)
    assert (row["gpus"], row["threads"], row["precision"]) == (0, 1, "fp32")
    assert row["passed"] is True
    assert row["nominal_edges"] == SAMPLES * 1024 * 32 * 120
    assert len(row["live_samples"]) == 120
    assert row["seconds"]["median"] > 0
    assert row["nominal_edges_per_s"] >= row["executed_edges_per_s"] > 0
    assert row["compile_seconds"] > 0
    assert row["machine"]["cores"] >= 1
    assert row["versions"]["teraedge"] == package.__version__
    assert ("prune" in row["exact"]) == (mode != "a")


def test_depth_without_an_official_answer_is_checked_by_the_reference(teraedge):
    done = teraedge("challenge", "--samples", 50, "--layers", 5)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1].startswith("PASSED against the reference only, ")
    assert "no official answer" in done.stdout.replace("│", "").replace("\n", "")


def answer(live, samples=300, neurons=4, **fields):
    """A result with these live ids."""
    rows = np.ones((len(live), neurons), np.float32)
    return package.Result(
        (samples, neurons), [(np.array(live), rows)], [], seconds=1.0, nominal_edges=1, **fields
    )


@pytest.mark.parametrize(
    ("live", "line"),
    [
        ([286, 294], "PASSED, 2 of 2 ids"),
        ([286], "FAILED, 1 of 2 ids: 1 missing (id 294)"),
        ([286, 293], "FAILED, 1 of 2 ids: 1 missing (id 294), 1 extra (id 293)"),
        (range(280, 295), "FAILED, 2 of 2 ids: 13 extra (ids 280, 281, 282, 283, 284, ...)"),
    ],
)
def test_verdict_compares_ids_and_not_counts(live, line):
    network, features = challenge.network(1024, 120), challenge.features(1024, 300)
    verdict = verdicts.verify(answer(live), network, features)
    assert str(verdict) == line
    assert verdict.passed == line.startswith("PASSED")


@pytest.mark.parametrize(
    ("live", "line"),
    [
        ([286, 294], "0 ids differ with fp16, 2 of 2 ids"),
        ([286], "1 id differs with fp16, 1 of 2 ids: 1 missing (id 294)"),
        ([286, 293], "2 ids differ with fp16, 1 of 2 ids: 1 missing (id 294), 1 extra (id 293)"),
    ],
)
def test_what_is_not_exact_never_passes(live, line):
    network, features = challenge.network(1024, 120), challenge.features(1024, 300)
    verdict = verdicts.verify(answer(live, precision="fp16"), network, features)
    assert str(verdict) == line
    assert not verdict.passed
    assert verdict.to_json()["passed"] is False


def test_the_cpu_refuses_to_store_less(teraedge):
    done = teraedge("challenge", "--samples", 20, "--precision", "fp16")
    assert done.returncode == 2, done
    assert "precision is 'fp16'; on device 'cpu' only 'fp32' is allowed" in done.stderr


def test_an_official_id_that_died_early_fails_at_any_depth(monkeypatch):
    monkeypatch.setattr(verdicts, "REFERENCE_EDGES", 300 * 1024 * 32 * 2)
    network, features = challenge.network(1024, 2), challenge.features(1024, 300)
    expected = package.reference.run(network, features).live
    right = verdicts.verify(answer(expected), network, features)
    wrong = verdicts.verify(answer(expected[expected != 286]), network, features)
    assert (right.passed, right.official, right.samples) == (True, False, 300)
    assert wrong.missing.tolist() == [286]


def test_exit_status_of_a_wrong_answer_is_1(tmp_path):
    """Run the real command with a categories list that lacks an id."""
    code = (
        "import sys\n"
        "from teraedge.datasets import challenge\n"
        "right = challenge.categories\n"
        "challenge.categories = lambda neurons: right(neurons)[1:]\n"
        "from teraedge.cli import main\n"
        "sys.exit(main(['challenge', '--samples', '400', *sys.argv[1:]]))\n"
    )
    for extra in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *extra], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done
    assert json.loads(done.stdout)["passed"] is False
    assert json.loads(done.stdout)["verdict"]["extra_ids"] == [286]


@pytest.mark.skipif(os.name == "nt", reason="signals are another thing on Windows")
def test_interrupt_exits_with_130_and_no_traceback():
    command = [sys.executable, "-m", "teraedge", "-v", "challenge", "-l", "1920", "--mode", "a"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Tests that a shell runs in the background are told to ignore it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the log line of a phase, so that the work has begun
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in rest


@pytest.mark.skipif(os.name == "nt", reason="needs a pipe whose reader can go away")
def test_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "teraedge", "challenge", "--samples", "20", "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        complaints = process.stderr.read()
    assert complaints == b""
