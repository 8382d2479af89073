"""Programs that take turns, in rounds, so that a slow spell of the machine hits all alike."""

from collections.abc import Callable, Iterable
from math import inf
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple, TypeAlias

ROUNDS = 25
TURN = 0.02, 4
"""Seconds and runs of a program's turn, at least."""
LONGEST_TURN = 0.1
"""Seconds, about, also of every turn of a program that is too large to be kept for many."""
SETTLE = 0.15
"""Seconds before engines run after something else: the threads of a BLAS spin on for 0.1 s."""
KEPT = 2**31, 48
"""Bytes and programs that are kept at a time, about; an engine has threads of its own."""

Tell: TypeAlias = Callable[[float], None]


class Ready(NamedTuple):
    """A program that can run: what runs it once and returns its seconds, and what frees it."""

    run: Callable[[], float]
    close: Callable[[], None]


class Program:
    """Something that is measured.

    Parameters
    ----------
    start : callable
        Makes it ready; returns None if there is nothing to run, or another program of which it
        is known that it is the same.
    nbytes : int
        What it takes to keep it, about.
    spins : bool
        Whether its threads go on after it, which would slow down the next program.
    """

    def __init__(
        self, start: "Callable[[], Ready | Program | None]", nbytes: int, spins: bool = False
    ) -> None:
        self._start, self.nbytes, self.spins = start, nbytes, spins
        self._ready: Ready | None = None
        self._same: Program | None = None
        self.needless = False
        self.turns: list[float] = []

    @property
    def seconds(self) -> float:
        """The best run of all turns; infinite if there was none.

        Whoever else is on the machine only adds time, and may do so in most of the turns: then the
        median says how busy the machine was. That the turns are spread lets one be undisturbed.
        """
        if self._same is not None:
            return self._same.seconds
        return min(self.turns, default=inf)

    @property
    def spread(self) -> float:
        """How many times as long as the best the median of the turns took: 1 on an idle machine."""
        return median(self.turns) / min(self.turns) if self.turns else 1.0

    @property
    def is_kept(self) -> bool:
        """Whether it is ready."""
        return self._ready is not None

    def prepare(self) -> None:
        """Make it ready, unless that is needless."""
        ready = self._start()
        if isinstance(ready, Ready):
            self._ready = ready
            ready.run()
        else:
            self._same, self.needless = ready, True

    def turn(self, least: tuple[float, int]) -> None:
        """Run it for some seconds, and some times where that does not take too long."""
        if self._ready is None:
            return
        times: list[float] = []
        passed, begin = 0.0, perf_counter()
        while not times or (passed < LONGEST_TURN and (passed < least[0] or len(times) < least[1])):
            times.append(self._ready.run())
            passed = perf_counter() - begin
        self.turns.append(max(min(times), 1e-9))

    def close(self) -> None:
        """Free what it takes to keep it."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None


def measure(programs: Iterable[Program], budget: float, tell: Tell) -> None:
    """Measure programs, the first of them rather than the last where time is short.

    Half of the time is for making them ready at most. All that can be kept are ready before the
    rounds begin; each of the others is made ready for every turn.
    """
    begin = perf_counter()
    programs = list(programs)
    done = 0

    def tells(steps: float) -> None:
        nonlocal done
        done += 1
        passed = (perf_counter() - begin) / budget if budget > 0 else 0.0
        tell(min(max(done / steps, passed), 1.0))

    steps = len(programs) * (1 + ROUNDS)
    try:
        _keep(programs, begin + budget / 2, lambda: tells(steps))
        for number in range(ROUNDS):
            _round(programs, number == 0, begin + budget, lambda: tells(steps))
            if perf_counter() > begin + budget:
                break
        tell(1.0)
    finally:
        for program in programs:
            program.close()


def _keep(programs: list[Program], end: float, tell: Callable[[], None]) -> None:
    room, number = KEPT
    for program in programs:
        if perf_counter() > end:
            return
        if program.nbytes <= room and number:
            program.prepare()
            if program.is_kept:
                room, number = room - program.nbytes, number - 1
        tell()


def _round(programs: list[Program], first: bool, end: float, tell: Callable[[], None]) -> None:
    """Give every program a turn; at least once those that are ready, whatever the time."""
    quiet = False
    for program in sorted(programs, key=lambda one: one.spins and one.is_kept):
        kept = program.is_kept
        if perf_counter() > end and not (first and kept):
            continue
        if program.needless:
            tell()
            continue
        if not kept:
            program.prepare()
        if not program.spins and not (quiet and kept):
            sleep(SETTLE)
        program.turn(TURN if kept else (LONGEST_TURN, 1))
        if not kept:
            program.close()
        quiet = kept and not program.spins
        tell()
