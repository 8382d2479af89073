"""The native model file: safetensors with one-dimensional tensors, read through mmap.

===========================  ======================  ==============================================
tensor                       dtype                   size
===========================  ======================  ==============================================
``layers.<i>.indptr``        int32 or int64          n_in + 1
``layers.<i>.indices``       uint16 where it fits    edges; ascending in every row
                             (n_out <= 65536), else
                             int32 or int64
``layers.<i>.data``          float32 or float64, or  edges, or 1 where the metadata says "equal"
                             two bytes, see below
``layers.<i>.bias``          float32 or float64      n_out, or 1 for a scalar; absent for none
===========================  ======================  ==============================================

Weights that are float32 and all of them numbers of float16, or of bfloat16, are stored in two
bytes: as float16, or as uint16, the upper halves of float32. They come back as they were.

Layers count from 0. Metadata, all strings: ``format`` "teraedge", ``format_version`` "1", ``name``
and ``head`` (absent for none), and ``layers``, a JSON list with an object a layer: ``shape`` [n_in,
n_out], ``activation`` (name and parameters), ``equal`` (true: all weights are equal and stored
once), and ``bias`` (true: it has one).

A model above the shard size is several files ``<name>-00001-of-00003.safetensors`` and an index
``<name>.safetensors.index.json``, as Hugging Face has it: ``metadata`` is the above, ``weight_map``
gives the file of each tensor. ``model``, an id of that save, stands in the index and every shard.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.formats._shards import Writer
from teraedge.network import Layer, Network
from teraedge.options import parse_bytes

FORMAT = {"format": "teraedge", "format_version": "1"}


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
    named = {"name": network.name, "head": network.head}
    about = []
    with Writer(Path(path), FORMAT, parse_bytes(shard_size)) as writer:
        for index, layer in enumerate(network):
            tensors, info = _pack(layer, f"layers.{index}.")
            writer.add(tensors)
            about.append(info)
        writer.finish(
            {key: value for key, value in named.items() if value is not None}
            | {"layers": json.dumps(about)}
        )


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """Return float32 values in two bytes each, where none of them needs more."""
    if values.dtype != np.float32:
        return values
    bits = values.view(np.uint32)
    if not (bits & 0xFFFF).any():
        return (bits >> 16).astype(np.uint16)
    if (bits & 0xFFF).any():  # more than the ten bits after the point
        return values
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    return half if (half.astype(np.float32).view(np.uint32) == bits).all() else values


def _pack(layer: Layer, prefix: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors of a layer and what the metadata says of it."""
    weights = layer.weights
    bits = weights.data.view(f"u{weights.data.itemsize}")
    equal = bool(len(bits) > 1 and (bits == bits[0]).all())
    tensors = {
        "indptr": weights.indptr,
        "indices": weights.indices.astype(np.uint16) if layer.n_out <= 65536 else weights.indices,
        "data": _narrow(weights.data[:1] if equal else weights.data),
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
