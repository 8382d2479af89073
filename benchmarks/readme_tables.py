"""Write the README's tables from the result files, and from nothing else.

    python benchmarks/readme_tables.py

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import json
import re
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
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
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


TABLES = {"challenge-cpu": challenge_cpu, "rivals-cpu": rivals_cpu}


def with_tables(text: str) -> str:
    """Return the README's text with its tables made anew."""
    return re.sub(
        r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text()))
