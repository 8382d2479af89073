"""Result files: every figure with the machine, the versions and all its repetitions."""

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from teraedge.bench.machine import provenance
from teraedge.cache import atomic_write
from teraedge.host import cpu_model, usable_cores

if TYPE_CHECKING:
    from teraedge.engines.cuda.driver import Device


def row(
    network: str,
    runs: list[float],
    *,
    mode: str,
    nominal_edges: int,
    executed_edges: int | None = None,
    samples: int = 60_000,
    device: str | None = None,
    gpus: int = 0,
    precision: str = "fp32",
    share_of_limit: float | None = None,
    limit: str | None = None,
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
    device : str, optional
        As the driver names the GPU; by default the CPU.
    gpus : int
        0 for the CPU, whose rows also say with how many threads.
    precision : str
    share_of_limit : float, optional
        Of the speed that the machine allows.
    limit : str, optional
        What that speed is.
    **fields
        More of the row's fields, such as ``passed``, ``rival`` or ``compile_seconds``.

    Raises
    ------
    ValueError
        If there are no runs, or GPUs without a device.
    """
    if not runs:
        raise ValueError(f"{network} has no runs; give the seconds of one at least")
    if gpus and device is None:
        raise ValueError(f"{network} ran on {gpus} GPUs; give device, as the driver names it")
    middle = median(runs)
    threads = {} if gpus else {"threads": usable_cores()}
    return {
        "network": network,
        "device": cpu_model() if device is None else device,
        "gpus": gpus,
        **threads,
        "mode": mode,
        "precision": precision,
        "samples": samples,
        "seconds": {"median": middle, "min": min(runs), "max": max(runs), "runs": runs},
        "nominal_edges_per_s": nominal_edges / middle,
        "executed_edges_per_s": None if executed_edges is None else executed_edges / middle,
        "share_of_limit": share_of_limit,
        "limit": limit,
        **fields,
    }


def write_results(
    path: str | Path, rows: list[dict[str, Any]], *, gpu: "Device | None" = None, **more: Any
) -> None:
    """Write rows, and `more`, as a result file with the machine, versions, date and command.

    Parameters
    ----------
    path : path-like
    rows : list of dict
        As `row` makes them.
    gpu : Device, optional
        The GPU that was measured.
    **more
        More fields of the file.
    """
    content = {**provenance(gpu), "rows": rows, **more}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
