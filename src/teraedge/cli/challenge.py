"""``teraedge challenge``: run an official Graph Challenge network and check the answer."""

from typing import TYPE_CHECKING

import typer

from teraedge.cli.console import out, write_json
from teraedge.cli.params import (
    DeviceOption,
    JsonOption,
    LayersOption,
    Mode,
    ModeOption,
    NeuronsOption,
    Precision,
    PrecisionOption,
    SamplesOption,
    ThreadsOption,
)
from teraedge.cli.progress import Stage, watched
from teraedge.text import count

if TYPE_CHECKING:
    from teraedge.cli.report import Report
    from teraedge.cli.verdict import Verdict
    from teraedge.options import Options


def challenge(
    neurons: NeuronsOption = 1024,
    layers: LayersOption = 120,
    device: DeviceOption = "cpu",
    mode: ModeOption = Mode.c,
    precision: PrecisionOption = Precision.fp32,
    samples: SamplesOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an official Graph Challenge network and check it.

    The ids of the live samples are compared with the official categories, and the exit status is
    0 only where they are the same and sums and activations are fp32: a run that stores less says
    how many ids differ.
    """
    from teraedge.bench.machine import provenance

    report, verdict = _run(neurons, layers, device, mode.options(threads, precision), mode, samples)
    if as_json:
        fields = {**report.row(), "passed": verdict.passed, "verdict": verdict.to_json()}
        write_json({**fields, **provenance()})
    else:
        _show(report, verdict)
    if not verdict.passed:
        raise typer.Exit(1)


def _run(
    neurons: int, layers: int, device: str, options: "Options", mode: Mode, samples: int | None
) -> "tuple[Report, Verdict]":
    """Read, compile, run, verify."""
    import teraedge
    from teraedge.bench import machine
    from teraedge.cli.devices import check_device
    from teraedge.cli.report import Report
    from teraedge.cli.verdict import verify
    from teraedge.datasets import challenge as official

    network = official.network(neurons, layers)
    check_device(device)
    with Stage("reading the images") as data:
        features = official.features(neurons, samples, progress=data)
    with Stage("compiling") as compiling:
        engine = teraedge.compile(watched(network, compiling), device, options)
    with engine:
        with Stage("running") as running:
            result = engine.run(features, progress=running)
        peak_memory = machine.peak_memory_bytes()
        with Stage("checking the answer"):
            verdict = verify(result, network, features)
    report = Report(
        network=f"{neurons}-{layers}",
        layers=layers,
        edges=network.edges,
        device=device,
        hardware=engine.hardware,
        mode=mode.value,
        options=options,
        result=result,
        data_seconds=data.seconds,
        compile_seconds=engine.compile_seconds,
        peak_memory=peak_memory,
    )
    return report, verdict


def _show(report: "Report", verdict: "Verdict") -> None:
    samples = count(report.result.samples, "sample")
    title = f"Graph Challenge {report.network}, {samples}, mode {report.mode}"
    truth = verdict.truth
    if not verdict.official:
        truth += f", as {count(report.layers, 'layer')} have no official answer"
    out().print(report.table(title, ("checked by", truth)))
    # Last and alone, for people and for scripts that look at the end of the output.
    out().print(str(verdict), style="bold green" if verdict.passed else "bold red", soft_wrap=True)
