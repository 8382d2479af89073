"""Result files: every figure with the machine, the versions and all its repetitions."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from teraedge.bench.machine import provenance
from teraedge.cache import atomic_write
from teraedge.host import cpu_model, usable_cores


def row(
    network: str,
    runs: list[float],
    *,
    mode: str,
    nominal_edges: int,
    executed_edges: int | None = None,
    samples: int = 60_000,
    **fields: Any,
) -> dict[str, Any]:
    """Return a row of a result file.

    Parameters
    ----------
    network : str
        Such as "1024-120".
    runs : list of float
        Seconds of every repetition, in order.
    mode : {"a", "b", "c"}
    nominal_edges, executed_edges : int
        Of one run.
    samples : int
    **fields
        More of the row's fields, such as ``passed``, ``rival`` or ``compile_seconds``; they may
        replace the defaults of a CPU run in fp32.
    """
    middle = median(runs)
    return {
        "network": network,
        "device": cpu_model(),
        "gpus": 0,
        "threads": usable_cores(),
        "mode": mode,
        "precision": "fp32",
        "samples": samples,
        "seconds": {"median": middle, "min": min(runs), "max": max(runs), "runs": runs},
        "nominal_edges_per_s": nominal_edges / middle,
        "executed_edges_per_s": None if executed_edges is None else executed_edges / middle,
        **fields,
    }


def write_results(path: str | Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write rows, and `more`, as a result file with the machine, versions, date and command."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**provenance(), "rows": rows, **more}, indent=1) + "\n")
