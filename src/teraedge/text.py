"""Numbers as people read them, and counts as one line of bars."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*#@"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """Return a number with three significant digits and no exponent.

    Examples
    --------
    >>> number(0.01234), number(45.678), number(123456.0)
    ('0.0123', '45.7', '123,456')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 9)}f}"


def scaled(value: float, unit: str) -> str:
    """Return a number with a decimal prefix on its unit, or before it if that is a word.

    Examples
    --------
    >>> scaled(45.6e9, "E/s"), scaled(12, "B"), scaled(236e9, " edges")
    ('45.6 GE/s', '12 B', '236 G edges')
    """
    for factor, prefix in _PREFIXES:
        if value >= factor:
            return f"{number(value / factor)} {prefix}{unit}"
    return f"{value:g} {unit.strip()}"


def seconds(value: float) -> str:
    """Return a time span.

    Examples
    --------
    >>> seconds(0.0004), seconds(0.31), seconds(204.2)
    ('0.400 ms', '0.310 s', '3 min 24 s')
    """
    if value < 0.1:
        return f"{number(value * 1e3)} ms"
    if value < 120:
        return f"{number(value)} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def count(value: int, noun: str) -> str:
    """Return a whole number and its noun, which takes an s where it is not one.

    Examples
    --------
    >>> count(1, "layer"), count(1920, "layer")
    ('1 layer', '1,920 layers')
    """
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def with_article(noun: str) -> str:
    """Return a noun after "a" or "an", as it is spoken: names in capitals are spelled.

    Examples
    --------
    >>> with_article("list"), with_article("ndarray"), with_article("MLPClassifier")
    ('a list', 'an ndarray', 'an MLPClassifier')
    """
    if noun[:2].isupper() or noun[:2] == "nd":
        vowel = noun[0] in "AEFHILMNORSXn"
    else:
        vowel = noun[:1] in tuple("aeiouAEIOU") and noun[:3].lower() not in ("uni", "use")
    return f"{'an' if vowel else 'a'} {noun}"


def a_type(value: object) -> str:
    """Return what kind of thing a value is.

    Examples
    --------
    >>> a_type([]), a_type(1), a_type(None)
    ('a list', 'an int', 'None')
    """
    return "None" if value is None else with_article(type(value).__name__)


def sparkline(values: Sequence[int], width: int, *, ascii_only: bool = False) -> str:
    """Return counts as a line of bars whose height is logarithmic, from the lowest to the highest.

    Parameters
    ----------
    values : sequence of int
        Counts, 0 or more.
    width : int
        Bars at most. Where there are more values, a bar is the largest of its share of them.
    ascii_only : bool, default False
        For terminals that cannot show block characters.

    Returns
    -------
    str
        A zero is a blank, so that it differs from the lowest count above zero.

    Examples
    --------
    >>> sparkline([60000, 6000, 600, 60], 10)
    '█▆▃▁'
    """
    bars = _ASCII_BARS if ascii_only else _BARS
    columns = min(width, len(values))
    edges = [column * len(values) // max(columns, 1) for column in range(columns + 1)]
    heights = [
        math.log(peak) if (peak := max(values[start:stop])) else None
        for start, stop in pairwise(edges)
    ]
    present = [height for height in heights if height is not None]
    low, high = min(present, default=0.0), max(present, default=0.0)

    def bar(height: float | None) -> str:
        if height is None:
            return " "
        share = (height - low) / (high - low) if high > low else 1.0
        return bars[round(share * (len(bars) - 1))]

    return "".join(map(bar, heights))
