"""The MIT/IEEE/Amazon Sparse DNN Graph Challenge: its networks, inputs and answers, exactly.

Networks and inputs are made from the challenge's generator rules, not read from its 137 GB of
files; sha256 values of official data guard them (graphchallenge.org, "Sparse Deep Neural Network").
"""

import hashlib
import logging
import lzma
import os
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teraedge.activations import ClippedReLU
from teraedge.cache import atomic_write, cache_dir
from teraedge.datasets import mnist
from teraedge.datasets._circulant import circulant_destinations, regular_csr
from teraedge.datasets._fourier import Progress, binary_images
from teraedge.errors import DataError, OptionsError
from teraedge.features import PackedFeatures
from teraedge.network import Layer, Network

SIZES = (1024, 4096, 16384, 65536)
MAX_LAYERS = 1920
SAMPLES = 60_000
FAN_IN = 32
BIASES = {1024: -0.30, 4096: -0.35, 16384: -0.40, 65536: -0.45}

# sha256 of the packed features of all samples, C order
_FEATURES_SHA256 = {
    1024: "2ccfa158de2a77480ded7f940a88fa9c6a2487dd0cf1547ed73c7e303e479976",
    4096: "dfa8fb78b59558e76140ad79b4ea9a891f98a15f2712b6639541071580512785",
    16384: "70bf6bcfd9050b52929c4d206598115d65c64ae48a49c320f0fdf8f6d423f085",
    65536: "fbae70e40ecfea3c858cd63c3fd83113b9f9e4d156b4fc5865b6cb7f388e374d",
}
_COPIES = 16  # neurons a class
_MATLAB_SEED = 5489  # of MATLAB's default random stream

_log = logging.getLogger(__name__)


def network(neurons: int, layers: int) -> Network:
    """Return an official network; its layers are made on demand and not kept.

    Every weight is 1/16 in float32, every neuron has 32 edges in and 32 out, the bias is one
    number, and the activation is ReLU clipped at 32. Fewer than 1920 layers are the first ones of
    the 1920-layer network, as in the official files.

    Parameters
    ----------
    neurons : {1024, 4096, 16384, 65536}
    layers : int
        1 to 1920; official are 120, 480 and 1920.

    Returns
    -------
    Network

    Raises
    ------
    OptionsError
        If there is no such network.

    Examples
    --------
    >>> network(1024, 120)
    Network('1024-120', 120 layers, 1024 -> 1024, 3,932,160 edges)
    """
    neurons = _check_neurons(neurons)
    return Network(
        _ChallengeLayers(neurons, _check_range("layers", layers, MAX_LAYERS)),
        name=f"{neurons}-{layers}",
    )


def features(
    neurons: int,
    samples: int | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PackedFeatures:
    """Return the official inputs: MNIST's 60,000 training images, resized and made binary.

    Those of 1024 neurons come with the package. The others are built from MNIST at the first call
    (seconds; 4 GB of memory for 65536 neurons) and then cached, 0.5 GB at most.

    Parameters
    ----------
    neurons : {1024, 4096, 16384, 65536}
        Pixels of an image.
    samples : int, optional
        Only the first so many; all 60,000 by default.
    source : path-like, optional
        The folder of MNIST's files; see `teraedge.datasets.mnist.images`.
    progress : callable, optional
        Called with the share of the work that is done, 0 to 1.

    Returns
    -------
    PackedFeatures, shape (samples, neurons)

    Raises
    ------
    OptionsError
        If neurons or samples are out of range.
    DataError, DependencyError
        If MNIST is needed and cannot be had.
    """
    neurons = _check_neurons(neurons)
    samples = SAMPLES if samples is None else _check_range("samples", samples, SAMPLES)
    if neurons == SIZES[0]:
        bits = _shipped_bits(neurons)
    elif (cached := _cached_bits(neurons, samples)) is not None:
        bits = cached
    else:
        bits = build_features(neurons, source=source, progress=progress).bits
        _keep(neurons, bits)
    if progress is not None:
        progress(1.0)
    return PackedFeatures(bits[:samples], neurons)


def build_features(
    neurons: int,
    *,
    source: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PackedFeatures:
    """Build the official inputs of all samples from MNIST, reading and writing no cached ones.

    Parameters, result and errors are those of `features`.
    """
    neurons = _check_neurons(neurons)
    side = int(neurons**0.5)
    bits = binary_images(mnist.images("train", source=source), side, progress)
    if hashlib.sha256(bits.data).hexdigest() != _FEATURES_SHA256[neurons]:
        raise DataError(
            f"the inputs built for {neurons} neurons are not the official ones, although MNIST's "
            "sha256 was right; report it with the versions of NumPy and its BLAS"
        )
    return PackedFeatures(bits, neurons)


def categories(neurons: int) -> NDArray[np.int64]:
    """Return the true answer: ids of the samples whose last row is nonzero, ascending.

    It is the same for 120, 480 and 1920 layers.

    Parameters
    ----------
    neurons : {1024, 4096, 16384, 65536}

    Returns
    -------
    ndarray of int64, shape (categories,)
        0-based; a new array at each call.

    Examples
    --------
    >>> len(categories(1024)), categories(1024)[:3]
    (1812, array([286, 294, 385]))
    """
    neurons = _check_neurons(neurons)
    text = _data(f"categories-{neurons}.txt").decode()  # 1-based, as in the official file
    return np.array(text.split(), np.int64) - 1


def _check_neurons(neurons: int) -> int:
    if not isinstance(neurons, int | np.integer) or neurons not in SIZES:
        raise OptionsError(
            f"the challenge has no network of {neurons!r} neurons; allowed: "
            f"{', '.join(map(str, SIZES))}"
        )
    return int(neurons)


def _check_range(name: str, value: int, most: int) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
        raise OptionsError(f"{name} is {value!r}; give a whole number from 1 to {most}")
    return int(value)


def _data(name: str) -> bytes:
    return (resources.files("teraedge.datasets") / "data" / name).read_bytes()


def _shipped_bits(neurons: int) -> NDArray[np.uint8]:
    content = lzma.decompress(_data(f"features-{neurons}.bits.xz"))
    if hashlib.sha256(content).hexdigest() != _FEATURES_SHA256[neurons]:
        raise DataError("the inputs in the installed package are damaged; install teraedge again")
    return np.frombuffer(content, np.uint8).reshape(SAMPLES, neurons // 8).copy()


def _cache_path(neurons: int) -> Path:
    return cache_dir() / f"challenge-features-{neurons}.bits"


def _cached_bits(neurons: int, samples: int) -> NDArray[np.uint8] | None:
    """Return the first rows of the cached file; None if it is absent or not right."""
    path = _cache_path(neurons)
    bits = np.empty((samples, neurons // 8), np.uint8)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.readinto(bits.data)
            digest.update(bits.data)
            while chunk := file.read(1 << 22):  # the rest only counts for the check
                digest.update(chunk)
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("cannot read cached inputs: %s; building them again", error)
        return None
    if digest.hexdigest() != _FEATURES_SHA256[neurons]:
        _log.warning("the cached inputs %s are damaged; building them again", path)
        return None
    return bits


def _keep(neurons: int, bits: NDArray[np.uint8]) -> None:
    """Write the cached file; a full or read-only disk costs only the next build."""
    try:
        with atomic_write(_cache_path(neurons)) as temporary:
            bits.tofile(temporary)
    except OSError as error:
        _log.warning("cannot cache the inputs: %s; set TERAEDGE_CACHE to another folder", error)


class _ChallengeLayers:
    """The layers of one official network, each made when asked for.

    Neurons form N/16 classes of 16. A period is log2(N/16) layers that together connect every
    class with every class: in layer i of a period, a neuron of class c writes to all neurons of
    classes c and c - 2**i. In all layers of a period but the first, the classes of the sources are
    dealt out by one random permutation.
    """

    def __init__(self, neurons: int, layers: int) -> None:
        self.neurons, self._layers = neurons, layers
        self.edges = neurons * FAN_IN * layers
        self.n_in = self.n_out = neurons
        self._classes = neurons // _COPIES
        self._period = _period(neurons)
        self._shuffles = _Shuffles(neurons, self._classes)

    def __len__(self) -> int:
        return self._layers

    def __getitem__(self, index: int) -> Layer:
        period, step = divmod(range(self._layers)[index], self._period)
        destinations = circulant_destinations(
            self._shuffles[period], np.array([0, -(1 << step)]), self._classes, _COPIES
        )
        values = np.full(destinations.size, 1 / 16, np.float32)
        weights = regular_csr(destinations, values, self.neurons)
        return Layer(weights, BIASES[self.neurons], ClippedReLU(32.0))

    def __reduce__(self) -> tuple[Any, ...]:
        return _ChallengeLayers, (self.neurons, self._layers)  # a lock cannot be pickled


def _period(neurons: int) -> int:
    """Return the layers of a period: log2 of the number of classes."""
    return (neurons // _COPIES).bit_length() - 1


_State = Any  # of a Mersenne Twister, as NumPy gives it


def _draw(state: _State, count: int) -> tuple[NDArray[np.float64], _State]:
    """Return the stream's next doubles in [0, 1), and its state after them."""
    # NumPy's legacy class draws the same numbers as MATLAB.
    stream = np.random.RandomState()
    stream.set_state(state)
    return stream.random_sample(count), stream.get_state()


class _Shuffles:
    """The class of every source neuron in each period; random access, safe between threads.

    The official generator drew all permutations from one stream, for the four sizes in order and
    1920 layers each. The state before each period is kept (2.5 KB each) so that none is drawn
    twice on the way to another.
    """

    def __init__(self, neurons: int, classes: int) -> None:
        self._neurons, self._classes = neurons, classes
        self._starts: list[_State] = []  # of periods 1, 2, ...
        self._latest: tuple[int, NDArray[np.int64]] | None = None
        self._lock = Lock()

    def __getitem__(self, period: int) -> NDArray[np.int64]:
        """Return the classes, shape (neurons,); shared, not to be written to."""
        latest = self._latest
        if latest is None or latest[0] != period:
            latest = self._latest = (period, self._deal(period))
        return latest[1]

    def _deal(self, period: int) -> NDArray[np.int64]:
        in_order = np.arange(self._neurons) % self._classes
        if period == 0:
            return in_order
        order = np.argsort(_draw(self._start(period), self._neurons)[0], kind="stable")
        dealt = np.empty_like(in_order)
        dealt[order] = in_order
        return dealt

    def _start(self, period: int) -> _State:
        with self._lock:
            if not self._starts:
                self._starts.append(self._first())
            while len(self._starts) < period:
                self._starts.append(_draw(self._starts[-1], self._neurons)[1])
            return self._starts[period - 1]

    def _first(self) -> _State:
        """Skip what the generator drew for the smaller sizes; period 0 draws nothing."""
        state: _State = np.random.RandomState(_MATLAB_SEED).get_state()
        for smaller in SIZES[: SIZES.index(self._neurons)]:
            periods = MAX_LAYERS // _period(smaller)
            state = _draw(state, (periods - 1) * smaller)[1]
        return state
