"""``teraedge verify``: compare the engine's answer with the float64 reference."""

from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from teraedge.network import Network
    from teraedge.result import Result


def verify(
    model: ModelArgument,
    features: FeaturesArgument,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Compare only the first SAMPLES.")
    ] = 100,
    device: DeviceOption = "cpu",
    mode: ModeOption = Mode.c,
    precision: PrecisionOption = Precision.fp32,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the engine with the float64 reference.

    Prints the largest error and the bound it must keep to, which counts every rounding of a run of
    that precision. The exit status is 0 only where all errors are within their bounds.
    """
    import teraedge
    from teraedge import formats

    network = formats.load(model)
    given = formats.load_features(features, network.n_in)[:samples]
    with Stage("compiling") as compiling:
        options = mode.options(threads, precision)
        engine = teraedge.compile(watched(network, compiling), device, options)
    with engine, Stage("running and comparing"):
        findings = _compare(network, given, engine.run(given))
    if as_json:
        write_json({"model": str(model), "features": str(features), "mode": mode.value, **findings})
    else:
        _show(findings)
    if not findings["passed"]:
        raise typer.Exit(1)


def _compare(network: "Network", features: Any, result: "Result") -> dict[str, Any]:
    """Return the largest error, where it is, its bound, and what else differs."""
    import numpy as np

    from teraedge import reference

    expected = reference.run(network, features)
    bound = result.error_bound(network, features)
    errors = np.abs(result.outputs - expected.outputs)
    worst = np.unravel_index(np.argmax(errors), errors.shape) if errors.size else (0, 0)
    return {
        "passed": bool((errors <= bound).all()),  # false for NaN
        "samples": result.samples,
        "largest_error": float(errors[worst]) if errors.size else 0.0,
        "its_bound": float(bound[worst]) if errors.size else 0.0,
        "its_sample": int(worst[0]),
        "its_neuron": int(worst[1]),
        "its_value": float(expected.outputs[worst]) if errors.size else 0.0,
        "bound_tells": bool(bound.max(initial=0) < np.abs(expected.outputs).max(initial=0)),
        "beyond_bound": int((~(errors <= bound)).sum()),
        "other_labels": int((result.labels != expected.labels).sum()),
        "other_live": len(np.setxor1d(result.live, expected.live)),
        "exact": list(result.exact),
        "passes": result.passes,
        "rounding": list(result.rounding),
        "precision": result.precision,
    }


def _show(findings: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    place = "sample {its_sample}, neuron {its_neuron}, where the reference has {its_value:.6g}"
    table.add_row("samples", f"{findings['samples']:,}")
    table.add_row("largest error", f"{findings['largest_error']:.3g}")
    table.add_row("its bound", f"{findings['its_bound']:.3g}")
    table.add_row("its place", place.format(**findings))
    table.add_row("other labels", f"{findings['other_labels']:,}")
    table.add_row("other live ids", f"{findings['other_live']:,}")
    table.add_row("exact steps", ", ".join(findings["exact"]) or "none: everything executed")
    table.add_row("last bits", "; ".join(findings["rounding"]))
    out().print(table)
    if not findings["bound_tells"]:
        # Deep networks amplify a rounding error more than they can show.
        out().print("The bound is as wide as the values: look at the error itself.")
    if findings["passed"] and findings["precision"] != "fp32":
        line = "{other_live:,} ids differ and {other_labels:,} labels, with {precision}; all errors"
        out().print(f"{line.format(**findings)} are within its bounds")
    elif findings["passed"]:
        out().print("PASSED, all errors are within their bounds", style="bold green")
    else:
        line = f"FAILED, {findings['beyond_bound']:,} outputs are beyond their bounds"
        out().print(line, style="bold red")
