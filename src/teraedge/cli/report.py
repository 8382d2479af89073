"""What a run did, as a table for people and as a row of a result file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teraedge import host
from teraedge.cli.console import out
from teraedge.text import count, number, scaled, seconds, sparkline

if TYPE_CHECKING:
    from rich.table import Table

    from teraedge.options import Options
    from teraedge.result import Result

_LABEL_WIDTH = 19  # the widest label, the borders and the padding
_WIDEST_SPARKLINE = 60


@dataclass(frozen=True)
class Report:
    """A run and what led up to it.

    Parameters
    ----------
    network : str
        Its name, such as "1024-120".
    layers, edges : int
        Of the network as given.
    device : str
        As the user named it.
    hardware : str
        What that is.
    mode : str
        "a", "b" or "c".
    options : Options
    result : Result
    data_seconds, compile_seconds : float
    peak_memory : int or None
        Bytes the process has had at most when the run ended, where the system says.
    """

    network: str
    layers: int
    edges: int
    device: str
    hardware: str
    mode: str
    options: "Options"
    result: "Result"
    data_seconds: float
    compile_seconds: float
    peak_memory: int | None

    @property
    def threads(self) -> int:
        """CPU threads the run may have used."""
        return self.options.threads or host.usable_cores()

    @property
    def on_cpu(self) -> bool:
        """Whether it ran on the CPU."""
        return self.device == "cpu"

    def _where(self) -> str:
        threads = f", {count(self.threads, 'thread')}" if self.on_cpu else ""
        return f"{self.device}: {self.hardware}{threads}"

    def rate(self, edges: int) -> float:
        """Return edges a second of the run."""
        return edges / max(self.result.seconds, 1e-9)

    def row(self) -> dict[str, Any]:
        """Return the fields of a row of a result file, of this one run."""
        result, span = self.result, self.result.seconds
        return {
            "network": self.network,
            "device": self.hardware,
            "gpus": 0 if self.on_cpu else 1,
            "threads": self.threads if self.on_cpu else None,
            "mode": self.mode,
            "precision": self.options.precision,
            "samples": result.samples,
            "seconds": {"median": span, "min": span, "max": span, "runs": [span]},
            "compile_seconds": self.compile_seconds,
            "data_seconds": self.data_seconds,
            "nominal_edges": result.nominal_edges,
            "executed_edges": result.executed_edges,
            "nominal_edges_per_s": self.rate(result.nominal_edges),
            "executed_edges_per_s": self.rate(result.executed_edges),
            "exact": list(result.exact),
            "live_samples": [layer.live for layer in result.trace],
            "peak_memory_bytes": self.peak_memory,
        }

    def table(self, title: str, *more: tuple[str, str]) -> "Table":
        """Return the table that ends a run, with more lines at its end."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=title,
            title_style="bold",
            title_justify="left",
            box=box.ROUNDED,
            show_header=False,
        )
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold", min_width=_sparkline_width())
        for label, value in (*self._lines(), *more):
            table.add_row(label, value)
        return table

    def _lines(self) -> list[tuple[str, str]]:
        result, peak = self.result, self.peak_memory
        share = result.executed_edges / max(result.nominal_edges, 1)
        executed = self.rate(result.executed_edges)
        return [
            ("device", self._where()),
            ("network", f"{count(self.layers, 'layer')}, {count(self.edges, 'edge')}"),
            ("data", seconds(self.data_seconds)),
            ("compile", seconds(self.compile_seconds)),
            ("run", seconds(result.seconds)),
            (
                "nominal",
                f"[bold]{number(self.rate(result.nominal_edges) / 1e12)} TE/s[/], "
                f"{scaled(result.nominal_edges, ' edges')} (samples x edges)",
            ),
            (
                "executed",
                f"{scaled(executed, 'E/s')}, {scaled(result.executed_edges, ' edges')} "
                f"({number(100 * share)}% of nominal)",
            ),
            *self._live_lines(),
            ("exact steps", ", ".join(result.exact) or "none: everything executed"),
            *([("stored as", result.precision)] if result.precision != "fp32" else []),
            ("peak memory", "unknown" if peak is None else scaled(peak, "B")),
        ]

    def _live_lines(self) -> list[tuple[str, str]]:
        """Live samples before the first layer and after each, as bars and as two numbers."""
        live = [self.result.samples, *(layer.live for layer in self.result.trace)]
        ascii_only = out().options.ascii_only
        bars = sparkline(live, _sparkline_width(), ascii_only=ascii_only)
        words = f"{live[0]:,} to {live[-1]:,}, on a logarithmic scale"
        return [("live samples", bars), ("", words)]


def _sparkline_width() -> int:
    return max(min(out().width - _LABEL_WIDTH, _WIDEST_SPARKLINE), 8)
