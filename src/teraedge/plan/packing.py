"""Layers in panels as arrays and plain values, and back, with every check that kernels rely on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import CURVES
from teraedge.errors import FormatError
from teraedge.plan.choice import Part
from teraedge.plan.panels import PanelLayer, Panels

VERSION = 3
"""Of the layout: to be raised whenever kernels read a layer in another way."""

_ARRAYS = {"starts": np.int64, "weights": np.float32, "outputs": np.int32}


def pack_panels(layer: PanelLayer) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of a layer and what else it takes to make it again."""
    arrays: dict[str, NDArray[Any]] = {"bias": layer.bias}
    for name, panels in (("tall", layer.tall), ("single", layer.single)):
        for part in _ARRAYS:
            arrays[f"{name}.{part}"] = getattr(panels, part)
        # With the one behind the last, which kernels read and never use.
        arrays[f"{name}.indices"] = np.append(panels.indices, panels.indices.dtype.type(0))
    clamp = [None if math.isinf(bound) else bound for bound in layer.clamp]
    return arrays, {"clamp": clamp, "curve": layer.curve, "value": layer.value}


def unpack_panels(
    part: Part, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any], height: int
) -> PanelLayer:
    """Make the layer that `pack_panels` took apart.

    Parameters
    ----------
    part : Part
    arrays : mapping of str to ndarray
    values : mapping
    height : int
        Neurons of a tall panel.

    Raises
    ------
    FormatError
        If an array is missing, or has a dtype, size or value that kernels could not be given.
    """
    lower, upper = values["clamp"]
    if values["curve"] not in CURVES:
        raise FormatError(f"the curve is {ascii(values['curve'])[:40]}; allowed: {CURVES}")
    equal = values["value"] is not None
    tall = _panels("tall", part, arrays, height, equal)
    single = _panels("single", part, arrays, 1, equal)
    bias = _array("bias", arrays, np.float32)
    if len(bias) != part.n_out or not np.isfinite(bias).all():
        raise FormatError(f"bias must be {part.n_out} finite numbers")
    outputs = np.concatenate((tall.outputs, single.outputs))
    seen = np.zeros(part.n_out, np.bool_)
    if len(outputs) != part.n_out or outputs.min() < 0 or outputs.max() >= part.n_out:
        raise FormatError(f"outputs must be the neurons 0 to {part.n_out - 1}")
    seen[outputs] = True
    if not seen.all():
        raise FormatError("outputs must name every neuron once")
    return PanelLayer(
        n_in=part.n_in,
        n_out=part.n_out,
        edges=part.edges,
        tall=tall,
        single=single,
        value=float(values["value"]) if equal else None,
        bias=bias,
        clamp=(
            -math.inf if lower is None else float(lower),
            math.inf if upper is None else float(upper),
        ),
        choice=part.choice,
        curve=values["curve"],
    )


def _panels(
    name: str, part: Part, arrays: Mapping[str, NDArray[Any]], height: int, equal: bool
) -> Panels:
    """Return the tall or the single panels, checked."""
    starts, weights, outputs = (
        _array(f"{name}.{array}", arrays, dtype) for array, dtype in _ARRAYS.items()
    )
    index = np.uint16 if part.n_in <= 2**16 else np.uint32
    indices = _array(f"{name}.indices", arrays, index)
    if not len(indices):
        raise FormatError(f"{name}.indices must hold one more than there are")
    indices = indices[:-1]
    if len(starts) - 1 != len(outputs) / height:
        raise FormatError(f"{name}.starts must be one more than there are panels")
    if starts[0] != 0 or starts[-1] != len(indices) or (starts[1:] < starts[:-1]).any():
        raise FormatError(f"{name}.starts must ascend from 0 to the {len(indices)} indices")
    if len(indices) and int(indices.max()) >= part.n_in:
        raise FormatError(f"{name}.indices must be below {part.n_in}")
    if len(weights) != (0 if equal else len(indices) * height):
        raise FormatError(f"{name}.weights must be {height} an index, or none where all are equal")
    return Panels(height, starts, indices, weights, outputs)


def _array(name: str, arrays: Mapping[str, NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Return an array of the dtype that kernels read; one without entries is not in the file."""
    array = arrays.get(name, np.empty(0, dtype))
    if array.dtype != dtype or array.ndim != 1:
        raise FormatError(f"{name} is {array.dtype}; it must be {np.dtype(dtype)}")
    return array
