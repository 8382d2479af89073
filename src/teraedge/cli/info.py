"""``teraedge info``: what is in a model file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teraedge.cli.console import out, write_json
from teraedge.cli.devices import check_device
from teraedge.cli.params import (
    DeviceOption,
    JsonOption,
    Mode,
    ModelArgument,
    ModeOption,
    Precision,
    PrecisionOption,
)
from teraedge.cli.progress import Stage, watched
from teraedge.text import count, scaled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.table import Table

    from teraedge.network import Layer, Network
    from teraedge.options import Options
    from teraedge.plan.explain import Explanation


@dataclass(frozen=True)
class Facts:
    """What the table says of a layer; equal facts of neighbours share a line."""

    n_in: int
    n_out: int
    edges: int
    dtype: str
    weights: str
    bias: str
    activation: str

    @property
    def density(self) -> float:
        """Share of the weights that are stored."""
        return self.edges / (self.n_in * self.n_out)


@dataclass
class Run:
    """Layers `first` to `last`, 1-based, of which all facts are equal."""

    first: int
    last: int
    facts: Facts

    @property
    def name(self) -> str:
        """The layers as a person writes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def edges(self) -> int:
        """Edges of all its layers."""
        return (self.last - self.first + 1) * self.facts.edges

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain values."""
        return {
            "first": self.first,
            "last": self.last,
            **vars(self.facts),
            "density": self.facts.density,
        }


def info(
    model: ModelArgument,
    plan: Annotated[
        bool, typer.Option("--plan", help="Compile, and show how each layer would run, and why.")
    ] = False,
    device: DeviceOption = "cpu",
    mode: ModeOption = Mode.c,
    precision: PrecisionOption = Precision.fp32,
    as_json: JsonOption = False,
) -> None:
    """Show the layers of a model and their weights, or, with --plan, how they would run.

    Layers are read one at a time, so a model may be larger than the memory.
    """
    from teraedge import formats

    network = formats.load(model)
    if plan:
        explanation = _explain(network, device, mode.options(None, precision))
        if as_json:
            write_json({"model": str(model), "mode": mode.value, **explanation.to_json()})
        else:
            _show_plan(explanation, f"{network.name or model.name}, mode {mode.value}")
        return
    with Stage("reading the layers") as stage:
        runs = list(_runs(network, stage))
    if as_json:
        write_json(_to_json(network, model, runs))
    else:
        _show(network, model, runs)


def _explain(network: "Network", device: str, options: "Options") -> "Explanation":
    """Compile the network and explain the plan."""
    import teraedge

    check_device(device)
    with Stage("compiling") as compiling:
        engine = teraedge.compile(watched(network, compiling), device, options)
    with engine:
        return engine.explain()


def _show_plan(explanation: "Explanation", title: str) -> None:
    header, cells, notes = explanation.table(out().width)
    table = plain_table()
    for name in header:
        left = name in explanation.texts
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in cells:
        table.add_row(*row)
    out().print(title, style="bold")
    out().print(explanation.title)
    out().print(table)
    for line in (*notes, explanation.summary):
        out().print(line)


def _runs(network: "Network", stage: Stage) -> Iterator[Run]:
    """Group neighbours that have equal facts."""
    current: Run | None = None
    for index, layer in enumerate(network, start=1):
        facts = _facts(layer)
        stage(index / len(network))
        if current is not None and current.facts == facts:
            current.last = index
            continue
        if current is not None:
            yield current
        current = Run(index, index, facts)
    if current is not None:
        yield current


def _facts(layer: "Layer") -> Facts:
    return Facts(
        layer.n_in,
        layer.n_out,
        layer.edges,
        str(layer.weights.dtype),
        _span(layer.weights.data),
        "none" if layer.bias is None else _span(layer.bias),
        _activation(layer),
    )


def _activation(layer: "Layer") -> str:
    """Return the activation and its parameters, without their names."""
    spec = layer.activation.to_spec()
    values = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in spec.items()
        if key != "name"
    ]
    return type(layer.activation).__name__ + (f"({', '.join(values)})" if values else "")


def _span(values: "NDArray[Any]") -> str:
    """Summarise values: one, or the smallest and the largest."""
    if not values.size:
        return "none"
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.3g}..{high:.3g}"


def _to_json(network: "Network", model: "Path", runs: list[Run]) -> dict[str, Any]:
    return {
        "model": str(model),
        "name": network.name,
        "head": network.head,
        "notes": list(network.notes),
        "n_in": runs[0].facts.n_in,
        "n_out": runs[-1].facts.n_out,
        "layers": runs[-1].last,
        "edges": sum(run.edges for run in runs),
        "bytes": _bytes(model),
        "runs": [run.to_json() for run in runs],
    }


def _bytes(model: "Path") -> int:
    """Return the size of a file, or of all files of a folder."""
    files = model.rglob("*") if model.is_dir() else [model]
    return sum(file.stat().st_size for file in files if file.is_file())


def _show(network: "Network", model: "Path", runs: list[Run]) -> None:
    table = _table(network.name or model.name)
    for run in runs:
        facts = run.facts
        table.add_row(
            run.name,
            f"{facts.n_in} x {facts.n_out}",
            f"{facts.edges:,}",
            f"{facts.density:.3g}" if facts.density < 0.001 else f"{facts.density:.2%}",
            facts.weights,
            facts.bias,
            facts.activation,
        )
    out().print(table)
    edges = sum(run.edges for run in runs)
    size = scaled(_bytes(model), "B")
    ends = f"{runs[0].facts.n_in} -> {runs[-1].facts.n_out}"
    kinds = " and ".join(sorted({run.facts.dtype for run in runs}))
    line = f"{count(runs[-1].last, 'layer')}, {ends}, {count(edges, 'edge')} in {kinds}"
    out().print(f"{line}, {size} on disk", soft_wrap=True)
    if network.head is not None:
        out().print(f"{network.head} at the end")
    for note in network.notes:
        out().print(note, soft_wrap=True)


def _table(title: str) -> "Table":
    table = plain_table(title)
    for name in ("layers", "shape", "edges", "density"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("weights", "bias"):
        table.add_column(name, no_wrap=True)
    table.add_column("activation", overflow="fold")
    return table


def plain_table(title: str | None = None) -> "Table":
    """Return an empty table as all commands show them."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # narrow, so that most models fit 80 columns
    )
