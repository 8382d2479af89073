"""A plan as a table: for every layer what was chosen, why, and how long it takes.

The same for every device: an engine gives each layer's `Choice`, its `LastRun`, and the words for
where it runs.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from teraedge.plan.choice import Part
from teraedge.text import count, number, scaled

NARROW = 100
"""Columns of a terminal below which the table leaves out kernels and bytes."""
LINES = 60
"""Lines of a printed table; from the middle of a longer one some are left out."""
SAMPLES = 1000
"""Samples that times are predicted for before the first run."""


class LastRun(NamedTuple):
    """What an engine remembers of its last run.

    Attributes
    ----------
    samples : int
        Given to the run.
    entered : sequence of int
        Samples that went into each layer that runs, lanes that ran empty beside them included.
    seconds : sequence of float
        Wall time of each, workers side by side.
    workers : int
        That shared the samples.
    """

    samples: int
    entered: Sequence[int]
    seconds: Sequence[float]
    workers: int


@dataclass(frozen=True)
class Row:
    """A layer as given, or a run of neighbours that are treated alike; sums are over all of them.

    Attributes
    ----------
    first, last : int
        The layers, counted from 1.
    widths : tuple of int
        Neurons before, between and after the parts that a layer runs in.
    edges_given, edges : int
        Of the network as given, and after the passes.
    layout, kernel : str
    nbytes : int
    predicted : float or None
        Seconds for the samples of the explanation.
    measured : float or None
        Seconds in the last run.
    limit : str or None
        What keeps it from being faster: "fma" (fused multiply-adds), "load" (of inputs), "memory";
        on a GPU also "tensor" (products on tensor cores), "L2", "HBM" (activations), "copy" (of the
        layer from the host).
    share : float or None
        The least time that limit allows, of the measured time, or of the predicted one.
    why : str
    """

    first: int
    last: int
    widths: tuple[int, ...]
    edges_given: int
    edges: int
    layout: str
    kernel: str
    nbytes: int
    predicted: float | None
    measured: float | None
    limit: str | None
    share: float | None
    why: str

    @property
    def layers(self) -> str:
        """The layers as a person writes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Explanation:
    """What an engine will do, or did in its last run, layer by layer; print it.

    Attributes
    ----------
    device : str
        Where it runs, in words.
    samples : int
        That the times are for.
    ran : bool
        Whether they are those of the last run, with the samples that were live in it; else all
        samples are taken to be live.
    rows : tuple of Row
    transfer : float or None
        Predicted seconds to read dense float32 features and write all outputs.
    error : float or None
        By how much of the measured time the predicted one of a layer differs, on average over all
        layers as given, however long they take; None before a run.
    """

    device: str
    samples: int
    ran: bool
    rows: tuple[Row, ...]
    transfer: float | None
    error: float | None = None
    texts: ClassVar = frozenset({"layout", "kernel", "of limit", "why"})
    """Columns of the table that are words; the others are numbers, set to the right."""

    @property
    def predicted(self) -> float | None:
        """Seconds predicted for all layers."""
        return _sum(row.predicted for row in self.rows)

    @property
    def measured(self) -> float | None:
        """Seconds of all layers in the last run, None before it."""
        return _sum(row.measured for row in self.rows)

    @property
    def title(self) -> str:
        """What the times are for."""
        who = "the last run, of" if self.ran else "a run of"
        live = "" if self.ran else ", all live"
        return f"{self.device}; times of {who} {count(self.samples, 'sample')}{live}"

    @property
    def summary(self) -> str:
        """The sums, in one line."""
        edges, given = (sum(getattr(row, n) for row in self.rows) for n in ("edges", "edges_given"))
        times = {"layers predicted": self.predicted, "measured": self.measured}
        times["float32 features and outputs predicted"] = self.transfer
        told = [f"{name} {_seconds(value)}" for name, value in times.items() if value is not None]
        if self.error is not None:
            told.append(f"mean error of a layer's prediction {self.error:.0%}")
        return "; ".join(
            [
                f"{scaled(edges, ' edges')} of {scaled(given, ' given')}, "
                f"{scaled(sum(row.nbytes for row in self.rows), 'B')}",
                *told,
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "device": self.device,
            "samples": self.samples,
            "ran": self.ran,
            "predicted_seconds": self.predicted,
            "measured_seconds": self.measured,
            "transfer_seconds": self.transfer,
            "mean_error": self.error,
            "rows": [asdict(row) | {"widths": list(row.widths)} for row in self.rows],
        }

    def table(self, width: int) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the table as texts.

        Parameters
        ----------
        width : int
            Columns of the terminal.

        Returns
        -------
        header : list of str
        lines : list of list of str
            A text a column.
        notes : list of str
            The sentences that the last column names by their letters.
        """
        wide = width >= NARROW
        whys = list(dict.fromkeys(row.why for row in self.rows))
        header = ["layers", "neurons", "edges", "run", "layout"]
        header += ["kernel", "bytes"] * wide + ["predicted"] + ["measured"] * self.ran
        header += ["of limit", "why"]
        lines = [self._line(row, _letter(whys.index(row.why)), wide) for row in _shown(self.rows)]
        if len(lines) < len(self.rows):
            left_out = f"+{len(self.rows) - len(lines):,}"
            lines.insert(LINES // 2, [left_out] + ["..."] * (len(header) - 1))
        return header, lines, [f"{_letter(k)}: {why}" for k, why in enumerate(whys)]

    def _line(self, row: Row, letter: str, wide: bool) -> list[str]:
        line = [row.layers, ">".join(map(str, row.widths)), _short(row.edges_given)]
        line += [_short(row.edges), row.layout]
        line += [row.kernel, scaled(row.nbytes, "B")] * wide + [_seconds(row.predicted)]
        line += [_seconds(row.measured)] * self.ran
        return [*line, "-" if row.share is None else f"{row.share:.0%} {row.limit}", letter]

    def __str__(self) -> str:
        width = shutil.get_terminal_size((NARROW, 24)).columns
        header, lines, notes = self.table(width)
        sizes = [max(map(len, column)) for column in zip(header, *lines, strict=True)]

        def aligned(line: list[str]) -> str:
            cells = zip(header, line, sizes, strict=True)
            return (
                (" " if width < NARROW else "  ")
                .join(
                    text.ljust(size) if name in self.texts else text.rjust(size)
                    for name, text, size in cells
                )
                .rstrip()
            )

        table = [aligned(header), *map(aligned, lines)]
        return "\n".join([self.title, "", *table, "", *notes, self.summary])


def explain(
    parts: Sequence[Part],
    edges_given: Sequence[int],
    *,
    device: str,
    workers: int,
    transfer: float | None,
    last: LastRun | None,
) -> Explanation:
    """Explain a plan.

    Parameters
    ----------
    parts : sequence of Part
        The layers that run, in their order.
    edges_given : sequence of int
        Of each layer as given.
    device : str
        Where it runs, in words.
    workers : int
        That share the samples, before the first run.
    transfer : float or None
        Predicted seconds a sample to read features and write outputs, on one worker.
    last : LastRun or None
        The last run, if there was one.

    Returns
    -------
    Explanation
    """
    run = last or LastRun(SAMPLES, [SAMPLES] * len(parts), [0.0] * len(parts), workers)
    rows: list[Row] = []
    errors: list[float] = []
    numbered = zip(parts, run.entered, run.seconds, strict=True)
    for origin, members in groupby(numbered, key=lambda member: member[0].origin):
        row = _row(origin, edges_given[origin], list(members), run.workers, last is not None)
        if row.predicted is not None and row.measured:
            errors.append(abs(row.predicted / row.measured - 1))
        if rows and _alike(rows[-1]) == _alike(row):
            row = _joined(rows.pop(), row)
        rows.append(row)
    seconds = None if transfer is None else transfer * run.samples / run.workers
    error = sum(errors) / len(errors) if errors else None
    return Explanation(device, run.samples, last is not None, tuple(rows), seconds, error)


def _row(
    origin: int, given: int, members: list[tuple[Part, int, float]], workers: int, ran: bool
) -> Row:
    """Return the row of one layer as given."""
    parts = [part for part, _, _ in members]
    times = [(part.choice.seconds, entered / workers) for part, entered, _ in members]
    predicted = _sum(None if each is None else each * count for each, count in times)
    measured = sum(seconds for _, _, seconds in members) if ran else None
    least: dict[str, float] = {}
    for part, entered, _ in members:
        if (limit := part.choice.limit) is not None:
            least[limit.name] = least.get(limit.name, 0.0) + limit.seconds * entered / workers
    whys = dict.fromkeys(part.choice.why for part in parts)
    return Row(
        first=origin + 1,
        last=origin + 1,
        widths=(parts[0].n_in, *(part.n_out for part in parts)),
        edges_given=given,
        edges=sum(part.edges for part in parts),
        layout="+".join(dict.fromkeys(part.choice.layout for part in parts)),
        kernel=_kernels(parts),
        nbytes=sum(part.nbytes for part in parts),
        predicted=predicted,
        measured=measured,
        limit=max(least, key=lambda name: least[name], default=None),
        share=_share(sum(least.values()), measured if ran else predicted) if least else None,
        why=(f"in {len(parts)} parts: " if len(parts) > 1 else "") + "; ".join(whys),
    )


def _kernels(parts: Iterable[Part]) -> str:
    names = (name for part in parts for name in part.choice.kernel.split("+"))
    return "+".join(dict.fromkeys(names))


def _share(least: float, seconds: float | None) -> float:
    return least / seconds if seconds else 0.0


def _alike(row: Row) -> tuple[Any, ...]:
    """Return what neighbours must have in common to share a line."""
    return row.widths, row.layout, row.kernel, row.limit, row.why


def _joined(one: Row, other: Row) -> Row:
    """Return one row for neighbours."""
    predicted = _sum((one.predicted, other.predicted))
    measured = _sum((one.measured, other.measured))
    share = None
    if one.share is not None and other.share is not None:
        times = [row.predicted if row.measured is None else row.measured for row in (one, other)]
        least = one.share * (times[0] or 0.0) + other.share * (times[1] or 0.0)
        share = _share(least, predicted if measured is None else measured)
    return replace(
        one,
        last=other.last,
        edges_given=one.edges_given + other.edges_given,
        edges=one.edges + other.edges,
        nbytes=one.nbytes + other.nbytes,
        predicted=predicted,
        measured=measured,
        share=share,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum, None where a value is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are printed: of very many, those at both ends."""
    if len(rows) <= LINES:
        return list(rows)
    return [*rows[: LINES // 2], *rows[-(LINES - LINES // 2) :]]


def _letter(number: int) -> str:
    """Return a, b, ... z, aa, ab, ... ."""
    prefix = _letter(number // 26 - 1) if number >= 26 else ""
    return prefix + chr(ord("a") + number % 26)


def _short(edges: int) -> str:
    return f"{edges}" if edges < 10_000 else scaled(edges, "").strip()


def _seconds(value: float | None) -> str:
    """Return a time span in few letters."""
    if value is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{number(value / factor)} {unit}"
    return f"{number(value * 1e9)} ns"
