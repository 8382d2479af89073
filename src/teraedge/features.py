"""Features: the samples of a run, as the caller has them, checked but not copied."""

from typing import Any, Self, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, DTypeLike, NDArray

from teraedge.errors import FeatureError
from teraedge.text import a_type


class PackedFeatures:
    """0/1 features packed eight to a byte: an eighth of the memory of bytes.

    Parameters
    ----------
    bits : ndarray of uint8, shape (samples, ceil(neurons / 8))
        As `numpy.packbits(features, axis=1)` packs them, the first neuron in the highest bit.
        Bits past the last neuron must be zero. It may be an array of another library on a GPU,
        for an engine on that GPU; bits past the last neuron are not looked at then.
    neurons : int
        Columns of the unpacked matrix.

    Raises
    ------
    FeatureError
        If shape, dtype or the spare bits are not as above.

    Notes
    -----
    Rows are taken with slices, index arrays or masks, and stay packed; ``np.asarray`` unpacks to a
    uint8 matrix of 0 and 1.

    Examples
    --------
    >>> packed = PackedFeatures.from_dense([[1, 0, 1], [0, 0, 1]])
    >>> packed.shape, np.asarray(packed[1:])
    ((2, 3), array([[0, 0, 1]], dtype=uint8))
    """

    dtype = np.dtype(np.uint8)
    ndim = 2

    def __init__(self, bits: NDArray[np.uint8], neurons: int) -> None:
        on_gpu = not isinstance(bits, np.ndarray) and hasattr(bits, "__cuda_array_interface__")
        is_bytes = str(bits.dtype).rpartition(".")[2] == "uint8"  # as "torch.uint8"
        if not is_bytes or bits.ndim != 2 or bits.shape[1] != -(-neurons // 8):
            raise FeatureError(
                f"packed bits have shape {bits.shape} and dtype {bits.dtype}; {neurons} neurons "
                f"need uint8 of shape (samples, {-(-neurons // 8)})"
            )
        spare = bits.shape[1] * 8 - neurons
        if spare and not on_gpu and (bits[:, -1] & ((1 << spare) - 1)).any():
            raise FeatureError(
                f"packed bits are set past the last of {neurons} neurons; the last {spare} bits "
                "of a row must be zero"
            )
        self.bits = bits
        self.neurons = neurons

    @classmethod
    def from_dense(cls, features: ArrayLike) -> Self:
        """Pack a dense (samples, neurons) matrix that holds only 0 and 1."""
        dense = np.asarray(features)
        if dense.ndim != 2:
            raise FeatureError(f"features have shape {dense.shape}; give (samples, neurons)")
        ones = dense == 1
        if not (ones | (dense == 0)).all():
            raise FeatureError("features hold values other than 0 and 1; only those can be packed")
        return cls(np.packbits(ones, axis=1), dense.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, neurons)."""
        return self.bits.shape[0], self.neurons

    def count_ones(self) -> NDArray[np.int64]:
        """Return the number of ones of each sample, shape (samples,)."""
        counts: NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return counts

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: Any) -> Self:
        """Return the samples of a slice, an index array or a mask, still packed."""
        bits = self.bits[rows]
        if bits.ndim != 2:
            raise FeatureError("packed features are indexed by rows only: a slice, ids or a mask")
        return type(self)(bits, self.neurons)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("packed features cannot be unpacked without a copy")
        dense = np.unpackbits(self.bits, axis=1, count=self.neurons)
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"PackedFeatures({len(self)} samples x {self.neurons} neurons)"


Features: TypeAlias = PackedFeatures | sp.csr_array | NDArray[Any]
"""What engines take: packed bits, a canonical csr_array, or a real 2-D array on the host."""


def as_features(features: Any, n_in: int) -> Features:
    """Check features against a network and give them one of the three forms of `Features`.

    Parameters
    ----------
    features : PackedFeatures, SciPy sparse, ndarray, or host array with DLPack or ``__array__``
        Shape (samples, n_in); bool, integer or real numbers of at most 64 bits.
    n_in : int
        Neurons the network reads.

    Returns
    -------
    Features
        The same memory where the form was already right.

    Raises
    ------
    FeatureError
        If the kind, shape or dtype does not fit, a value is NaN or infinite, or the array lies on
        another device.
    """
    if sp.issparse(features):
        features = _canonical_csr(features)
    elif type(features) is not np.ndarray and not isinstance(features, PackedFeatures):
        features = _from_foreign(features)
    if isinstance(features, PackedFeatures) and not isinstance(features.bits, np.ndarray):
        raise FeatureError(
            "packed bits lie on a GPU and the engine runs elsewhere; give them as a NumPy array, "
            "or compile the network for that GPU"
        )
    if features.ndim != 2 or features.shape[1] != n_in:
        hint = "; for one sample give features[None, :]" if features.ndim == 1 else ""
        raise FeatureError(
            f"features have shape {features.shape}; the network reads (samples, {n_in}){hint}"
        )
    if features.dtype.kind not in "biuf" or features.dtype.itemsize > 8:
        raise FeatureError(
            f"features have dtype {features.dtype}; give bool, integers or real numbers"
        )
    values = features.data if sp.issparse(features) else features
    if features.dtype.kind == "f":
        _check_values(values)
    return features


def to_dense(features: Any, n_in: int) -> NDArray[np.float64]:
    """Check features and return them as a new dense float64 matrix, shape (samples, n_in)."""
    checked = as_features(features, n_in)
    dense = checked.toarray() if isinstance(checked, sp.csr_array) else np.asarray(checked)
    return dense.astype(np.float64)


def _canonical_csr(features: Any) -> sp.csr_array:
    try:
        csr = sp.csr_array(features)
        csr.check_format(full_check=True)
    except ValueError as error:
        raise FeatureError(f"features are not a valid sparse array: {error}") from None
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


def _from_foreign(features: Any) -> NDArray[Any]:
    """Take an array of another library without copying it off a device."""
    if isinstance(features, np.ma.MaskedArray) and features.mask.any():
        raise FeatureError("features are masked in places; fill them with numbers first")
    try:
        if hasattr(features, "__dlpack_device__") and features.__dlpack_device__()[0] != 1:
            raise BufferError("it is not in host memory")
        if hasattr(features, "__dlpack__") and not hasattr(features, "__array__"):
            return np.from_dlpack(features)
        array = np.asarray(features)
        if array.ndim == 0:
            raise TypeError("it is no array")
        return array
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise FeatureError(
            f"features are {a_type(features)} that cannot be read here: {error}; give a "
            "NumPy array, a SciPy sparse array, PackedFeatures, or a host array with DLPack"
        ) from None


def _check_values(values: NDArray[Any]) -> None:
    """Raise unless all values are finite in float32; NaN fails every comparison."""
    if values.dtype == np.float32 and (values.flags.c_contiguous or values.flags.f_contiguous):
        flat = values.ravel(order="K")
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):  # one fast pass, unless squares overflow
                return
    limit = np.finfo(np.float32).max
    low, high = values.min(initial=0), values.max(initial=0)
    if -limit <= low and high <= limit:
        return
    if np.isfinite(values).all():
        raise FeatureError("features hold values too large for fp32; scale them to within 3.4e38")
    raise FeatureError("features hold NaN or infinity; give finite numbers")
