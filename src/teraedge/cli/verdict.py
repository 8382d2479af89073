"""Whether the answer to a challenge network is right: by ids, never by counts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teraedge.text import count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from teraedge.features import PackedFeatures
    from teraedge.network import Layer, Network
    from teraedge.result import Result

OFFICIAL_LAYERS = range(120, 1921)
"""Depths that have an official answer. It is published for 120, 480 and 1920 layers and is the
same for all three; a sample that has died stays dead, so it holds for every depth between too."""

REFERENCE_EDGES = 1_000_000_000
"""What the float64 reference may spend where there is no official answer: a few seconds."""

_SHOWN_IDS = 5


@dataclass(frozen=True)
class Verdict:
    """What came of comparing the ids of a run with those it should have found.

    Attributes
    ----------
    official : bool
        Whether the truth is the official categories; else it is the float64 reference.
    samples : int
        How many of the first samples were compared.
    expected : int
        How many ids there should be among them.
    missing, extra : ndarray of int64
        0-based ids that should be there and are not, and the other way round.
    precision : str
        How activations were stored; a run that is not exact cannot pass.
    """

    official: bool
    samples: int
    expected: int
    missing: "NDArray[Any]"
    extra: "NDArray[Any]"
    precision: str = "fp32"

    @property
    def differ(self) -> int:
        """How many ids are missing or extra."""
        return len(self.missing) + len(self.extra)

    @property
    def passed(self) -> bool:
        """Whether the ids are the same, of a run in fp32."""
        return self.differ == 0 and self.precision == "fp32"

    @property
    def truth(self) -> str:
        """What the ids were compared with."""
        if self.official:
            return "the official categories"
        return f"the float64 reference on the first {count(self.samples, 'sample')}"

    def __str__(self) -> str:
        word = "PASSED" if self.passed else "FAILED"
        if self.precision != "fp32":
            ids = "id differs" if self.differ == 1 else "ids differ"
            word = f"{self.differ:,} {ids} with {self.precision}"
        if not self.official:
            word += " against the reference only"
        line = f"{word}, {self.expected - len(self.missing)} of {self.expected} ids"
        if not self.expected:
            line += f" (of {count(self.samples, 'sample')} none is live at the end)"
        wrong = [
            f"{len(ids):,} {kind} ({_first(ids)})"
            for kind, ids in (("missing", self.missing), ("extra", self.extra))
            if len(ids)
        ]
        return f"{line}: {', '.join(wrong)}" if wrong else line

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return {
            "passed": self.passed,
            "precision": self.precision,
            "truth": self.truth,
            "samples": self.samples,
            "expected": self.expected,
            "missing": len(self.missing),
            "extra": len(self.extra),
            "missing_ids": self.missing[:_SHOWN_IDS].tolist(),
            "extra_ids": self.extra[:_SHOWN_IDS].tolist(),
        }


def _first(ids: "NDArray[Any]") -> str:
    """Name the first few ids."""
    dots = ", ..." if len(ids) > _SHOWN_IDS else ""
    return ("id " if len(ids) == 1 else "ids ") + ", ".join(map(str, ids[:_SHOWN_IDS])) + dots


def verify(result: "Result", network: "Network", features: "PackedFeatures") -> Verdict:
    """Compare the ids of a run over a challenge network with the truth.

    Parameters
    ----------
    result : Result
    network : Network
        An official one, of any depth.
    features : PackedFeatures
        The first `result.samples` official inputs.

    Returns
    -------
    Verdict
        Against the official categories where there are any for this depth, else against the
        float64 reference on as many samples as it can do in a moment.
    """
    from teraedge.datasets import challenge

    official = challenge.categories(network.n_in)
    official = official[official < result.samples]
    if len(network) in OFFICIAL_LAYERS:
        return _compare(result, official, result.samples, official=True)
    return _verify_by_reference(result, network, features, official)


def _verify_by_reference(
    result: "Result", network: "Network", features: "PackedFeatures", official: "NDArray[Any]"
) -> Verdict:
    import numpy as np

    from teraedge import reference
    from teraedge.network import Network

    samples = max(1, min(result.samples, REFERENCE_EDGES // network.edges))
    expected = reference.run(Network(_Float32Layers(network)), features[:samples]).live
    if len(network) < OFFICIAL_LAYERS.start:
        # Whoever lives at the end of a deeper network also lives here, so these come for nothing.
        expected = np.union1d(expected, official[official < samples])
    return _compare(result, expected, samples, official=False)


class _Float32Layers:
    """The layers of a network with the numbers that an fp32 engine is given.

    Some rows of these networks are zero in exact arithmetic, and stay 1e-16 above it where a bias
    of -0.3 is rounded in one way and the sums in another. The reference must start from the same
    numbers as the engine to agree about them.
    """

    def __init__(self, network: "Network") -> None:
        self._network = network

    def __len__(self) -> int:
        return len(self._network)

    def __getitem__(self, index: int) -> "Layer":
        import numpy as np

        from teraedge.network import Layer

        layer = self._network[index]
        bias = None if layer.bias is None else layer.bias.astype(np.float32)
        return Layer(layer.weights, bias, layer.activation)


def _compare(
    result: "Result", expected: "NDArray[Any]", samples: int, *, official: bool
) -> Verdict:
    import numpy as np

    live = result.live[result.live < samples]
    missing, extra = np.setdiff1d(expected, live), np.setdiff1d(live, expected)
    return Verdict(official, samples, len(expected), missing, extra, result.precision)
