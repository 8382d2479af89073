"""Progress bars on stderr for whatever takes longer than a moment."""

import threading
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from teraedge.cli.console import err

if TYPE_CHECKING:
    from collections.abc import Callable

    from teraedge.network import Layer, Network

PATIENCE = 0.7
"""Seconds before a bar appears: what is over sooner shows none and pays for none."""


class Stage:
    """A named part of the work, called with the fraction of it that is done.

    It shows a bar once it has lasted `PATIENCE` seconds, pulsing until the first fraction comes,
    and takes it away at the end. Nothing is shown where stderr is not a terminal.

    Parameters
    ----------
    label : str
        What is being done.

    Attributes
    ----------
    seconds : float
        How long it took, once it is over.

    Examples
    --------
    >>> with Stage("waiting") as stage:
    ...     stage(1.0)
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.seconds = 0.0
        self._fraction: float | None = None
        self._bar: Any = None
        self._task: Any = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._start = perf_counter()
        if err().is_terminal:
            self._timer = threading.Timer(PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __call__(self, fraction: float) -> None:
        """Take note of the fraction done; cheap, and safe from any thread."""
        with self._lock:
            self._fraction = max(fraction, self._fraction or 0.0)
            if self._bar is not None:
                self._bar.update(self._task, total=1.0, completed=self._fraction)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = perf_counter() - self._start
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar is not None:
                self._bar.stop()

    def _show(self) -> None:
        from rich import progress

        with self._lock:
            if self._timer is None:  # over while we were importing
                return
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                console=err(),
                transient=True,
            )
            total = None if self._fraction is None else 1.0
            self._task = self._bar.add_task(
                self.label, total=total, completed=self._fraction or 0.0
            )
            self._bar.start()


class _WatchedLayers:
    """A lazy source that hands on the layers of a network and tells how far it has got."""

    def __init__(self, network: "Network", report: "Callable[[float], None]") -> None:
        self._network, self._report = network, report

    def __len__(self) -> int:
        return len(self._network)

    def __getitem__(self, index: int) -> "Layer":
        layer = self._network[index]
        self._report((index + 1) / len(self._network))
        return layer


def watched(network: "Network", report: "Callable[[float], None]") -> "Network":
    """Return the same network, which calls `report` with the fraction of its layers read."""
    from teraedge.network import Network

    return Network(_WatchedLayers(network, report), name=network.name, head=network.head)
