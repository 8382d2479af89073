import dataclasses

import numpy as np
import pytest

from teraedge import (
    GELU,
    ClippedReLU,
    Hardtanh,
    Identity,
    LayerTrace,
    Options,
    ReLU,
    Result,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.activations import from_spec
from teraedge.errors import ModelError, OptionsError


def test_modes():
    assert Options.mode("a") == Options(prune=False, merge=False, passes=False)
    assert Options.mode("b") == Options(prune=True, merge=False, passes=False)
    assert Options.mode("c") == Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().prune = False


BAD = [
    {"prune": 1},
    {"merge": None},
    {"passes": ("no such pass",)},
    {"precision": "fp8"},
    {"threads": 0},
    {"threads": 1.5},
    {"threads": True},
    {"memory": "8 apples"},
    {"memory": -1},
    {"memory": True},
]


@pytest.mark.parametrize("given", BAD, ids=str)
def test_bad_options(given):
    with pytest.raises(OptionsError, match=f"{next(iter(given))} is ") as caught:
        Options(**given)
    assert "\n" not in str(caught.value)


def test_spellings_people_use():
    assert Options.mode("B") == Options.mode("b")
    assert Options(threads=np.int64(2)).threads == 2
    assert Options(passes=["factor"]).passes == ("factor",)


def test_bad_mode():
    with pytest.raises(OptionsError, match="'d'; allowed: 'a', 'b', 'c'"):
        Options.mode("d")


ACTIVATIONS = [
    Identity(),
    ReLU(),
    ClippedReLU(6),
    Hardtanh(),
    Hardtanh(-2, 0.5),
    Hardtanh(None, 3),
    Hardtanh(1, None),
    Sigmoid(),
    Tanh(),
    GELU(),
    GELU("tanh"),
    SiLU(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations_say_what_they_do(activation):
    x = np.linspace(-10, 10, 41)
    y = activation(x)
    lower, upper = activation.clamp
    if not activation.curve:
        np.testing.assert_array_equal(y, np.minimum(np.maximum(x, lower), upper))
    lower, upper = activation.keeps
    kept = (x >= lower) & (x <= upper)
    np.testing.assert_array_equal(y[kept], x[kept])
    lower, upper = activation.range
    assert ((y >= lower) & (y <= upper)).all()
    fine = np.linspace(-9, 9, 90_001)
    assert np.abs(np.diff(activation(fine)) / 2e-4).max() <= activation.slope + 1e-6
    if activation.halves:
        np.testing.assert_allclose(activation(fine) - activation(-fine), fine, atol=1e-14)
    assert activation(np.zeros(1))[0] == activation.at_zero
    assert activation.monotone == bool((np.diff(y) >= 0).all())
    assert from_spec(activation.to_spec()) == activation


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {},
        {"name": "gelu?"},
        {"name": "relu", "upper": 3},
        {"name": "clipped_relu"},
        {"name": []},
    ],
)
def test_bad_specs(spec):
    with pytest.raises(ModelError, match="activation"):
        from_spec(spec)


@pytest.mark.parametrize("upper", [0, -1, float("inf"), float("nan"), "x", None])
def test_bad_upper(upper):
    with pytest.raises(ModelError, match="finite number above 0"):
        ClippedReLU(upper)


def make_result():
    blocks = [
        (np.array([7, 2]), np.array([[1, 5], [0, 0]], np.float32)),
        (np.array([4]), np.array([[3, 2]], np.float32)),
        (np.empty(0, np.int64), np.empty((0, 2), np.float32)),
    ]
    trace = [LayerTrace(5, 80, 0.5), LayerTrace(2, 40, 0.25)]
    return Result((9, 2), blocks, trace, seconds=1.0, nominal_edges=200, exact=["prune"])


def test_result():
    result = make_result()
    assert result.live.tolist() == [4, 7]
    assert result.live.dtype == np.int64
    assert result.live_outputs.tolist() == [[3, 2], [1, 5]]
    expected = np.zeros((9, 2), np.float32)
    expected[7], expected[4] = [1, 5], [3, 2]
    np.testing.assert_array_equal(result.outputs, expected)
    np.testing.assert_array_equal(np.asarray(result), expected)
    np.testing.assert_array_equal(result.labels, expected.argmax(axis=1))
    assert (result.samples, result.executed_edges, result.nominal_edges) == (9, 120, 200)
    assert "2 live" in repr(result)
    for live, edges, seconds in result.trace:
        assert live * edges * seconds > 0


def test_empty_result():
    result = Result((3, 2), [], [], seconds=0.0, nominal_edges=0)
    assert result.live.tolist() == []
    assert result.live_outputs.shape == (0, 2)
    assert result.outputs.tolist() == [[0, 0]] * 3
    assert result.labels.tolist() == [0, 0, 0]
