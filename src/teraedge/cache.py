"""Where teraedge keeps what it can make again, and how it writes files whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teraedge.errors import DataError


def cache_dir() -> Path:
    """Return the folder of cached files, which may not exist yet.

    ``TERAEDGE_CACHE`` if set, else ``$XDG_CACHE_HOME/teraedge``, else ``~/.cache/teraedge``.
    Everything in it can be deleted at any time.

    Raises
    ------
    DataError
        If none of the three can be told, since there is no home folder.
    """
    if chosen := os.environ.get("TERAEDGE_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG specification: a relative path is to be ignored
        return base / "teraedge"
    try:
        return Path.home() / ".cache" / "teraedge"
    except RuntimeError:
        raise DataError(
            "there is no home folder to keep cached files in; set TERAEDGE_CACHE to a folder"
        ) from None


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` at the end.

    Other processes see the old file or the whole new one, never a part. After an exception the
    new file is removed and the old one is untouched. Parent folders are made.

    Parameters
    ----------
    path : path-like
        The file to make or replace.

    Yields
    ------
    pathlib.Path
        Does not exist yet; write the file there and close it before leaving the context.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers (numpy.savez) add one where they miss it.
    part = f".{target.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{target.suffix}"
    temporary = target.with_name(part)
    try:
        mode = new_file_mode(temporary)
        yield temporary
        temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def new_file_mode(path: Path) -> int:
    """Return the permissions that the user's umask gives a new file at `path`, which stays absent.

    Some writers, safetensors for one, make files that only their owner can read.
    """
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    path.unlink()
    return mode
