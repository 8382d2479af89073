"""``teraedge run``: run a model over features and write the answer."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teraedge.cli.console import out, write_json
from teraedge.cli.params import (
    DeviceOption,
    FeaturesArgument,
    JsonOption,
    Mode,
    ModelArgument,
    ModeOption,
    Precision,
    PrecisionOption,
    ThreadsOption,
)
from teraedge.cli.progress import Stage, watched
from teraedge.text import count

if TYPE_CHECKING:
    from teraedge.cli.report import Report
    from teraedge.options import Options


def run(
    model: ModelArgument,
    features: FeaturesArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The answer: .npy of all outputs, .npz of the live ones, .tsv of live ids.",
            show_default=False,
        ),
    ],
    device: DeviceOption = "cpu",
    mode: ModeOption = Mode.c,
    precision: PrecisionOption = Precision.fp32,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model over features and write the answer.

    OUT appears, or is replaced, only once all of it is written.
    """
    from teraedge.bench.machine import provenance

    report = _run(model, features, output, device, mode, mode.options(threads, precision))
    if as_json:
        write_json({**report.row(), "output": str(output), **provenance()})
    else:
        samples = count(report.result.samples, "sample")
        out().print(report.table(f"{report.network}, {samples}, mode {report.mode}"))
        out().print(f"{output}: {count(len(report.result.live), 'live sample')}", soft_wrap=True)


def _run(
    model: Path, samples: Path, output: Path, device: str, mode: Mode, options: "Options"
) -> "Report":
    """Load, compile, run, write."""
    import teraedge
    from teraedge import formats
    from teraedge.bench import machine
    from teraedge.cli.devices import check_device
    from teraedge.cli.report import Report

    _check_output(output)
    network = formats.load(model)
    check_device(device)
    with Stage("reading the features") as data:
        features = formats.load_features(samples, network.n_in)
    with Stage("compiling") as compiling:
        engine = teraedge.compile(watched(network, compiling), device, options)
    with engine:
        with Stage("running") as running:
            result = engine.run(features, progress=running)
        peak_memory = machine.peak_memory_bytes()
        with Stage("writing the answer"):
            formats.save_result(result, output)
    return Report(
        network=network.name or model.name,
        layers=len(network),
        edges=engine.edges,
        device=device,
        hardware=engine.hardware,
        mode=mode.value,
        options=options,
        result=result,
        data_seconds=data.seconds,
        compile_seconds=engine.compile_seconds,
        peak_memory=peak_memory,
    )


def _check_output(output: Path) -> None:
    """Refuse before the run what could not be written after it."""
    from teraedge import formats
    from teraedge.errors import FormatError

    formats.check_result_suffix(output)
    if output.is_dir():
        raise FormatError(f"{output} is a folder; give a file name")
    if not output.parent.is_dir():
        raise FormatError(f"{output}: the folder {output.parent} does not exist; make it first")
    if not os.access(output.parent, os.W_OK):
        raise FormatError(f"{output}: no permission to write to the folder {output.parent}")
