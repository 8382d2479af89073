"""What is said of the layers of a network: times, gains, and where gains end."""

from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import exp, log
from typing import Any

WORTH = 1.1
"""How many times as fast as dense a layer has to be before that is called a gain."""
BUSY = 1.1
"""The spread from which on the machine is said to be busy."""


@dataclass(frozen=True)
class Advice:
    """What sparsity is worth in layers that are alike; times are seconds a sample.

    Attributes
    ----------
    layers : list of int
        Their numbers, from 0.
    n_in, n_out : int
    density : float
    seconds : float
        As the layer is now.
    dense_seconds : float or None
        Of a whole matrix of this shape; None where it would be too large.
    curve : list of (density, seconds)
        Of random edges, by ascending density.
    patterns : dict of str to (density, seconds)
        Other patterns of about the present density.
    """

    layers: list[int]
    n_in: int
    n_out: int
    density: float
    seconds: float
    dense_seconds: float | None
    curve: list[tuple[float, float]] = field(default_factory=list)
    patterns: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        """How many times as fast as dense the layer is now."""
        return None if self.dense_seconds is None else self.dense_seconds / self.seconds

    @property
    def gains_below(self) -> float | None:
        """The density from which down random edges are `WORTH` times as fast as dense.

        It ends the longest stretch of the curve where all are; 0 where none is, None where none
        was tried.
        """
        if self.dense_seconds is None or not self.curve:
            return None
        _, stop = self._gaining
        if stop in (0, len(self.curve)):
            return self.curve[-1][0] if stop else 0.0
        return self._crossing(stop)

    @property
    def gains_from(self) -> float | None:
        """The density that stretch begins at: 0 where the lowest that was tried gains."""
        if self.dense_seconds is None or not self.curve:
            return None
        start, _ = self._gaining
        return self._crossing(start) if start else 0.0

    @property
    def at_least(self) -> bool:
        """Whether the largest density that was tried gains, so that gains may go on above it."""
        return bool(self.gains_below) and self._gaining[1] == len(self.curve)

    def to_json(self) -> dict[str, Any]:
        """Return the advice as plain values."""
        return {
            **asdict(self),
            "gain": self.gain,
            "gains_from": self.gains_from,
            "gains_below": self.gains_below,
            "gains_below_at_least": self.at_least,
        }

    @property
    def _wanted(self) -> float:
        return (self.dense_seconds or 0.0) / WORTH

    @property
    def _gaining(self) -> tuple[int, int]:
        """Return where the longest stretch of gains begins and ends in the curve; 0, 0 if none."""
        places = range(len(self.curve))
        stretches = [
            list(places)
            for gains, places in groupby(places, lambda place: self.curve[place][1] <= self._wanted)
            if gains
        ]
        if not stretches:
            return 0, 0
        longest = max(stretches, key=len)  # of equally long ones the sparsest
        return longest[0], longest[-1] + 1

    def _crossing(self, place: int) -> float:
        """Return the density between a place and the one before it where gains begin or end."""
        (density, seconds), (above, slower) = self.curve[place - 1], self.curve[place]
        # Between two densities the time is taken to be a power of the density.
        slope = log(slower / seconds) / log(above / density)
        return density * exp(log(self._wanted / seconds) / slope)


def threshold(one: Advice) -> str:
    """Return below which density random edges gain, as a person reads it.

    Examples
    --------
    >>> threshold(Advice([0], 8, 8, 0.1, 1.0, 4.0, [(0.1, 1.0), (0.6, 2.0)]))
    '>= 60%'
    """
    below = one.gains_below
    if below is None:
        return "-"
    if not below:
        return "never"
    end = f"{'>= ' if one.at_least else ''}{_percent(below)}%"
    if not one.gains_from:
        return end
    return f"{_percent(one.gains_from)}{' to ' if one.at_least else '-'}{end}"


def _percent(density: float) -> str:
    """Return a density with about as many digits as can be measured."""
    return f"{100 * density:.{0 if density >= 0.1 else 1}f}"


@dataclass(frozen=True)
class Advised:
    """The advice for a network.

    Attributes
    ----------
    device, hardware, target : str
    samples : int
        That ran side by side, at most.
    dense_program : str
        What ran the dense layers.
    advice : list of Advice
        In the order of the network.
    left_out : list of int
        Layers that time ran out for.
    rounds : int
        That were measured, at most; the best run of all of them counts.
    spread : float
        How many times as long as its best turn the median turn of a program took, typically: well
        above 1 where others are at work on the machine.
    """

    device: str
    hardware: str
    target: str
    samples: int
    dense_program: str
    advice: list[Advice]
    left_out: list[int]
    rounds: int = 0
    spread: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**vars(self), "advice": [one.to_json() for one in self.advice]}
