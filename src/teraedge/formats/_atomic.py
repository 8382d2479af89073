"""Writing beside and renaming, so that a failure leaves what was there before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from teraedge.cache import atomic_write
from teraedge.errors import FormatError


def beside(path: Path) -> Path:
    """Return a name for a temporary file or folder in the folder of `path`, which must exist."""
    if not path.parent.is_dir():
        raise FormatError(f"{path}: the folder {path.parent} does not exist; make it first")
    return path.parent / f".{path.name}.{uuid4().hex[:12]}.tmp"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; rename it to `path` on success, remove it on failure.

    Raises
    ------
    FormatError
        If the folder of `path` does not exist, or the system refuses to write.
    """
    if path.is_dir():
        raise FormatError(f"{path} is a folder; give a file name")
    beside(path)  # atomic_write would make the folder, of which a wrong path is no reason
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise FormatError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; rename it to `path` on success, remove it on failure.

    Raises
    ------
    FormatError
        If `path` is a file or holds anything (files of another network must not be mixed in), its
        parent does not exist, or the system refuses to write.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FormatError(f"{path} exists and is not an empty folder; remove it or give another")
    temporary = beside(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.replace(path)
    except OSError as error:
        raise FormatError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
