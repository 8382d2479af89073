"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges; CC BY-SA 3.0)."""

import gzip
import hashlib
import logging
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from teraedge.cache import atomic_write, cache_dir
from teraedge.errors import DataError, DependencyError, OptionsError

Split = Literal["train", "test"]

# Public copies of the four files; whatever they send is checked by sha256.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_PREFIXES = {"train": "train", "test": "t10k"}
# name -> sha256 of the unpacked file
_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_log = logging.getLogger(__name__)


def images(
    split: Split = "train", *, source: str | os.PathLike[str] | None = None
) -> NDArray[np.uint8]:
    """Return the images of a split.

    Parameters
    ----------
    split : {"train", "test"}
        60,000 or 10,000 images.
    source : path-like, optional
        The folder of the IDX files, gzipped or not, under their usual names. By default the folder
        that ``TERAEDGE_DATA`` names; without it, the cache; where that has none, they are
        downloaded (which needs the extra ``teraedge[data]``).

    Returns
    -------
    ndarray of uint8, shape (images, 28, 28)
        0 is background, 255 full ink.

    Raises
    ------
    OptionsError
        If there is no such split.
    DataError
        If the file is absent, is not MNIST's, or cannot be downloaded.
    DependencyError
        If it must be downloaded and pooch is not installed.
    """
    content = _content(f"{_prefix(split)}-images-idx3-ubyte", source)
    # The sha256 has vouched for the header: magic, count, rows, columns.
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).copy()


def labels(
    split: Split = "train", *, source: str | os.PathLike[str] | None = None
) -> NDArray[np.uint8]:
    """Return the digits, 0 to 9, that the images of a split show.

    Parameters and errors are those of `images`.

    Returns
    -------
    ndarray of uint8, shape (images,)
    """
    content = _content(f"{_prefix(split)}-labels-idx1-ubyte", source)
    return np.frombuffer(content, np.uint8, offset=8).copy()


def _prefix(split: str) -> str:
    if split not in _PREFIXES:
        raise OptionsError(f"split is {split!r}; allowed: {', '.join(map(repr, _PREFIXES))}")
    return _PREFIXES[split]


def _content(name: str, source: str | os.PathLike[str] | None) -> bytes:
    """Return the unpacked file `name`, checked."""
    folder = source or os.environ.get("TERAEDGE_DATA")
    if folder:
        return _unpack(_find(Path(folder).expanduser(), name, given=source is not None), name)
    cached = cache_dir() / "mnist" / f"{name}.gz"
    if cached.exists():
        try:
            return _unpack(cached, name)
        except DataError as error:
            _log.warning("%s; downloading it again", error)
    return _download(name, cached)


def _find(folder: Path, name: str, *, given: bool) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    who = "the source folder" if given else "TERAEDGE_DATA"
    raise DataError(
        f"{who} {folder} holds neither {name}.gz nor {name}; put MNIST's file there or "
        f"{'give no source' if given else 'unset TERAEDGE_DATA'} to download it"
    )


def _unpack(path: Path, name: str) -> bytes:
    """Read a file, gzipped or not, and check that it is `name`."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; download it again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != _FILES[name]:
        raise DataError(
            f"{path} is not MNIST's {name} (unpacked, its sha256 is {found[:12]}..., not "
            f"{_FILES[name][:12]}...); download it again (Fashion-MNIST uses the same names)"
        )
    return content


def _download(name: str, target: Path) -> bytes:
    """Fetch a file into the cache and return its checked, unpacked content."""
    instead = f"set TERAEDGE_DATA to a folder that holds {name}.gz"
    try:
        import pooch
    except ImportError:
        raise DependencyError(
            "MNIST is not on this machine, and to download it pooch is needed: "
            f"pip install 'teraedge[data]', or {instead}"
        ) from None
    reasons = []
    for mirror in MIRRORS:
        url = f"{mirror}{name}.gz"
        _log.info("downloading %s", url)
        try:
            with atomic_write(target) as temporary:
                pooch.HTTPDownloader(progressbar=False)(url, str(temporary), None)
                return _unpack(temporary, name)
        except DataError:
            reasons.append(f"{url} sends another file")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            reasons.append(f"{url}: {type(error).__name__}")
    raise DataError(
        f"MNIST could not be downloaded ({'; '.join(reasons)}); try again with a network, or "
        f"{instead}"
    )
