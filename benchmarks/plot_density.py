"""Plot the rate of random layers over their density, teraedge beside its rivals.

    python benchmarks/plot_density.py benchmarks/results/DATE-cpu-general.json -o density.png

Takes the rows named random-DENSITY of a result file of `general_cpu.py` (mode A, all programs in
one process, taking turns) and needs matplotlib: pip install 'teraedge[bench]'.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from teraedge.text import count

STYLES = {
    "teraedge": {"color": "#0b5fa5", "linewidth": 2.6, "zorder": 5},
    "torch dense": {"color": "#444444", "linestyle": (0, (5, 2))},
    "numpy dense": {"color": "#999999", "linestyle": (0, (2, 2))},
    "torch CSR": {"color": "#d1495b"},
    "MKL CSR": {"color": "#e09f3e"},
    "scipy CSR": {"color": "#6a994e"},
}
NAMES = {
    "torch dense": "dense BLAS (torch)",
    "numpy dense": "dense BLAS (NumPy)",
    "scipy CSR": "SciPy CSR",
}


def curves(record: dict[str, Any]) -> dict[str, dict[float, float]]:
    """Return for each program the executed edges a second (median run) at each density."""
    found: dict[str, dict[float, float]] = {}
    for row in record["rows"]:
        kind, _, density = row["network"].partition("-")
        if kind == "random":
            rates = found.setdefault(row["label"], {})
            rates[float(density)] = row["executed_edges_per_s"]
    return {label: dict(sorted(rates.items())) for label, rates in found.items()}


def plot(record: dict[str, Any], output: Path) -> None:
    """Draw rates above, and teraedge against the best sparse and the dense rival below."""
    found = curves(record)
    ours = found["teraedge"]
    x = [100 * density for density in ours]
    plt.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, (rates, ratios) = plt.subplots(
        2, 1, figsize=(7.2, 7.0), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    for label, style in STYLES.items():
        if label in found:
            values = [rate / 1e9 for rate in found[label].values()]
            rates.plot(x, values, marker="o", markersize=4, label=NAMES.get(label, label), **style)
    rates.set(yscale="log", ylabel="G edges executed a second")
    rates.legend(frameon=False, loc="lower right")
    row = next(row for row in record["rows"] if row["label"] == "teraedge")
    cpu = row.get("clock") == "cpu"
    where = "CPU time of one core" if cpu else count(row["threads"], "thread")
    rates.set_title(
        f"Random layers of 1024 neurons, mode A, {row['samples']:,} samples, fp32\n"
        f"{row['device']}, {where}",
        loc="left", fontsize=10,
    )  # fmt: skip

    def best(labels: tuple[str, ...]) -> list[float]:
        rivals = [found[label] for label in labels if label in found]
        return [max(rival[density] for rival in rivals) for density in ours]

    against = {
        "the best sparse rival": (best(("torch CSR", "MKL CSR", "scipy CSR")), "#0b5fa5"),
        "the best dense BLAS": (best(("torch dense", "numpy dense")), "#444444"),
    }
    for label, (others, color) in against.items():
        values = [mine / other for mine, other in zip(ours.values(), others, strict=True)]
        ratios.plot(x, values, marker="o", markersize=4, color=color, label=label)
    ratios.axhline(0.9, color="#888888", linewidth=0.8, linestyle=":")
    ratios.annotate("0.9", (x[0], 0.9), (2, 3), textcoords="offset points", color="#666666")
    ratios.set_ylim(bottom=0.6)
    ratios.set(xscale="log", yscale="log", xlabel="density (%)", ylabel="times as fast as")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axes in (rates, ratios):
        axes.grid(which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_formatter(plain)
    ratios.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    ratios.xaxis.set_major_formatter(plain)
    ratios.legend(frameon=False, loc=(0.5, 0.76))
    figure.savefig(output, dpi=160)


def main() -> None:
    """Read the arguments, draw the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="a result file of general_cpu.py")
    parser.add_argument("-o", "--output", type=Path, help="by default beside the result file")
    arguments = parser.parse_args()
    output = arguments.output or arguments.record.with_suffix(".png")
    plot(json.loads(arguments.record.read_text()), output)
    print(output)


if __name__ == "__main__":
    main()
