"""The command as a user runs it: in a process of its own, with warnings as errors."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def teraedge(tmp_path: Path) -> Run:
    """Return a function that runs ``teraedge`` in an empty folder."""

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "teraedge", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", **env},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def refused(teraedge: Run) -> Callable[..., str]:
    """Return a function that runs ``teraedge``, expects one error line, and returns it."""

    def run(*arguments: object) -> str:
        done = teraedge(*arguments)
        assert done.returncode == 2, done
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").strip()

    return run
