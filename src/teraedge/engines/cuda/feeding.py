"""Features into tiles on the device, from the host or from the device."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp

from teraedge.engines.cuda.driver import Device, Memory, Stream
from teraedge.engines.cuda.specialisations import samples as sample_kernels
from teraedge.engines.cuda.state import BINS, RunState
from teraedge.errors import FeatureError
from teraedge.features import Features, PackedFeatures, as_features
from teraedge.options import Precision

KINDS = ("f4", "f8", "f2", "u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8")
"""Element types in the order of `enum Kind` of kernels/samples.cu."""
BLOCK = 256
SPREADING = ("block", "small", "bits")
"""Kernels that read packed features as they are."""
TURNED = ("chained", "wide")
"""Kernels that read them turned: bits of samples side by side."""


@dataclass(frozen=True)
class DeviceFeatures:
    """A matrix of features that lies on the device.

    Attributes
    ----------
    address : int
    shape : (int, int)
    strides : (int, int)
        In elements.
    dtype : numpy.dtype
    owner : object
        What the caller gave, kept alive; results come back as its kind.
    packed : bool
        Whether they are bits, as `PackedFeatures` has them; strides are in bytes then.
    """

    address: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    dtype: np.dtype[Any]
    owner: Any
    packed: bool = False

    def rows(self, first: int, last: int) -> "DeviceFeatures":
        """Return samples `first` to `last`."""
        address = self.address + first * self.strides[0] * self.dtype.itemsize
        return replace(self, address=address, shape=(last - first, self.shape[1]))


Given: TypeAlias = Features | DeviceFeatures


def as_given(features: Any, n_in: int, device: Device, stream: Stream) -> Given:
    """Check features; those on the device stay where they are, after what they wait for.

    Raises
    ------
    FeatureError
        If the kind, shape or dtype does not fit, or they lie on another device.
    """
    if isinstance(features, PackedFeatures):
        bits = device.view(features.bits, stream)
        if bits is None or features.shape[1] != n_in:
            return as_features(features, n_in)  # which says what is wrong
        if bits.strides[1] != 1:
            raise FeatureError("packed bits must have the bytes of a sample side by side")
        stride, owner = bits.strides[0], features.bits
        return DeviceFeatures(
            bits.address, features.shape, (stride, 1), bits.dtype, owner, packed=True
        )
    view = device.view(features, stream)
    if view is None:
        return as_features(features, n_in)
    shape, strides, dtype = view.shape, view.strides, view.dtype
    if len(shape) != 2 or shape[1] != n_in:
        hint = "; for one sample give features[None, :]" if len(shape) == 1 else ""
        raise FeatureError(
            f"features have shape {tuple(shape)}; the network reads (samples, {n_in}){hint}"
        )
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise FeatureError(f"features have dtype {dtype}; give bool, integers or real numbers")
    ends = shape[0], shape[1]
    return DeviceFeatures(view.address, ends, (strides[0], strides[1]), dtype, features)


class Loader:
    """Queues the loading of features on a stream."""

    def __init__(self, device: Device, stream: Stream, precision: Precision) -> None:
        self._device, self._stream = device, stream
        file, defines, names = sample_kernels(precision)
        self._kernels = device.kernels(file, defines, names)
        self._grid = device.multiprocessors * 8

    def give(
        self, features: Given, first: int, last: int, state: RunState, first_kernel: str | None
    ) -> tuple[Given, bool]:
        """Note that a run has samples `first` to `last`; packed ones are brought to the device.

        Returns
        -------
        features : Features or DeviceFeatures
            Of those samples; to be kept until the run is over.
        packed : bool
            Whether they are to be loaded as bits.
        """
        count = last - first
        if isinstance(features, DeviceFeatures):
            piece = features.rows(first, last)
            packed = piece.packed and count > 0
            state.give(count, first, *(piece.address, piece.strides[0]) if packed else (0, 0))
            return piece, packed
        found = features[first:last]
        if not isinstance(found, PackedFeatures) or count == 0:
            state.give(count, first)
            return found, False
        bits = np.ascontiguousarray(found.bits)
        memory = state.rows[0 if first_kernel in SPREADING else 1]  # that is not written next
        self._stream.to_device(memory, bits)
        state.give(count, first, memory.address, bits.shape[1])
        return found, True

    def load_bits(self, n: int, state: RunState, *, first_kernel: str | None, sorts: bool) -> None:
        """Queue the loading of packed features that were given.

        They stay as they are if the first layer spreads them itself, are turned if it wants bits
        turned, and are sorted by brightness where samples may die (`sorts`).
        """
        self._launch("begin", state.struct)
        if sorts:
            grid = self._device.multiprocessors * 2  # few blocks: each has bins of its own
            self._launch("count_bright", n, state.struct, grid=grid)
            self._stream.launch(self._kernels["sum_bins"], 1, BINS, 0, state.struct)
            self._launch("place_samples", state.struct, grid=grid)
        if first_kernel not in SPREADING:
            turns = first_kernel in TURNED
            self._launch("turn_bits" if turns else "load_packed", n, state.struct)

    def load_rows(self, features: Given, n: int, state: RunState) -> Any:
        """Queue the loading of other features, those that were given.

        Returns
        -------
        object
            To be kept until the stream has come so far.
        """
        self._launch("begin", state.struct)
        if features.shape[0] == 0:
            return None
        if isinstance(features, DeviceFeatures):
            return self._dense(features, n, state)
        if isinstance(features, sp.csr_array):
            return self._sparse(features, n, state)
        with np.errstate(over="ignore"):
            dense = np.ascontiguousarray(features, np.float32)
        memory = state.rows[1]
        self._stream.to_device(memory, dense)
        there = DeviceFeatures(memory.address, dense.shape, (n, 1), dense.dtype, dense)
        return self._dense(there, n, state)

    def mark(self, state: RunState, segment: int) -> None:
        """Queue the marking of the samples that are live before a segment."""
        self._launch("mark", state.struct, segment)

    def store(self, state: RunState, segment: int, n: int, rows: Memory, by_id: bool) -> None:
        """Queue the rows before a segment, row-major, into `rows`."""
        self._launch("store_rows", state.struct, segment, n, rows, by_id)

    def scatter(self, rows: Memory, ids: Memory, count: int, n: int, out: Memory) -> None:
        """Queue `count` rows to the places that int32 ids say in `out`, but those of -1."""
        self._launch("scatter_rows", rows, ids, count, n, out)

    def apply_head(self, head: str, rows: Memory, shape: tuple[int, int], out: Memory) -> None:
        """Queue a head over rows, row-major, of some shape."""
        self._launch("apply_head", rows, *shape, head == "log_softmax", out)

    def _dense(self, features: DeviceFeatures, n: int, state: RunState) -> Any:
        dtype = features.dtype
        kind = KINDS.index("u1" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize}")
        samples = features.shape[0]
        self._launch(
            "load_dense", features.address, kind, *features.strides, samples, n, state.struct
        )
        return features.owner

    def _sparse(self, piece: sp.csr_array, n: int, state: RunState) -> Any:
        arrays = (
            piece.indptr.astype(np.int64),
            piece.indices.astype(np.int32),
            piece.data.astype(np.float32),
        )
        memories = [self._device.allocate(array.nbytes) for array in arrays]
        for memory, array in zip(memories, arrays, strict=True):
            self._stream.to_device(memory, array)
        self._stream.fill(state.rows[0], 0)
        self._launch("load_sparse", *memories, piece.shape[0], n, state.struct)
        return memories

    def _launch(self, name: str, *arguments: int | Memory, grid: int | None = None) -> None:
        self._stream.launch(self._kernels[name], grid or self._grid, BLOCK, 0, *arguments)
