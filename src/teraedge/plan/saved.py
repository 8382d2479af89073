"""Saved plans: what an engine compiled, in safetensors files that are mapped when loaded.

===========================  ===================================================================
tensor                       what
===========================  ===================================================================
``layers.<i>.<name>``        an array of the i-th layer that runs, as the engine packs it; arrays
                             without entries are left out
===========================  ===================================================================

Metadata, all strings: ``format`` "teraedge-plan", ``format_version`` "1", ``teraedge`` (the
version of the package), ``engine`` (JSON: the device, and whatever else decides how its kernels
read a layer), ``options`` (JSON), ``network`` (JSON: what `Plan` says of the network, with its
fingerprint), and ``layers``: a JSON list with an object a layer. Files are split into shards and
found as those of models are; see `teraedge.formats.native`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from teraedge import __version__
from teraedge.errors import FormatError
from teraedge.formats._shards import File, Writer, check_format, open_files
from teraedge.formats._spec import read_json
from teraedge.head import check_head
from teraedge.options import Options
from teraedge.plan.choice import Choice, Part
from teraedge.plan.cost import Limit
from teraedge.plan.plan import LaidOut, Plan

FORMAT = {"format": "teraedge-plan", "format_version": "1"}
SHARD = 512_000_000
"""Bytes of tensors in a file, and in memory while a plan is saved."""

L = TypeVar("L", bound=LaidOut)
Arrays = Mapping[str, NDArray[Any]]


def save_plan(
    path: str | Path,
    plan: Plan[L],
    options: Options,
    engine: Mapping[str, Any],
    pack: Callable[[L], tuple[dict[str, NDArray[Any]], dict[str, Any]]],
    shard_size: int = SHARD,
) -> None:
    """Write a plan; layers that do not stay in memory are made again, one at a time.

    Parameters
    ----------
    path : path
        ``*.safetensors``.
    plan : Plan
    options : Options
    engine : mapping
        ``device``, and what else must be the same where the plan is loaded.
    pack : callable
        Returns the arrays of a layer and plain values, from which it can be made again.
    shard_size : int
        Bytes of tensors in a file, and about what is held in memory.

    Raises
    ------
    FormatError
        If the file cannot be written.
    """
    layers = []
    with Writer(Path(path), FORMAT, shard_size) as writer:
        for index, (layer, part) in enumerate(zip(plan.layers(), plan.parts, strict=True)):
            arrays, values = pack(layer)
            full = {name: array for name, array in arrays.items() if array.size}
            writer.add({f"layers.{index}.{name}": array for name, array in full.items()})
            layers.append({"part": [*part[:-1], asdict(part.choice)], "values": values})
        writer.finish(
            {
                "teraedge": __version__,
                "engine": json.dumps(dict(engine)),
                "options": json.dumps(asdict(options)),
                "network": json.dumps(_network(plan)),
                "layers": json.dumps(layers),
            }
        )


def _network(plan: Plan[Any]) -> dict[str, Any]:
    return {
        "n_in": plan.n_in,
        "n_out": plan.n_out,
        "head": plan.head,
        "fingerprint": plan.fingerprint,
        "edges": plan.edges_given,
        "droppable": plan.droppable.tolist(),
        "saved": dict(plan.saved),
    }


@dataclass(frozen=True)
class SavedPlan:
    """A plan in files, of which no layer has been read yet; made by `open_plan`.

    Attributes
    ----------
    path : Path
    device : str
        Of the engine that saved it.
    options : Options
    engine : dict
        What must be the same where the plan is loaded.
    network : dict
        What `Plan` says of the network.
    parts, values : list
        Of each layer that runs: what is remembered of it, and plain values to make it from.
    tensors : dict of str to File
    """

    path: Path
    device: str
    options: Options
    engine: dict[str, Any]
    network: dict[str, Any]
    parts: list[Part]
    values: list[dict[str, Any]]
    tensors: dict[str, File]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the network it was compiled from."""
        return str(self.network["fingerprint"])

    def check_engine(self, expected: Mapping[str, Any]) -> None:
        """Refuse a plan for other kernels than those that are here.

        Raises
        ------
        FormatError
            With what differs.
        """
        for name, value in expected.items():
            if (given := self.engine.get(name)) != value:
                raise FormatError(
                    f"{self.path}: was compiled for {name} {ascii(given)[:40]} and this machine "
                    f"has {value!r}; compile the network here and save it again"
                )

    def arrays(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a layer, mapped."""
        prefix = f"layers.{index}."
        names = self.values[index]["names"]
        try:
            return {name: self.tensors[prefix + name].map(prefix + name) for name in names}
        except KeyError as error:
            raise FormatError(
                f"{self.path}: the tensor {error} is missing or of a dtype that plans do not have"
            ) from None


def open_plan(path: str | Path) -> SavedPlan:
    """Open a saved plan and check everything but its layers.

    Raises
    ------
    FormatError
        If a file is missing, malformed, of another format, or of another teraedge.
    """
    path, metadata, tensors = open_files(Path(path))
    check_format(metadata, FORMAT, path)
    version = metadata.get("teraedge")
    if version != __version__:
        raise FormatError(
            f"{path}: was compiled by teraedge {ascii(version)[:40]} and this is {__version__!r}; "
            "compile the network again and save it"
        )
    engine, options, network = (
        read_json(metadata.get(name, ""), f"{path}: {name}")
        for name in ("engine", "options", "network")
    )
    layers = read_json(metadata.get("layers", ""), f"{path}: layers", list)
    names: list[list[str]] = [[] for _ in layers]
    try:
        for tensor in tensors:
            _, index, name = tensor.split(".", 2)
            names[int(index)].append(name)
        parts = [_part(layer["part"]) for layer in layers]
        values = [
            {**layer["values"], "names": found} for layer, found in zip(layers, names, strict=True)
        ]
        _check_network(network, parts)
        return SavedPlan(
            path=path,
            device=str(engine["device"]),
            options=Options(**options),
            engine=engine,
            network=network,
            parts=parts,
            values=values,
            tensors=tensors,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: the metadata is not that of a plan: {error!r:.200}") from None


def _part(values: Any) -> Part:
    """Return what `Part` became in JSON."""
    *numbers, choice = values
    origin, n_in, n_out, edges, nbytes = map(int, numbers)
    if min(origin, edges, nbytes) < 0 or min(n_in, n_out) < 1:
        raise ValueError("a layer has sizes below 0")
    limit = choice["limit"] and Limit(str(choice["limit"][0]), float(choice["limit"][1]))
    return Part(origin, n_in, n_out, edges, nbytes, Choice(**{**choice, "limit": limit}))


def _check_network(network: dict[str, Any], parts: list[Part]) -> None:
    """Refuse layers that do not form a chain from the network's inputs to its outputs."""
    origins = sorted({part.origin for part in parts})
    ends = [network["n_in"], *(part.n_out for part in parts)]
    if not parts or ends[:-1] != [part.n_in for part in parts] or ends[-1] != network["n_out"]:
        raise ValueError("the layers do not form a chain")
    if origins != list(range(len(network["edges"]))):
        raise ValueError("the layers are not those of the network")
    if [part.origin for part in parts] != sorted(part.origin for part in parts):
        raise ValueError("the layers are out of order")
    if len(network["droppable"]) != len(parts) + 1:
        raise ValueError("droppable does not fit the layers")
    check_head(network["head"])
    for name, kind, values in (
        ("edges", int, network["edges"]),
        ("saved", int, network["saved"].values()),
        ("droppable", bool, network["droppable"]),
        ("fingerprint", str, [network["fingerprint"]]),
    ):
        if not all(type(value) is kind for value in values):
            raise ValueError(f"{name} must be of type {kind.__name__}")


class LoadedPlan(Plan[L]):
    """A plan from files: a `Plan` that needs no network.

    Parameters
    ----------
    saved : SavedPlan
    memory : int
        Bytes for layers that are in use at a time.
    unpack : callable
        Makes a layer from what `save_plan`'s `pack` gave: its part, arrays, and plain values.
        Raises FormatError if they are not valid.
    """

    def __init__(
        self,
        saved: SavedPlan,
        memory: int,
        unpack: Callable[[Part, Arrays, Mapping[str, Any]], L],
    ) -> None:
        network = saved.network
        self._saved, self._unpack = saved, unpack
        self.n_in, self.n_out, self.head = network["n_in"], network["n_out"], network["head"]
        self.edges_given = network["edges"]
        self.edges = sum(self.edges_given)
        self.fingerprint = saved.fingerprint
        self.parts = saved.parts
        self.origin = [part.origin for part in self.parts]
        self.width = max(self.n_in, *(part.n_out for part in self.parts))
        self.droppable = np.array(network["droppable"], np.bool_)
        self.saved = Counter(network["saved"])
        self.curved = any(values.get("curve") for values in saved.values)
        sizes = np.array([part.nbytes for part in self.parts])
        held = np.cumsum(sizes)
        # Where not all fits, the rest needs room to come several at a time.
        fitting = held <= (memory if held[-1] <= memory else memory * 3 // 4)
        self.resident = [self._layer(index) for index in range(int(fitting.sum()))]
        rest = sizes[len(self.resident) :]
        self.streamed_bytes = int(rest.sum())
        self.room = max(memory - int(sizes.sum()) + self.streamed_bytes, int(rest.max(initial=0)))

    def _later(self) -> Iterator[L]:
        for index in range(len(self.resident), len(self.parts)):
            yield self._layer(index)

    def _layer(self, index: int) -> L:
        saved, part = self._saved, self.parts[index]
        try:
            layer = self._unpack(part, saved.arrays(index), saved.values[index])
        except FormatError as error:
            raise FormatError(f"{saved.path}: layer {index} that runs: {error}") from None
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(
                f"{saved.path}: layer {index} that runs is not valid: {error!r:.200}"
            ) from None
        if layer.nbytes != part.nbytes:
            raise FormatError(
                f"{saved.path}: layer {index} that runs has {layer.nbytes} bytes and must have "
                f"{part.nbytes}"
            )
        return layer
