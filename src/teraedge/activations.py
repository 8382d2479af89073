"""Activations: the function a layer applies to every neuron after the bias."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from teraedge.errors import ModelError


class Activation(ABC):
    """A function applied elementwise; subclasses are frozen dataclasses of their parameters.

    Attributes
    ----------
    name : str
        The name in model files.
    monotone : bool
        True where a larger input never gives a smaller output.
    """

    name: ClassVar[str]
    monotone: ClassVar[bool]

    @abstractmethod
    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return f(x), elementwise, in the dtype of `x`."""

    @property
    @abstractmethod
    def at_zero(self) -> float:
        """f(0)."""

    @property
    @abstractmethod
    def clamp(self) -> tuple[float, float]:
        """(lower, upper) such that f(x) = min(max(x, lower), upper); infinite where unbounded."""

    def to_spec(self) -> dict[str, Any]:
        """Return the name and parameters as plain values, for metadata in files."""
        return {
            "name": self.name,
            **{field.name: getattr(self, field.name) for field in fields(self)},  # type: ignore[arg-type]
        }


@dataclass(frozen=True)
class Identity(Activation):
    """f(x) = x."""

    name: ClassVar[str] = "identity"
    monotone: ClassVar[bool] = True

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return x

    @property
    def at_zero(self) -> float:  # noqa: D102
        return 0.0

    @property
    def clamp(self) -> tuple[float, float]:  # noqa: D102
        return -math.inf, math.inf


@dataclass(frozen=True)
class ReLU(Activation):
    """f(x) = max(x, 0)."""

    name: ClassVar[str] = "relu"
    monotone: ClassVar[bool] = True

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.maximum(x, 0))

    @property
    def at_zero(self) -> float:  # noqa: D102
        return 0.0

    @property
    def clamp(self) -> tuple[float, float]:  # noqa: D102
        return 0.0, math.inf


@dataclass(frozen=True)
class ClippedReLU(Activation):
    """f(x) = min(max(x, 0), upper).

    Parameters
    ----------
    upper : float
        The largest output; finite and above 0. The Graph Challenge uses 32, ReLU6 is 6.

    Raises
    ------
    ModelError
        If `upper` is not a finite number above 0.
    """

    upper: float
    name: ClassVar[str] = "clipped_relu"
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            upper = float(self.upper)
        except (TypeError, ValueError, OverflowError):
            upper = math.nan
        if not (math.isfinite(upper) and upper > 0):
            raise ModelError(f"ClippedReLU upper is {self.upper!r}; give a finite number above 0")
        object.__setattr__(self, "upper", upper)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.clip(x, 0, self.upper))

    @property
    def at_zero(self) -> float:  # noqa: D102
        return 0.0

    @property
    def clamp(self) -> tuple[float, float]:  # noqa: D102
        return 0.0, self.upper


_KNOWN: dict[str, type[Activation]] = {kind.name: kind for kind in (Identity, ReLU, ClippedReLU)}


def from_spec(spec: Any) -> Activation:
    """Make the activation that `Activation.to_spec` described.

    Parameters
    ----------
    spec : dict
        "name" and the parameters of the activation.

    Raises
    ------
    ModelError
        If the name is not known or the parameters are not those of the activation.

    Examples
    --------
    >>> from_spec({"name": "clipped_relu", "upper": 32.0})
    ClippedReLU(upper=32.0)
    """
    name = spec.get("name") if isinstance(spec, dict) else None
    kind = _KNOWN.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ModelError(f"activation {spec!r} is not known; known names: {', '.join(_KNOWN)}")
    given = {key: value for key, value in spec.items() if key != "name"}
    expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if set(given) != expected:
        raise ModelError(
            f"activation {name!r} has parameters {sorted(given)}; it takes {sorted(expected)}"
        )
    return kind(**given)
