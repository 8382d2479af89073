"""teraedge: sparse deep neural network inference, exact and as fast as the machine allows.

The public names are resolved on first use, so that ``import teraedge`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from teraedge import datasets, errors, formats, reference, rounding, sklearn, torch
    from teraedge.activations import (
        GELU,
        Activation,
        ClippedReLU,
        Hardtanh,
        Identity,
        ReLU,
        Sigmoid,
        SiLU,
        Tanh,
    )
    from teraedge.engines import Engine, compile, load_plan  # noqa: A004
    from teraedge.features import PackedFeatures
    from teraedge.formats import (
        from_onnx,
        from_safetensors,
        from_sklearn,
        from_torch,
        load,
        save,
        to_onnx,
        to_torch,
    )
    from teraedge.network import Layer, Network
    from teraedge.options import Options
    from teraedge.result import LayerTrace, Result

# public name -> the module that defines it
_HOMES = {
    "Activation": "activations",
    "ClippedReLU": "activations",
    "Engine": "engines",
    "GELU": "activations",
    "Hardtanh": "activations",
    "Identity": "activations",
    "Layer": "network",
    "LayerTrace": "result",
    "Network": "network",
    "Options": "options",
    "PackedFeatures": "features",
    "ReLU": "activations",
    "Result": "result",
    "SiLU": "activations",
    "Sigmoid": "activations",
    "Tanh": "activations",
    "compile": "engines",
    "from_onnx": "formats",
    "from_safetensors": "formats",
    "from_sklearn": "formats",
    "to_onnx": "formats",
    "from_torch": "formats",
    "load": "formats",
    "load_plan": "engines",
    "save": "formats",
    "to_torch": "formats",
}
_MODULES = ("datasets", "errors", "formats", "reference", "rounding", "sklearn", "torch")

__all__ = [
    "GELU",
    "Activation",
    "ClippedReLU",
    "Engine",
    "Hardtanh",
    "Identity",
    "Layer",
    "LayerTrace",
    "Network",
    "Options",
    "PackedFeatures",
    "ReLU",
    "Result",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "compile",
    "datasets",
    "errors",
    "formats",
    "from_onnx",
    "from_safetensors",
    "from_sklearn",
    "from_torch",
    "load",
    "load_plan",
    "reference",
    "rounding",
    "save",
    "sklearn",
    "to_onnx",
    "to_torch",
    "torch",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"teraedge.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"teraedge.{name}")
    else:
        raise AttributeError(f"module 'teraedge' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
