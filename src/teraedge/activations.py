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

    f is a smooth curve, or holds x between two bounds: f(x) = min(max(x, lower), upper).

    Attributes
    ----------
    name : str
        The name in model files.
    monotone : bool
        True where a larger input never gives a smaller output.
    slope : float
        An upper bound on ``|f'|``: how much larger an error of the input may become.
    halves : bool
        True where f(x) - f(-x) = x: two neurons with opposite inputs keep x.
    """

    name: ClassVar[str]
    monotone: ClassVar[bool]
    slope: ClassVar[float] = 1.0
    halves: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return f(x), elementwise, in the dtype of `x`."""

    @property
    def at_zero(self) -> float:
        """f(0)."""
        return float(self(np.zeros(1))[0])

    @property
    def clamp(self) -> tuple[float, float]:
        """(lower, upper) of the above; infinite where unbounded, and for a curve."""
        return -math.inf, math.inf

    @property
    def range(self) -> tuple[float, float]:
        """(lower, upper) between which all values lie."""
        return self.clamp

    @property
    def curve(self) -> str:
        """The name of the curve, one of `CURVES`; the first, "", where it is none."""
        return ""

    @property
    def keeps(self) -> tuple[float, float]:
        """(lower, upper) between which f(x) = x; (inf, -inf) for a curve, which does so nowhere."""
        return (math.inf, -math.inf) if self.curve else self.clamp

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
    halves: ClassVar[bool] = False  # x keeps itself

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return x


@dataclass(frozen=True)
class ReLU(Activation):
    """f(x) = max(x, 0)."""

    name: ClassVar[str] = "relu"
    monotone: ClassVar[bool] = True
    halves: ClassVar[bool] = True

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.maximum(x, 0))

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
        upper = _number(self.upper)
        if not (math.isfinite(upper) and upper > 0):
            raise ModelError(f"ClippedReLU upper is {self.upper!r}; give a finite number above 0")
        object.__setattr__(self, "upper", upper)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.clip(x, 0, self.upper))

    @property
    def clamp(self) -> tuple[float, float]:  # noqa: D102
        return 0.0, self.upper


@dataclass(frozen=True)
class Hardtanh(Activation):
    """f(x) = min(max(x, lower), upper).

    Parameters
    ----------
    lower, upper : float or None, default -1 and 1
        Finite, the first below the second; None where unbounded, one of them at most.

    Raises
    ------
    ModelError
        If they are not.
    """

    lower: float | None = -1.0
    upper: float | None = 1.0
    name: ClassVar[str] = "hardtanh"
    monotone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounds = [None if bound is None else _number(bound) for bound in (self.lower, self.upper)]
        object.__setattr__(self, "lower", bounds[0])
        object.__setattr__(self, "upper", bounds[1])
        finite = all(math.isfinite(bound) for bound in bounds if bound is not None)
        if not finite or bounds == [None, None] or not self.clamp[0] < self.clamp[1]:
            raise ModelError(
                f"Hardtanh bounds are {self.lower!r} and {self.upper!r}; give finite numbers, the "
                "first below the second, or None for one of them"
            )

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.clip(x, self.lower, self.upper))

    @property
    def clamp(self) -> tuple[float, float]:  # noqa: D102
        lower = -math.inf if self.lower is None else self.lower
        return lower, math.inf if self.upper is None else self.upper


@dataclass(frozen=True)
class Sigmoid(Activation):
    """f(x) = 1 / (1 + exp(-x))."""

    name: ClassVar[str] = "sigmoid"
    monotone: ClassVar[bool] = True
    slope: ClassVar[float] = 0.25

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        from scipy.special import expit

        return np.asarray(expit(x))

    @property
    def range(self) -> tuple[float, float]:  # noqa: D102
        return 0.0, 1.0

    @property
    def curve(self) -> str:  # noqa: D102
        return self.name


@dataclass(frozen=True)
class Tanh(Activation):
    """f(x) = tanh(x)."""

    name: ClassVar[str] = "tanh"
    monotone: ClassVar[bool] = True

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        return np.asarray(np.tanh(x))

    @property
    def range(self) -> tuple[float, float]:  # noqa: D102
        return -1.0, 1.0

    @property
    def curve(self) -> str:  # noqa: D102
        return self.name


@dataclass(frozen=True)
class GELU(Activation):
    """f(x) = x P(X < x) of a normal X, or its approximation with tanh.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415). The approximation,
    x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), is x / (1 + exp(-2 u)).

    Parameters
    ----------
    approximate : {"none", "tanh"}
        As in torch.

    Raises
    ------
    ModelError
        If `approximate` is something else.
    """

    approximate: str = "none"
    name: ClassVar[str] = "gelu"
    monotone: ClassVar[bool] = False
    slope: ClassVar[float] = 1.13
    halves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise ModelError(
                f"GELU approximate is {self.approximate!r}; allowed: 'none' and 'tanh'"
            )

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        from scipy.special import expit, ndtr

        if self.approximate == "none":
            return np.asarray(x * ndtr(x))
        return np.asarray(x * expit(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x)))

    @property
    def range(self) -> tuple[float, float]:  # noqa: D102
        return -0.171, math.inf

    @property
    def curve(self) -> str:  # noqa: D102
        return "gelu" if self.approximate == "none" else "gelu_tanh"


@dataclass(frozen=True)
class SiLU(Activation):
    """f(x) = x / (1 + exp(-x)), also called swish."""

    name: ClassVar[str] = "silu"
    monotone: ClassVar[bool] = False
    slope: ClassVar[float] = 1.1
    halves: ClassVar[bool] = True

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:  # noqa: D102
        from scipy.special import expit

        return np.asarray(x * expit(x))

    @property
    def range(self) -> tuple[float, float]:  # noqa: D102
        return -0.279, math.inf

    @property
    def curve(self) -> str:  # noqa: D102
        return self.name


CURVES = ("", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")
"""The curves that kernels know, by number."""


def _number(value: Any) -> float:
    """Return a parameter as a float, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


_KNOWN: dict[str, type[Activation]] = {
    kind.name: kind for kind in (Identity, ReLU, ClippedReLU, Hardtanh, Sigmoid, Tanh, GELU, SiLU)
}


def clipped(lower: float, upper: float) -> Activation:
    """Return the activation that holds values between two bounds, which may be infinite.

    Raises
    ------
    ModelError
        If the first is not below the second.
    """
    if (lower, upper) == (-math.inf, math.inf):
        return Identity()
    if lower == 0:
        return ReLU() if upper == math.inf else ClippedReLU(upper)
    return Hardtanh(None if lower == -math.inf else lower, None if upper == math.inf else upper)


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
