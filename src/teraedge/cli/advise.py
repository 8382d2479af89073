"""``teraedge advise``: what the sparsity of a model is worth on this device, measured."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teraedge.cli.console import out, write_json
from teraedge.cli.devices import check_device
from teraedge.cli.params import DeviceOption, JsonOption, ModelArgument
from teraedge.cli.progress import Stage
from teraedge.text import count, number
from teraedge.text import seconds as time_span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teraedge.advisor import Advice, Advised


class Target(StrEnum):
    """What is to be fast."""

    latency = "latency"
    throughput = "throughput"


def advise(
    model: ModelArgument,
    target: Annotated[
        Target,
        typer.Option("--target", help="latency: one sample at a time; throughput: many."),
    ] = Target.throughput,
    device: DeviceOption = "cpu",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="How long to measure, about.")
    ] = 45,
    as_json: JsonOption = False,
) -> None:
    """Measure what the sparsity of a model is worth on this device, layer by layer.

    Runs every layer, the same layer dense, and random edges of other densities and patterns; says
    how many times as fast as dense it is, below which density it gains, and what other patterns
    would bring.
    """
    from teraedge import formats
    from teraedge.advisor import advise as measure
    from teraedge.advisor import plot as plots

    check_device(device)
    if plot is not None:
        plots.check_plot(plot)
    network = formats.load(model)
    with Stage("measuring") as stage:
        advised = measure(
            network,
            device,
            target=target.value,
            budget=seconds,
            progress=stage,
        )
    if plot is not None:
        plots.plot(advised, plot, _title(model))
    if as_json:
        write_json({"model": str(model), **advised.to_json()})
        return
    _show(advised, _title(model))
    if plot is not None:
        out().print(f"drawn: {plot}")


def _title(model: Path) -> str:
    """Return the name of the file: networks of torch are all called Sequential."""
    return model.resolve().name


def _show(advised: "Advised", title: str) -> None:
    from teraedge.advisor.advice import BUSY, WORTH
    from teraedge.advisor.patterns import PATTERNS
    from teraedge.cli.info import plain_table

    side = "one sample" if advised.target == "latency" else f"up to {advised.samples:,} samples"
    out().print(title, style="bold")
    out().print(f"{advised.device}: {advised.hardware}; microseconds a sample, {side} at a time")
    table = plain_table()
    patterns = (name.removesuffix(" 16").removesuffix("-Net") for name in PATTERNS)
    for name in ("layers", "shape", "density", "dense", "now", "gain", "below", *patterns):
        table.add_column(name, justify="right", no_wrap=name != "layers", overflow="fold")
    for one in advised.advice:
        table.add_row(*_cells(one, tuple(PATTERNS)))
    out().print(table)
    for line in _notes(advised, WORTH, BUSY):
        out().print(line)


def _cells(one: "Advice", patterns: tuple[str, ...]) -> list[str]:
    from teraedge.advisor.advice import threshold

    dense = "-" if one.dense_seconds is None else number(1e6 * one.dense_seconds)
    gain = "-" if one.gain is None else f"{one.gain:.2f}"
    others = [
        f"{one.seconds / one.patterns[name][1]:.2f}" if name in one.patterns else "-"
        for name in patterns
    ]
    return [
        _numbers(one.layers),
        f"{one.n_in}x{one.n_out}",
        f"{one.density:.3g}" if one.density < 0.001 else f"{one.density:.2%}",
        dense,
        number(1e6 * one.seconds),
        gain,
        threshold(one),
        *others,
    ]


def _numbers(layers: list[int]) -> str:
    """Return layers as a person writes them, from 1: neighbours as a span."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer:
            spans[-1][1] = layer + 1
        else:
            spans.append([layer + 1, layer + 1])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _notes(advised: "Advised", worth: float, busy: float) -> "Iterator[str]":
    yield (
        "gain: times as fast as dense; below: the density of random edges from which down that "
        f"is {worth:g} or more, >= where it is at all that were tried; right: other patterns as "
        "dense as now, times as fast as now"
    )
    yield f"dense: {advised.dense_program}"
    yield f"times: the best run of {count(advised.rounds, 'round')} in which all took turns"
    if advised.spread > busy:
        yield (
            f"others are at work on this machine: half of the turns took {advised.spread:.1f} "
            "times as long as the best or more; repeat it when they are not"
        )
    known = [one for one in advised.advice if one.dense_seconds is not None]
    now = sum(one.seconds * len(one.layers) for one in known)
    dense = sum((one.dense_seconds or 0) * len(one.layers) for one in known)
    if known:
        yield (
            f"{count(sum(len(one.layers) for one in known), 'layer')} together: "
            f"{time_span(now)} a sample, dense {time_span(dense)}, {dense / now:.2f} x"
        )
    if advised.left_out:
        yield f"not measured, time was over: layers {_numbers(advised.left_out)}"
