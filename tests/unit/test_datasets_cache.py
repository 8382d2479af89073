from pathlib import Path

import pytest

from teraedge.cache import atomic_write, cache_dir
from teraedge.errors import DataError


def test_cache_dir_order(monkeypatch, tmp_path):
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("TERAEDGE_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "teraedge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "teraedge"
    assert not cache_dir().exists()


def test_cache_dir_without_home(monkeypatch):
    monkeypatch.delenv("TERAEDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match="set TERAEDGE_CACHE"):
        cache_dir()


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.npz"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".npz"
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "b"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
