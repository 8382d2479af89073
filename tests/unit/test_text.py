"""Numbers and bars for people."""

from collections import OrderedDict

import numpy as np
import pytest

import teraedge
from teraedge.errors import ModelError
from teraedge.text import number, scaled, seconds, sparkline, with_article


def test_sparkline_falls_with_the_counts():
    bars = sparkline([60000, 54687, 40498, 23044, 12305, 6537, 4087, 2773, 2128, 1812], 60)
    assert len(bars) == 10
    assert bars[0] == "█"
    assert bars[-1] == "▁"
    assert list(bars) == sorted(bars, reverse=True)


@pytest.mark.parametrize("width", [1, 7, 60, 1921, 5000])
def test_sparkline_of_1920_layers_fits(width):
    bars = sparkline([60000 - 30 * layer for layer in range(1921)], width)
    assert len(bars) == min(width, 1921)
    assert bars[0] == "█"


def test_sparkline_keeps_a_peak_that_is_one_layer_wide():
    values = [1] * 1000
    values[617] = 1000
    assert sparkline(values, 10) == "▁▁▁▁▁▁█▁▁▁"


def test_zero_is_blank_and_one_is_not():
    assert sparkline([100, 1, 0], 10) == "█▁ "


@pytest.mark.parametrize(
    ("values", "bars"), [([], ""), ([0], " "), ([5], "█"), ([7, 7], "██"), ([0, 0], "  ")]
)
def test_sparkline_of_little(values, bars):
    assert sparkline(values, 10) == bars


def test_ascii_sparkline():
    assert sparkline([1000, 100, 10, 1], 10, ascii_only=True).isascii()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.8107, "0.811"), (1234.5, "1,234"), (1e-12, "0.000000000")]
)
def test_number(value, text):
    assert number(value) == text


def test_units():
    assert scaled(235_929_600_000, " edges") == "236 G edges"
    assert scaled(0, "B") == "0 B"
    assert seconds(3725) == "62 min 5 s"


@pytest.mark.parametrize(
    ("noun", "spoken"),
    [
        ("OrderedDict", "an OrderedDict"),
        ("ndarray", "an ndarray"),
        ("int", "an int"),
        ("list", "a list"),
        ("Linear", "a Linear"),
        ("LSTM", "an LSTM"),
        ("GRU", "a GRU"),
        ("Unflatten", "an Unflatten"),
        ("Union", "a Union"),
        ("ELU", "an ELU"),
    ],
)
def test_articles(noun, spoken):
    assert with_article(noun) == spoken


def test_messages_have_articles():
    for layers, message in (
        ([np.ones(1)], "layer 0 is an ndarray"),
        (None, "layers is None"),
        ([3], "layer 0 is an int"),
    ):
        with pytest.raises(ModelError, match=message):
            teraedge.Network(layers)
    with pytest.raises(ModelError, match="the network is an OrderedDict"):
        teraedge.compile(OrderedDict())
