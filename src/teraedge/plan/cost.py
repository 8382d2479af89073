"""The cost model: what a layer costs one core, from its edges, its bytes and the machine's speeds.

A plan never measures. An engine measures its machine's `Constants` once and hands them to the
layouts, which compare the candidates for a layer by `Work.seconds` and keep the cheapest.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

VARIABLE = "TERAEDGE_CALIBRATION"
"""The environment variable that says what to take for measured speeds."""
Levels = tuple[float, float, float]
"""One number for what comes from L1, one for L2, and one for what comes from further away."""


@dataclass(frozen=True)
class Constants:
    """Speeds of one core, in ns a sample of a whole tile unless said otherwise.

    Parameters
    ----------
    tile : int
        Samples that run side by side.
    height : int
        Neurons of a tall panel.
    caches : (int, int)
        Bytes of a core's L1 data cache and of its L2.
    tall_edge, single_edge : (float, float, float)
        An input of a tall panel (`height` multiply-adds), and of a single neuron, by the cache that
        its row comes from.
    tall_run : float
        An input of a tall panel that reads all inputs one after the other, of a tile that fits L2.
    single_run : float
        An input of a single neuron that reads half of all inputs, of a tile that fits L2: caches
        fetch rows ahead that nobody asked for, which costs those that are asked for.
    tall_neuron, single_neuron : float
        What a neuron costs beside its edges: bias, activation, store, and the loop around them.
    load, store : float
        Reading a feature from the caller's array into a tile, and writing an output to a row.
    byte : float
        ns a tile, to read a byte of weights and indices from beyond L2.
    multiply_add : float
        A multiply-add at the machine's peak.
    read : (float, float, float)
        Loading a value at the machine's peak, by cache.
    """

    tile: int
    height: int
    caches: tuple[int, int]
    tall_edge: Levels
    single_edge: Levels
    tall_run: float
    single_run: float
    tall_neuron: float
    single_neuron: float
    load: float
    store: float
    byte: float
    multiply_add: float
    read: Levels

    def to_json(self) -> dict[str, Any]:
        """Return the constants as plain values."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Return the constants that `to_json` gave.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a value is not a finite number above 0.
        """
        if not isinstance(values, dict) or set(values) != set(_NAMES):
            raise ValueError(f"must be an object with the names {', '.join(_NAMES)}")
        return cls(**{name: _checked(name, values[name]) for name in _NAMES})

    def level(self, rows: int) -> int:
        """Return the number of the nearest cache that holds so many rows of a tile."""
        return sum(rows * self.tile * 4 > size for size in self.caches)

    def tall_ratio(self, rows: int) -> float:
        """Return what an input of a tall panel costs, in inputs of a single neuron.

        Parameters
        ----------
        rows : int
            Neurons that the layer reads and writes.
        """
        level = self.level(rows)
        return self.tall_edge[level] / self.single_edge[level]


_NAMES = tuple(field.name for field in fields(Constants))
_LENGTHS = {"caches": 2, "tall_edge": 3, "single_edge": 3, "read": 3}
_WHOLE = ("tile", "height", "caches")


def _checked(name: str, value: Any) -> Any:
    """Return a constant as its field has it."""
    many = value if name in _LENGTHS else [value]
    kind = int if name in _WHOLE else (int, float)
    if not isinstance(many, list | tuple) or len(many) != _LENGTHS.get(name, 1):
        raise ValueError(f"{name} must have {_LENGTHS.get(name, 1)} numbers")
    for number in many:
        if not isinstance(number, kind) or isinstance(number, bool) or not 0 < number < 1e12:
            raise ValueError(f"{name} must be finite and above 0")
    return tuple(many) if name in _LENGTHS else value


class Reads(NamedTuple):
    """Where the input rows of a layer come from.

    Attributes
    ----------
    shares : (float, float, float)
        How much of them comes from each cache; they add up to 1.
    following : float
        How much of them follow the one read before in memory, so that caches fetch them ahead.
    """

    shares: Levels
    following: float


class Limit(NamedTuple):
    """The least time that some part of the machine needs for a layer, and which part that is."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Work:
    """What a layer in a layout makes one core do for a sample.

    Attributes
    ----------
    edges : int
        Multiply-adds that are wanted: padding is not counted.
    tall_inputs, single_inputs : int
        Input rows loaded for tall panels, and for single neurons.
    tall_neurons, single_neurons : int
    nbytes : int
        Of the layer's arrays.
    rows : int
        Neurons it reads and writes.
    tall_reads, single_reads : Reads
        Where the input rows come from.
    """

    edges: int
    tall_inputs: int
    single_inputs: int
    tall_neurons: int
    single_neurons: int
    nbytes: int
    rows: int
    tall_reads: Reads
    single_reads: Reads

    def seconds(self, constants: Constants) -> float:
        """Predict the seconds one core takes for a sample."""
        tall, single = self.tall_reads, self.single_reads
        # A tall panel computes long enough for the next row to come, if it is fetched ahead.
        late = np.array(tall.shares) * (1 - tall.following)
        tall_input = np.dot(late, constants.tall_edge) + tall.following * constants.tall_run
        single_input = np.dot(single.shares, constants.single_edge)
        if single.shares[0] < 1:
            # Fetching ahead hurts as much as it can where a third of the rows follow another.
            slower = max(constants.single_run - constants.single_edge[1], 0.0)
            single_input += min(3 * single.following, 1.0) * slower * (1 - single.shares[0])
        inputs = self.tall_inputs * tall_input + self.single_inputs * single_input
        neurons = self.tall_neurons * constants.tall_neuron
        neurons += self.single_neurons * constants.single_neuron
        return 1e-9 * float(max(inputs + neurons, self._streaming(constants)))

    def limit(self, constants: Constants) -> Limit:
        """Return what no layout of the same panels could beat."""
        loads = self.tall_inputs * np.dot(self.tall_reads.shares, constants.read)
        loads += self.single_inputs * np.dot(self.single_reads.shares, constants.read)
        limits = [
            Limit("load", 1e-9 * float(loads)),
            Limit("fma", 1e-9 * self.edges * constants.multiply_add),
            Limit("memory", 1e-9 * self._streaming(constants)),
        ]
        # The first of those that are as good as equal, so that layers alike have the same.
        return max(limits, key=lambda limit: float(f"{limit.seconds:.1e}"))

    def _streaming(self, constants: Constants) -> float:
        """Return ns a sample to read the layer once a tile, where it does not stay in L2."""
        return self.nbytes * constants.byte / constants.tile if self._is_far(constants) else 0.0

    def _is_far(self, constants: Constants) -> bool:
        return self.nbytes > constants.caches[1]


def reads(inputs: NDArray[Any], rows: int, constants: Constants) -> Reads:
    """Estimate where the input rows that a layer loads come from.

    A row comes from a cache if it was loaded before within as many loads as the cache has room for
    rows: looked at in two windows of that length.

    Parameters
    ----------
    inputs : ndarray of int, shape (loads,)
        The input of each load, in the order of the loads.
    rows : int
        Neurons the layer reads and writes: a cache that holds them all misses nothing.
    constants : Constants
    """
    missed, following = [], 0.0
    for size in constants.caches:
        room = size // (4 * constants.tile)
        if rows <= room or not len(inputs):
            missed.append(0.0)
            continue
        spare = max(len(inputs) - room, 0)
        windows = [inputs[start : start + room] for start in (spare // 4, spare * 3 // 4)]
        missed.append(float(np.mean([len(np.unique(part)) / len(part) for part in windows])))
        following = following or float(np.mean([_following(part) for part in windows]))
    l1, l2 = missed[0], min(missed)
    return Reads((1 - l1, l1 - l2, l2), following)


def _following(window: NDArray[Any]) -> float:
    """Return the share of loads of the row after the one before."""
    return float(np.mean(np.diff(window.astype(np.int64)) == 1)) if len(window) > 1 else 0.0
