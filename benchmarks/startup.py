"""Whole processes: importing the package, asking for help, and the challenge from the shell.

    python benchmarks/startup.py --output benchmarks/results/DATE-cpu-startup.json

Wall time of a new interpreter each time, kernels compiled and cached by a run before. Beside the
rows of the challenge the result file has ``startup``, with the times of the others.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

from teraedge.bench.record import row, write_results

PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import teraedge'": ["-c", "import teraedge"],
    "teraedge --help": ["-m", "teraedge", "--help"],
}
CHALLENGE = ["-m", "teraedge", "challenge", "--json"]


def wall(arguments: list[str]) -> tuple[float, str]:
    """Run a new interpreter; returns seconds and what it printed."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def spread(runs: list[float]) -> dict[str, object]:
    """Return what result files say of repetitions."""
    return {"median": median(runs), "min": min(runs), "max": max(runs), "runs": runs}


def main() -> None:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--output", help="write the result file here")
    arguments = parser.parse_args()

    wall(CHALLENGE)
    startup = {}
    for name, program in PROGRAMS.items():
        startup[name] = spread([wall(program)[0] for _ in range(arguments.repeat)])
        print(f"  {name:30} {startup[name]['median']:7.3f} s")
    runs, reports = zip(*(wall(CHALLENGE) for _ in range(arguments.repeat)), strict=True)
    report = json.loads(reports[-1])
    rows = [
        row(
            report["network"],
            list(runs),
            mode=report["mode"],
            nominal_edges=report["nominal_edges"],
            samples=report["samples"],
            label="teraedge challenge, the whole process",
            passed=all(json.loads(text)["passed"] for text in reports),
            peak_memory_bytes=report["peak_memory_bytes"],
        )
    ]
    print(f"  {'teraedge challenge':30} {median(runs):7.3f} s")
    if arguments.output:
        write_results(arguments.output, rows, startup=startup)


if __name__ == "__main__":
    main()
