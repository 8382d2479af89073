"""The native model file: safetensors with one-dimensional tensors, read through mmap.

===========================  ======================  ==============================================
tensor                       dtype                   size
===========================  ======================  ==============================================
``layers.<i>.indptr``        int32 or int64          n_in + 1
``layers.<i>.indices``       uint16 where it fits    edges; ascending in every row
                             (n_out <= 65536), else
                             int32 or int64
``layers.<i>.data``          float32 or float64      edges, or 1 where the metadata says "equal"
``layers.<i>.bias``          float32 or float64      n_out, or 1 for a scalar; absent for none
===========================  ======================  ==============================================

Layers count from 0. Metadata, all strings: ``format`` "teraedge", ``format_version`` "1", ``name``
(may be absent), and ``layers``, a JSON list with an object a layer: ``shape`` [n_in, n_out],
``activation`` (name and parameters), ``equal`` (true: all weights are equal and stored once), and
``bias`` (true: it has one).

A model above the shard size is several files ``<name>-00001-of-00003.safetensors`` and an index
``<name>.safetensors.index.json``, as Hugging Face has it: ``metadata`` is the above, ``weight_map``
gives the file of each tensor. ``model``, an id of that save, stands in the index and every shard.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from teraedge.cache import new_file_mode
from teraedge.errors import FormatError
from teraedge.formats._atomic import beside
from teraedge.network import Layer, Network
from teraedge.options import parse_bytes

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
FORMAT = {"format": "teraedge", "format_version": "1"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors").fullmatch


def from_native(path: str | Path) -> Network:
    """Open a model; each layer is read when asked for.

    Parameters
    ----------
    path : path
        ``*.safetensors``, or the ``*.safetensors.index.json`` of a sharded model. The first also
        finds the second.

    Returns
    -------
    Network
        Its `edges` are known without reading a layer.

    Raises
    ------
    FormatError
        If a file is missing or malformed; values are checked when their layer is read.
    """
    from teraedge.formats._native_reader import open_model

    return open_model(Path(path))


def to_native(network: Network, path: str | Path, *, shard_size: int | str = "4GB") -> None:
    """Write a model, as shards where it is larger than one.

    Holds no more than a shard in memory. A model of that name is replaced at the end, or, on
    failure, left as it was.

    Parameters
    ----------
    network : Network
        Its layers are read one at a time.
    path : path
        ``*.safetensors``; shards are written beside, with ``*.safetensors.index.json``.
    shard_size : int or str, default "4GB"
        Bytes of tensors in a file; a layer is never split.

    Raises
    ------
    FormatError
        If the suffix is another or the files cannot be written.
    """
    folder, stem = Path(path).parent, Path(path).name
    if not stem.endswith(SUFFIX):
        raise FormatError(f"{path}: the name of a native model ends with {SUFFIX}")
    stem = stem.removesuffix(SUFFIX)
    limit = parse_bytes(shard_size)
    name = {} if network.name is None else {"name": network.name}
    with _Writer(folder, stem) as writer:
        about, held, size = [], dict[str, NDArray[Any]](), 0
        for index, layer in enumerate(network):
            tensors, info = _pack(layer, f"layers.{index}.")
            added = sum(tensor.nbytes for tensor in tensors.values())
            if held and size + added > limit:
                writer.shard(held)
                held, size = {}, 0
            held |= tensors
            size += added
            about.append(info)
        writer.finish(held, FORMAT | name | {"layers": json.dumps(about)})


def _pack(layer: Layer, prefix: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of a layer and what the metadata says of it."""
    weights = layer.weights
    bits = weights.data.view(f"u{weights.data.itemsize}")
    equal = bool(len(bits) > 1 and (bits == bits[0]).all())
    tensors = {
        "indptr": weights.indptr,
        "indices": weights.indices.astype(np.uint16) if layer.n_out <= 65536 else weights.indices,
        "data": weights.data[:1] if equal else weights.data,
    }
    if layer.bias is not None:
        # A scalar bias is a view without strides; see Layer.
        tensors["bias"] = layer.bias[:1] if layer.bias.strides == (0,) else layer.bias
    info = {
        "shape": [layer.n_in, layer.n_out],
        "activation": layer.activation.to_spec(),
        "equal": equal,
        "bias": layer.bias is not None,
    }
    return {prefix + key: np.ascontiguousarray(value) for key, value in tensors.items()}, info


class _Writer:
    """The files of one save: temporary until all are complete."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem = folder, stem
        self._model = uuid4().hex
        self._shards: list[tuple[Path, dict[str, int]]] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for temporary, _sizes in self._shards:
            temporary.unlink(missing_ok=True)

    def shard(
        self, tensors: dict[str, NDArray[Any]], metadata: dict[str, str] | None = None
    ) -> None:
        """Write tensors to the next temporary file."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        temporary = beside(self._folder / f"{self._stem}{SUFFIX}")
        self._shards.append((temporary, {key: value.nbytes for key, value in tensors.items()}))
        with self._writing():
            mode = new_file_mode(temporary)
            try:
                save_file(tensors, temporary, metadata or FORMAT | {"model": self._model})
                temporary.chmod(mode)
            except SafetensorError as error:  # as it reports a full disk, for one
                raise FormatError(f"{self._target()}: cannot be written: {error}") from None

    def finish(self, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
        """Write what is left, give every file its name, and remove what the save replaces."""
        old = set(self._existing())
        if self._shards:
            self.shard(tensors)
            new = self._finish_shards(metadata | {"model": self._model})
        else:
            self.shard(tensors, metadata)
            new = [self._target()]
            with self._writing():
                self._shards[0][0].replace(new[0])
        with self._writing():
            for path in old - set(new):
                if _is_ours(path):
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


def _is_ours(path: Path) -> bool:
    """Tell whether a file is of this format: a new model removes no other program's files."""
    from teraedge.formats._native_reader import read_metadata

    try:
        return bool(read_metadata(path).get("format") == FORMAT["format"])
    except FormatError:
        return False
