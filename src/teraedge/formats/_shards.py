"""Safetensors files: one, or shards with an index as Hugging Face has it; written whole or not.

A save above the shard size is several files ``<name>-00001-of-00003.safetensors`` and an index
``<name>.safetensors.index.json``: ``metadata`` is that of a single file, ``weight_map`` gives the
file of each tensor. ``model``, an id of that save, stands in the index and every shard.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from teraedge.cache import new_file_mode
from teraedge.errors import FormatError
from teraedge.formats._atomic import beside
from teraedge.formats._spec import read_json

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors").fullmatch
_KINDS = {
    "teraedge": ("model", "teraedge.load"),
    "teraedge-plan": ("plan", "teraedge.load_plan"),
}
_DTYPES = {"I64": np.int64, "I32": np.int32, "U32": np.uint32, "U16": np.uint16, "F32": np.float32}
"""Of the tensors that may be mapped."""


def _kind(about: dict[str, str]) -> str:
    return "teraedge " + _KINDS[about["format"]][0]


class Writer:
    """The files of one save: temporary until all are complete.

    Parameters
    ----------
    path : path
        ``*.safetensors``. A save of that name is replaced at the end, or, on failure, left.
    about : dict of str to str
        The metadata ``format`` and ``format_version``, also of every shard.
    limit : int
        Bytes of tensors in a file: what is held in memory.

    Raises
    ------
    FormatError
        If the suffix is another or the files cannot be written.
    """

    def __init__(self, path: Path, about: dict[str, str], limit: int) -> None:
        if not path.name.endswith(SUFFIX):
            raise FormatError(f"{path}: the name of a {_kind(about)} ends with {SUFFIX}")
        other = _format_of(path) if path.is_file() else None
        if other in _KINDS and other != about["format"]:
            raise FormatError(
                f"{path}: is a teraedge {_KINDS[other][0]}; give the {_KINDS[about['format']][0]} "
                "another name"
            )
        self._folder, self._stem = path.parent, path.name.removesuffix(SUFFIX)
        self._about, self._limit = about, limit
        self._held: dict[str, NDArray[Any]] = {}
        self._size = 0
        self._model = uuid4().hex
        self._shards: list[tuple[Path, dict[str, int]]] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for temporary, _sizes in self._shards:
            temporary.unlink(missing_ok=True)

    def add(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Take tensors that belong into one file; writes a file when one is full."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._held and self._size + size > self._limit:
            self._shard()
        self._held.update(tensors)
        self._size += size

    def _shard(self, metadata: dict[str, str] | None = None) -> None:
        """Write what is held to the next temporary file."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        temporary = beside(self._folder / f"{self._stem}{SUFFIX}")
        tensors, self._held, self._size = self._held, {}, 0
        self._shards.append((temporary, {key: value.nbytes for key, value in tensors.items()}))
        with self._writing():
            mode = new_file_mode(temporary)
            try:
                save_file(tensors, temporary, metadata or self._about | {"model": self._model})
                temporary.chmod(mode)
            except SafetensorError as error:  # as it reports a full disk, for one
                raise FormatError(f"{self._target()}: cannot be written: {error}") from None

    def finish(self, metadata: dict[str, str]) -> None:
        """Write what is left, give every file its name, and remove what the save replaces."""
        metadata = self._about | metadata
        old = set(self._existing())
        if self._shards:
            self._shard()
            new = self._finish_shards(metadata | {"model": self._model})
        else:
            self._shard(metadata)
            new = [self._target()]
            with self._writing():
                self._shards[0][0].replace(new[0])
        with self._writing():
            for path in old - set(new):
                if _format_of(path) == self._about["format"]:
                    path.unlink(missing_ok=True)

    def _finish_shards(self, metadata: dict[str, str]) -> list[Path]:
        count = len(self._shards)
        names = [f"{self._stem}-{k:05}-of-{count:05}{SUFFIX}" for k in range(1, count + 1)]
        weight_map = {
            key: name for name, (_, sizes) in zip(names, self._shards, strict=True) for key in sizes
        }
        total = sum(sum(sizes.values()) for _, sizes in self._shards)
        text = json.dumps({"metadata": {"total_size": total, **metadata}, "weight_map": weight_map})
        index = self._folder / f"{self._stem}{INDEX_SUFFIX}"
        temporary = beside(index)
        targets = [self._folder / name for name in names]
        with self._writing():
            try:
                temporary.write_text(text + "\n", encoding="utf-8")
                for (shard, _), target in zip(self._shards, targets, strict=True):
                    shard.replace(target)
                temporary.replace(index)  # the last, so that it never names what is not there
            finally:
                temporary.unlink(missing_ok=True)
        return [*targets, index]

    def _target(self) -> Path:
        return self._folder / f"{self._stem}{SUFFIX}"

    def _existing(self) -> Iterator[Path]:
        """Yield the files of a model of this name."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            end = path.name.removeprefix(self._stem)
            if path.name.startswith(self._stem) and (end in (SUFFIX, INDEX_SUFFIX) or _SHARD(end)):
                yield path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise FormatError(f"{self._target()}: cannot be written: {reason}") from None


class File:
    """One safetensors file, mapped to memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FormatError(f"{path}: there is no such file")
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="numpy")
            self.metadata: dict[str, Any] = file.metadata() or {}
            self.names = frozenset(file.keys())
            self._file = file
        except (SafetensorError, OSError, ValueError) as error:
            raise FormatError(f"{path}: is truncated or not safetensors: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return File, (self.path,)  # another process maps it anew

    def describe(self, name: str) -> tuple[str, list[int]]:
        """Return dtype, as safetensors names it, and shape of a tensor, without reading it."""
        part = self._file.get_slice(name)
        return part.get_dtype(), part.get_shape()

    def map(self, name: str) -> NDArray[Any]:
        """Return a tensor as it lies in the file, without reading it: read-only."""
        about, data = self._mapped
        begin, end = about[name]["data_offsets"]
        array = data[begin:end].view(_DTYPES[about[name]["dtype"]])
        return array if array.flags.aligned else array.copy()

    @cached_property
    def _mapped(self) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """The header, which `safe_open` has checked against the file's size, and the bytes."""
        data = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        size = int(data[:8].view("<u8")[0])
        return json.loads(data[8 : 8 + size].tobytes()), data[8 + size :]

    def read_real(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor of real numbers, bfloat16 and float16 as float32."""
        if self.describe(name)[0] != "BF16":
            array = self.read(name)
            return array.astype(np.float32) if array.dtype == np.float16 else array
        about, data = self._mapped  # NumPy has no bfloat16, which is the upper half of a float32
        begin, end = about[name]["data_offsets"]
        halves = np.frombuffer(data[begin:end].tobytes(), "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(about[name]["shape"])

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor."""
        from safetensors import SafetensorError

        try:
            array: NDArray[Any] = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.path}: {name} cannot be read: {error}") from None
        return array


def open_files(path: Path) -> tuple[Path, dict[str, Any], dict[str, File]]:
    """Open one file, or an index and its shards, which the name of the one file also finds.

    Returns
    -------
    path : Path
        What was opened: the file or the index.
    metadata : dict
        Unchecked.
    tensors : dict of str to File
        Where each tensor is.
    """
    index = path.with_name(path.name.removesuffix(SUFFIX) + INDEX_SUFFIX)
    if path.name.endswith(INDEX_SUFFIX) or (not path.exists() and index.is_file()):
        path = path if path.name.endswith(INDEX_SUFFIX) else index
        return path, *_open_shards(path)
    file = File(path)
    return path, file.metadata, dict.fromkeys(file.names, file)


def check_format(metadata: dict[str, Any], about: dict[str, str], path: Path) -> None:
    """Refuse files of another format or version than `about` says."""
    given, version = metadata.get("format"), metadata.get("format_version")
    if given != about["format"]:
        what = "its metadata has no such format"
        if given in _KINDS:
            what = f"it is a {_KINDS[given][0]}: use {_KINDS[given][1]}"
        elif about["format"] == "teraedge":
            what += "; weights and biases of another library: teraedge.from_safetensors, or "
            what += "teraedge convert --activation"
        raise FormatError(f"{path}: is not a {_kind(about)} ({what})")
    if version != about["format_version"]:
        raise FormatError(
            f"{path}: has format version {ascii(version)[:40]}; this teraedge reads "
            f"{about['format_version']}"
        )


def _open_shards(path: Path) -> tuple[dict[str, Any], dict[str, File]]:
    """Open the shards that an index names, and match their tensors with it."""
    index = _read_index(path)
    metadata, weight_map = index["metadata"], index["weight_map"]
    files: dict[Any, File] = {}
    for shard in weight_map.values():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise FormatError(
                f"{path}: weight_map names {ascii(shard)[:80]}; shards are {SUFFIX} files beside "
                "the index"
            )
        if shard not in files:
            files[shard] = _open_shard(path, shard, metadata)
    for shard, file in files.items():
        mapped = {name for name, where in weight_map.items() if where == shard}
        if mapped != file.names:
            raise FormatError(
                f"{file.path}: its tensors are not those of the index; look at "
                f"{min(mapped ^ file.names)[:80]}"
            )
    return metadata, {name: files[shard] for name, shard in weight_map.items()}


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = read_json(path.read_bytes(), str(path))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not all(isinstance(index.get(key), dict) for key in ("metadata", "weight_map")):
        raise FormatError(f"{path}: must have the objects metadata and weight_map")
    return index


def _format_of(path: Path) -> Any:
    """Return the format an index or a safetensors file names, None where it is neither."""
    try:
        index = path.name.endswith(INDEX_SUFFIX)
        return (_read_index(path)["metadata"] if index else File(path).metadata).get("format")
    except FormatError:
        return None


def _is_plain_name(name: str) -> bool:
    return name.endswith(SUFFIX) and not any(char in name for char in "/\\:\0")


def _open_shard(path: Path, shard: str, metadata: dict[str, Any]) -> File:
    file = File(path.with_name(shard))
    if file.metadata.get("model") != metadata.get("model"):
        raise FormatError(f"{file.path}: belongs to another save than {path.name}")
    return file
