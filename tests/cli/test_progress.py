"""Progress bars: on terminals only, only for slow work, and gone at the end."""

import io
import threading
import time

import numpy as np
import pytest
from rich.console import Console

import teraedge
from teraedge.cli import progress


@pytest.fixture
def terminal(monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "err", lambda: console)
    return stream


def test_quick_work_shows_nothing(terminal):
    with progress.Stage("quick") as stage:
        stage(0.5)
    assert terminal.getvalue() == ""


def test_slow_work_shows_a_bar(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    with progress.Stage("slow work") as stage:
        for step in range(10):
            time.sleep(0.05)
            stage(step / 9)
    assert "slow work" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_nothing_where_stderr_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "err", lambda: Console(file=stream))
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.Stage("slow") as stage:
        time.sleep(0.05)
        stage(1.0)
    assert stream.getvalue() == ""


def test_fractions_from_many_threads_never_go_back():
    with progress.Stage("threads") as stage:
        threads = [threading.Thread(target=stage, args=(n / 8,)) for n in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stage(0.1)
    assert stage._fraction == 1.0


def test_watched_network_is_the_same_and_tells_of_its_layers():
    layers = [teraedge.Layer(np.eye(3) * scale) for scale in (1, 2, 3)]
    seen = []
    watched = progress.watched(teraedge.Network(layers, name="three"), seen.append)
    assert [layer is given for layer, given in zip(watched, layers, strict=True)] == [True] * 3
    assert seen == [1 / 3, 2 / 3, 1.0]
    assert watched.name == "three"
