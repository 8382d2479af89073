"""The advice as a picture: how many times as fast as dense, over density, a panel a layer."""

from pathlib import Path
from typing import Any

from teraedge.advisor.advice import WORTH, Advice, Advised, threshold
from teraedge.errors import DependencyError, OptionsError

_MOST = 6
"""Layers that are drawn, those of most edges."""
_MARKS = {"N:M": ("s", "#e09f3e"), "block 16": ("D", "#6a994e"), "RadiX-Net": ("^", "#8d5a97")}


def check_plot(path: Path) -> None:
    """Stop before any work if a plot could not be written.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    OptionsError
        If the name does not end as a picture's does, or its folder is not there.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise DependencyError(
            "a plot needs matplotlib, which is not installed; pip install 'teraedge[viz]'"
        ) from None
    del mpl
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise OptionsError(f"{path}: the name of a plot ends with .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise OptionsError(f"{path}: there is no folder {path.parent}; make it first")


def plot(advised: Advised, path: Path, model: str) -> None:
    """Draw the advice for a model of some name into a file."""
    from matplotlib.figure import Figure

    from teraedge.formats._atomic import new_file

    drawn = _drawn(advised)
    figure = Figure(figsize=(4.2 * max(len(drawn), 1), 3.8), layout="constrained")
    grid: Any = figure.subplots(1, max(len(drawn), 1), squeeze=False, sharey=True)
    for axes, one in zip(grid[0], drawn, strict=False):
        _draw(axes, one)
    if drawn:
        grid[0][0].set_ylabel("times as fast as dense")
        # What some panel has; the same mark means the same in all.
        shown = {
            label: handle
            for axes in grid[0]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        grid[0][-1].legend(shown.values(), shown.keys(), frameon=False, fontsize=8)
    figure.suptitle(f"{model}: {advised.target} on {advised.hardware}", fontsize=10)
    with new_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)


def _drawn(advised: Advised) -> list[Advice]:
    """Return the layers to draw, in the order of the network."""
    known = [one for one in advised.advice if one.dense_seconds is not None]
    known.sort(key=lambda one: -one.density * one.n_in * one.n_out)
    return sorted(known[:_MOST], key=lambda one: one.layers)


def _draw(axes: Any, one: Advice) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    dense = one.dense_seconds or 1.0
    x = [100 * density for density, _ in one.curve]
    y = [dense / seconds for _, seconds in one.curve]
    axes.plot(x, y, marker="o", markersize=4, color="#0b5fa5", label="random edges")
    here = 100 * one.density, dense / one.seconds
    axes.plot(*here, marker="*", markersize=13, linestyle="", color="#d1495b", label="this layer")
    for name, (density, seconds) in one.patterns.items():
        mark, color = _MARKS[name]
        axes.plot(
            100 * density, dense / seconds, marker=mark, linestyle="", color=color, label=name
        )
    axes.axhline(1, color="#888888", linewidth=0.8)
    axes.axhline(WORTH, color="#888888", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="density (%)")
    numbers = ", ".join(str(number + 1) for number in one.layers[:4])
    more = ", ..." if len(one.layers) > 4 else ""
    title = f"layer {numbers}{more}: {one.n_in} x {one.n_out}\n{_words(one)}"
    axes.set_title(title, loc="left", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # the axes have few decades
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(which="major", color="#dddddd", linewidth=0.6)


def _words(one: Advice) -> str:
    """Return where random edges gain."""
    if not one.curve:
        return ""
    if not one.gains_below:
        return "random edges never gain"
    return f"random edges gain {'at' if one.gains_from else 'to'} {threshold(one)}"
