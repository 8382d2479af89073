"""One sitting of a benchmark: which rows are wanted, how long it may take, what was measured."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teraedge.bench.record import write_results

if TYPE_CHECKING:
    from teraedge.engines.cuda.driver import Device


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that every GPU benchmark has."""
    parser.add_argument("--output", help="write the result file here, after every row")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), metavar="S")
    parser.add_argument("--only", help="rows to measure, separated by commas; * and ? allowed")
    parser.add_argument("--device", default="cuda")


class Session:
    """Rows of one benchmark; the file is written anew after each of them.

    Parameters
    ----------
    output : path-like, optional
    budget_seconds : float
        No row is started that would end after so many seconds from now.
    only : str, optional
        Patterns of names, separated by commas.
    gpu : Device, optional
        Measured on; described in the file.
    **more
        More of the file's fields.

    Attributes
    ----------
    rows : list of dict
    """

    def __init__(
        self,
        output: str | Path | None = None,
        budget_seconds: float = float("inf"),
        only: str | None = None,
        gpu: "Device | None" = None,
        **more: Any,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._output, self._gpu, self._more = output, gpu, more
        self._end = time.monotonic() + budget_seconds
        self._only = [part.strip() for part in only.split(",")] if only else []

    @classmethod
    def of(cls, arguments: Namespace, gpu: "Device | None" = None, **more: Any) -> "Session":
        """Return the session that the command line asks for; see `add_arguments`."""
        return cls(arguments.output, arguments.budget_seconds, arguments.only, gpu, **more)

    @property
    def seconds_left(self) -> float:
        """Seconds of the budget."""
        return self._end - time.monotonic()

    def selects(self, name: str) -> bool:
        """Tell whether the filter lets a name through."""
        return not self._only or any(fnmatchcase(name, pattern) for pattern in self._only)

    def starts(self, name: str, expected_seconds: float = 0.0) -> bool:
        """Tell whether to measure a row now; prints a line if there is no time for it."""
        if not self.selects(name):
            return False
        if self.seconds_left <= expected_seconds:
            print(  # noqa: T201
                f"{name}: left out, {max(self.seconds_left, 0):.0f} s of the budget are left and "
                f"{expected_seconds:.0f} s are expected",
                flush=True,
            )
            return False
        return True

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write the file."""
        self.rows.append(row)
        self.write()

    def write(self, **more: Any) -> None:
        """Write the file, if there is one, with more fields."""
        self._more |= more
        if self._output is not None:
            write_results(self._output, self.rows, gpu=self._gpu, **self._more)


def repetitions(
    seconds: float, total: float = 2.0, least: int = 10, most: int = 50, slow: float = 1.0
) -> int:
    """Return how often to repeat a run of so many seconds.

    Parameters
    ----------
    seconds : float
    total : float
        Seconds that all repetitions are to take, about.
    least, most : int
    slow : float
        Runs of more than so many seconds are repeated only three times.

    Examples
    --------
    >>> repetitions(0.0005), repetitions(0.15), repetitions(0.9), repetitions(4.0)
    (50, 13, 10, 3)
    """
    if seconds > slow:
        return 3
    return max(least, min(most, int(total / max(seconds, 1e-9))))


def repeat(once: Callable[[], float], warm: int = 2, **rule: Any) -> list[float]:
    """Return the seconds of all repetitions of a run, after some that do not count.

    Parameters
    ----------
    once : callable
        Runs once and returns its seconds.
    warm : int
        Runs before those that count; only one if it is slow.
    **rule
        As for `repetitions`.
    """
    seconds = once()
    for _ in range(warm - 1 if seconds <= rule.get("slow", 1.0) else 0):
        seconds = once()
    return [once() for _ in range(repetitions(seconds, **rule))]
