"""Bad input: one line on stderr, exit status 2, and nothing left behind."""

import numpy as np
import pytest

import teraedge as package
from teraedge import cli


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    package.save(package.Network([package.Layer(np.eye(4))]), path)
    return path


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "features.npy"
    np.save(path, np.ones((3, 4), np.float32))
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["challenge", "-n", 1000], "1000"),
        (["challenge", "-l", 0], "layers is 0"),
        (["challenge", "-l", 5000], "layers is 5000"),
        (["challenge", "-n", "many"], "'--neurons'"),
        (["challenge", "--mode", "d"], "'--mode'"),
        (["challenge", "--samples", 0], "'--samples'"),
        (["challenge", "--samples", 60001], "60001"),
        (["challenge", "--threads", 0], "'--threads'"),
        (["challenge", "--device", "toaster"], "'toaster'"),
        (["challenge", "--frobnicate"], "--frobnicate"),
        (["challange"], "No such command 'challange'"),
        (["run"], "MODEL"),
        (["info", "absent.safetensors"], "absent.safetensors"),
        (["info", "absent.pickle"], "cannot tell the format"),
        (["info", "."], "holds no network"),
        (["convert", "absent.safetensors", "out.safetensors"], "absent.safetensors"),
    ],
)
def test_one_line_and_status_2(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize("output", ["absent/out.npy", "out.docx", "."])
def test_output_that_cannot_be_written_is_refused(refused, model, features, tmp_path, output):
    before = sorted(tmp_path.iterdir())
    refused("run", model, features, "-o", output)
    assert sorted(tmp_path.iterdir()) == before


def test_features_of_another_width(refused, model, tmp_path):
    np.save(tmp_path / "wide.npy", np.ones((3, 9), np.float32))
    assert "(3, 9)" in refused("run", model, "wide.npy", "-o", "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_truncated_model(refused, model):
    model.write_bytes(model.read_bytes()[:-7])
    refused("info", model)


def test_conversion_that_fails_leaves_the_old_file(refused, model, tmp_path):
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"precious")
    model.write_bytes(b"no model")
    refused("convert", model, old)
    assert old.read_bytes() == b"precious"


def test_export_into_a_folder_in_use(refused, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.txt").write_text("precious")
    refused("export-challenge", "data", "--samples", 3, "-l", 2)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 4 GiB"), "out of memory (Unable to allocate 4 GiB)"),
        (OSError(28, "No space left on device", "out.npy"), "out.npy: No space left on device"),
        (package.errors.ModelError("two\nlines"), "two lines"),
    ],
)
def test_errors_of_the_system_are_one_line_too(monkeypatch, capsys, error, line):
    assert run_main_raising(monkeypatch, error) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"error: {line}")
    assert written.err.count("\n") == 1


def test_interrupt(monkeypatch, capsys):
    assert run_main_raising(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_shows_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_main_raising(monkeypatch, ZeroDivisionError("a bug"))


def run_main_raising(monkeypatch, error):
    """Run the command with an export that fails in its middle."""
    from teraedge.cli import console
    from teraedge.datasets import challenge

    def fail(*_arguments):
        raise error

    console.err.cache_clear()  # it would hold the stderr of another test
    monkeypatch.setattr(challenge, "network", fail)
    return cli.main(["export-challenge", "data"])
