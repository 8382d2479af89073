"""Networks and inputs made on demand: the Graph Challenge, RadiX-Nets, random networks, MNIST.

The modules are imported on first use, so that ``import teraedge.datasets`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teraedge.datasets import challenge, mnist, radixnet, random

__all__ = ["challenge", "mnist", "radixnet", "random"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'teraedge.datasets' has no attribute {name!r}")
    return import_module(f"teraedge.datasets.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
