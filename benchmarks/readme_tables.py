"""Write the README's tables from the result files, and from nothing else.

    python benchmarks/readme_tables.py

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``. Tables of GPUs bring
their text with them, and are empty while there is no result file.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def latest(pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest result file of each name that fits, oldest network first."""
    newest = {path.name[11:]: path for path in sorted(RESULTS.glob(pattern))}
    return [(path, json.loads(path.read_text())) for path in newest.values()]


def quantity(value: float, unit: str) -> str:
    """Return a value with three digits and a metric prefix."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def span(seconds: float) -> str:
    """Return seconds or milliseconds with three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def challenge_cpu() -> str:
    """One row a network: both modes, with rates and what the process needed."""
    lines = [
        "| network | mode B: dead samples dropped | mode C: everything exact "
        "| compile (C) | peak memory | CPU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    files = sorted(latest("*-cpu-challenge-*.json"), key=lambda item: _edges(item[1]))
    for _, record in files:
        ours = {row["mode"]: row for row in record["rows"] if "rival" not in row}
        assert all(row["passed"] for row in ours.values())
        cells = [record["rows"][0]["network"]]
        cells += [_rates(ours.get(mode)) for mode in "bc"]
        cells.append(span(ours["c"]["compile_seconds"]))
        cells.append(quantity(max(row["peak_memory_bytes"] for row in ours.values()), "B"))
        cells.append(record["machine"]["cpu"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(files)])


def _rates(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    return (
        f"{span(row['seconds']['median'])}, {quantity(row['nominal_edges_per_s'], 'E/s')} nominal, "
        f"{quantity(row['executed_edges_per_s'], 'E/s')} executed"
    )


def rivals_cpu() -> str:
    """Mode B beside the rivals, in one process; ratios to teraedge in mode B."""
    (path, record) = next(item for item in latest("*-cpu-challenge-1024.json"))
    rows = [row for row in record["rows"] if row["mode"] == "b"]
    ours = next(row for row in rows if "rival" not in row)["seconds"]["median"]
    lines = ["| 1024-120, mode B | seconds | teraedge is faster by |", "| --- | --- | --- |"]
    for row in rows:
        seconds = row["seconds"]["median"]
        label = row["label"].removesuffix(", mode b")
        ratio = f"{seconds / ours:.3g} times" if "rival" in row else ""
        lines.append(f"| {label} | {seconds:.3g} | {ratio} |")
    return "\n".join([*lines, "", _source([(path, record)])])


def _edges(record: dict[str, Any]) -> float:
    row = record["rows"][0]
    return float(row["nominal_edges_per_s"] * row["seconds"]["median"])


def _source(files: list[tuple[Path, dict[str, Any]]]) -> str:
    """Say where and how the figures of a table were measured, a sentence a machine."""
    by_machine: dict[str, list[Path]] = {}
    for path, record in files:
        row = record["rows"][0]
        machine = (
            f"{record['machine']['cpu']}, {row['threads']} threads, {row['precision']}, "
            f"{row['samples']:,} samples"
        )
        by_machine.setdefault(machine, []).append(path)
    places = [
        f"{machine}: {', '.join(f'`{path.name}`' for path in paths)}."
        for machine, paths in by_machine.items()
    ]
    return "Medians of the repetitions; ids equal to the official ones in every run. " + " ".join(
        places
    )


def challenge_cuda() -> str:
    """Return one table a GPU: the official networks, both modes."""
    parts = []
    for device, files in _gpus("*-cuda-challenge*.json"):
        rows = _rows(files, device, lambda row: (row["network"], row["mode"]))
        assert all(row["passed"] for row in rows.values())
        names = sorted(
            {name for name, mode in rows if mode in "bc"},
            key=lambda name: [int(part) for part in name.split("-")],
        )
        modes = [mode for mode in "bc" if any(key[1] == mode for key in rows)]
        heads = {"b": "mode B: dead samples dropped", "c": "mode C: everything exact"}
        lines = [
            f"The official networks on one {device}, packed 0/1 inputs on the device already, ids "
            "on the host at the end:",
            "",
            f"| network | {' | '.join(heads[mode] for mode in modes)} | compile | device memory |",
            f"| --- |{' --- |' * (len(modes) + 2)}",
        ]
        for name in names:
            found = [rows.get((name, mode)) for mode in modes]
            there = [row for row in found if row is not None]
            cells = [name, *map(_challenge_cell, found)]
            cells.append(span(there[-1]["compile_seconds"]))
            cells.append(quantity(max(row["device_memory_bytes"] for row in there), "B"))
            lines.append(f"| {' | '.join(cells)} |")
        some = next(iter(rows.values()))
        lines += ["", _gpu_source(files, some) + "; ids equal to the official ones in every run."]
        if any(row["features"] == "host" for row in rows.values()):
            lines[-1] += " Where a time has a star, inputs came from host memory."
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _challenge_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    star = "*" if row["features"] == "host" else ""
    share = row["share_of_limit"]
    limit = "" if share is None else f" ({share:.0%} of the {row['limit']} limit)"
    return (
        f"{span(row['seconds']['median'])}{star}, "
        f"{quantity(row['nominal_edges_per_s'], 'E/s')} nominal, "
        f"{quantity(row['executed_edges_per_s'], 'E/s')} executed{limit}"
    )


SPARSE_RIVALS = {
    "torch CSR": ("torch CSR", "torch CSR addmm"),
    "cuSPARSE": ("cuSPARSE", "CuPy spmm"),
}
"""Columns, and what each takes the better of."""


def general_cuda() -> str:
    """Return a table for each GPU and precision: mode A beside the rivals, in executed TE/s."""
    parts = []
    for device, files in _gpus("*-cuda-general*.json"):
        for precision in dict.fromkeys(item[1]["rows"][0]["precision"] for item in files):
            own = [item for item in files if item[1]["rows"][0]["precision"] == precision]
            if own:
                parts.append("\n".join(_general_table(device, own, precision)))
    return "\n\n".join(parts)


def _general_table(
    device: str, files: list[tuple[Path, dict[str, Any]]], precision: str
) -> list[str]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, record in files:  # a network's rows stay together: of one process
        here = {(row["network"], row["label"]): row for row in record["rows"]}
        new = {name for name, label in here if label == "teraedge"}
        rows = {key: row for key, row in rows.items() if key[0] not in new}
        rows |= {key: row for key, row in here.items() if key[0] in new}
    rivals = {
        column: labels
        for column, labels in SPARSE_RIVALS.items()
        if any(label in labels for _, label in rows)
    }
    weights = "" if precision == "fp32" else f" that are {precision} for everyone"
    lines = [
        f"Mode A on one {device}, executed TE/s: random weights{weights}, all samples live, "
        f"nothing rewritten, {precision}, everything on the device already; of each rival its best "
        "variant:",
        "",
        "| network, neurons a layer | inputs a neuron | samples | teraedge | of the limit "
        f"| {' | '.join(rivals)} | torch dense | to the best sparse rival |",
        "| --- " * (7 + len(rivals)) + "|",
    ]
    mine = [row for (_, label), row in rows.items() if label == "teraedge"]
    for row in sorted(mine, key=_general_order):
        times = {label: other["seconds"]["median"] for (name, label), other in rows.items()
                 if name == row["network"]}  # fmt: skip
        lines.append(f"| {' | '.join(_general_cells(row, times, rivals))} |")
    versions = files[-1][1]["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "cupy") if name in versions)
    note = f"; {used}" if used else ""
    lines += [
        "",
        f"{_gpu_source(files, precision=precision)}{note}; one process, answers compared with "
        "float64 first. Of a dense product only the network's own edges count.",
    ]
    return lines


def _general_cells(
    row: dict[str, Any], times: dict[str, float], rivals: dict[str, tuple[str, ...]]
) -> list[str]:
    edges = row["executed_edges_per_s"] * row["seconds"]["median"]
    best = [
        min((times[label] for label in labels if label in times), default=None)
        for labels in rivals.values()
    ]
    sparse = [seconds for seconds in best if seconds is not None]
    # Layers that run all edges on tensor cores, zeros too, are not bound by gathering.
    share = f"{row['share_of_limit']:.0%} ({row['limit']})" if row["share_of_limit"] <= 1 else ""
    kind = row["network"].partition("-")[0]
    kind += ", groups of 16" if row["network"].endswith("width-16") else ""
    return [
        f"{kind}, {row['neurons']}",
        f"{row['fan_in']}",
        f"{row['samples']:,}",
        _rate(edges, row["seconds"]["median"]),
        share,
        *(_rate(edges, seconds) for seconds in best),
        _rate(edges, times.get("torch dense")),
        f"{min(sparse) / row['seconds']['median']:.2f} times" if sparse else "",
    ]


def _general_order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"].partition("-")[0] == "radixnet", row["neurons"], row["fan_in"]


def _rate(edges: float, seconds: float | None) -> str:
    return "" if seconds is None else f"{edges / seconds / 1e12:.3g}"


def stream_cuda() -> str:
    """Return a sentence a GPU: weights that do not fit."""
    parts = []
    for device, files in _gpus("*-cuda-stream*.json"):
        rows = _rows(files[-1:], device, lambda row: row["label"])
        if not {"resident", "streamed"} <= set(rows):
            continue
        resident, streamed = rows["resident"], rows["streamed"]
        ratio = streamed["seconds"]["median"] / resident["seconds"]["median"]
        text = (
            f"Weights beyond GPU memory on one {device}: a random network of "
            f"{quantity(streamed['streamed_bytes'], 'B')} of streamed layers and "
            f"{streamed['samples']:,} samples takes {ratio:.2f} times as long as with all layers "
            "resident, with the same answer"
        )
        if (few := rows.get("streamed, few samples")) is not None:
            text += (
                f"; where copies bound the run ({few['samples']} samples), layers arrive at "
                f"{quantity(few['streamed_bytes_per_s'], 'B/s')}"
            )
        parts.append(f"{text}.\n\n{_gpu_source(files[-1:])}.")
    return "\n\n".join(parts)


def _gpus(pattern: str) -> Iterator[tuple[str, list[tuple[Path, dict[str, Any]]]]]:
    """Give each GPU's name with the files that measured it, the newest last."""
    files = sorted(latest(pattern), key=lambda item: item[1]["date"])
    files = [item for item in files if item[1]["rows"]]
    for device in dict.fromkeys(item[1]["machine"]["device"] for item in files):
        yield device, [item for item in files if item[1]["machine"]["device"] == device]


def _rows(
    files: list[tuple[Path, dict[str, Any]]], device: str, key: Callable[[dict[str, Any]], Any]
) -> dict[Any, dict[str, Any]]:
    """Return the newest row for each key."""
    rows = (row for _, record in files for row in record["rows"])
    return {key(row): row for row in rows if row["device"] == device}


def _gpu_source(
    files: list[tuple[Path, dict[str, Any]]],
    row: dict[str, Any] | None = None,
    precision: str = "fp32",
) -> str:
    """Say where and how the figures of a GPU's table were measured."""
    names = ", ".join(f"`{path.name}`" for path, _ in files)
    samples = "" if row is None else f"{row['samples']:,} samples, "
    machine = files[-1][1]["machine"]
    return (
        f"{machine['device']}, driver {machine['driver']}, {precision}, {samples}median of the "
        f"repetitions in {names}"
    )


def mnist_cpu() -> str:
    """Return the trained models of the MNIST example: what they are, and how many times as fast."""
    ((path, record),) = latest("*-cpu-mnist.json")
    batches = sorted({row["samples"] for row in record["rows"]})
    heads = [f"{batch:,} image{'s' * (batch > 1)}" for batch in batches]
    lines = [
        f"| model | weights left | accuracy | file (dense) | {' | '.join(heads)} |",
        "| --- " * (4 + len(batches)) + "|",
    ]
    for facts in record["models"]:
        cells = [facts["model"], f"{facts['density']:.2%}", f"{facts['accuracy']:.2%}"]
        cells.append(f"{facts['bytes'] / 1e6:.3g} MB ({facts['dense_bytes'] / 1e6:.3g})")
        for batch in batches:
            seconds = {
                row["label"]: row["seconds"]["median"]
                for row in record["rows"]
                if (row["network"], row["samples"]) == (f"mnist-{facts['model']}", batch)
            }
            ours = seconds.pop("teraedge")
            best = min(seconds, key=lambda label: seconds[label])
            time = f"{1e6 * ours:.3g} us" if ours < 1e-3 else span(ours)
            cells.append(f"{time}, {seconds[best] / ours:.3g} x {best}")
        lines.append(f"| {' | '.join(cells)} |")
    error = max(facts["largest_logit_error"] for facts in record["models"])
    row = record["rows"][0]
    source = (
        f"Times of the best of torch dense, torch CSR and onnxruntime dense in the same process, "
        f"medians. Predictions equal torch's on all test images, logits to {error:.1e}. A file "
        "keeps an index of two bytes beside every weight, whatever the density. "
        f"{record['machine']['cpu']}, {row['threads']} threads, other work on them: `{path.name}`."
    )
    return "\n".join([*lines, "", source])


TABLES = {
    "mnist-cpu": mnist_cpu,
    "challenge-cpu": challenge_cpu,
    "rivals-cpu": rivals_cpu,
    "challenge-cuda": challenge_cuda,
    "general-cuda": general_cuda,
    "stream-cuda": stream_cuda,
}


def with_tables(text: str) -> str:
    """Return the README's text with its tables made anew."""

    def made(match: re.Match[str]) -> str:
        table = TABLES[match[2]]()
        return f"{match[1]}{table}\n{match[3]}" if table else match[1] + match[3]

    return re.sub(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))
