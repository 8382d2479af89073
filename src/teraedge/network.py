"""Layer and Network: the model as the user gave it, independent of any device."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from teraedge.activations import Activation, Identity
from teraedge.errors import ModelError
from teraedge.head import check_head
from teraedge.text import a_type

if TYPE_CHECKING:
    from teraedge.engines import Engine


class Layer:
    """One layer, y = f(x W + b), with mostly-zero W.

    Parameters
    ----------
    weights : sparse or dense array, shape (n_in, n_out)
        Row i holds the outgoing weights of input neuron i. Any real dtype: float32 and float64
        are kept, others become the smallest of the two that holds them. Duplicate entries of a
        sparse array are summed and indices sorted (on a copy); explicit zeros are kept. An
        array that needs no change is not copied: do not change it afterwards.
    bias : None, scalar or array, shape (n_out,)
        Added to every output neuron, also where x W is zero.
    activation : Activation, default Identity()
        The f above.

    Attributes
    ----------
    weights : scipy.sparse.csr_array, shape (n_in, n_out)
        Canonical: sorted, no duplicates.
    bias : None or ndarray, shape (n_out,)
        A scalar bias is a read-only broadcast view.
    activation : Activation

    Raises
    ------
    ModelError
        If a shape, dtype, index or value is not valid.

    Examples
    --------
    >>> Layer([[0.0, 2.0], [1.0, 0.0]], bias=-0.3)
    Layer(2 -> 2, 2 edges, Identity())
    """

    __slots__ = ("activation", "bias", "weights")

    def __init__(
        self,
        weights: Any,
        bias: ArrayLike | None = None,
        activation: Activation | None = None,
    ) -> None:
        self.weights = _canonical_weights(weights)
        self.bias = _canonical_bias(bias, self.n_out)
        self.activation = Identity() if activation is None else activation
        if not isinstance(self.activation, Activation):
            raise ModelError(
                f"activation is {activation!r}; give one of teraedge's, such as teraedge.ReLU()"
            )

    @classmethod
    def _of_valid(cls, weights: Any, bias: NDArray[Any] | None, activation: Activation) -> "Layer":
        """Make a layer of a canonical sparse array of floats, without looking at it again."""
        layer = cls.__new__(cls)
        layer.weights, layer.bias, layer.activation = weights.tocsr(), bias, activation
        return layer

    @property
    def n_in(self) -> int:
        """Neurons the layer reads."""
        return int(self.weights.shape[0])

    @property
    def n_out(self) -> int:
        """Neurons the layer writes."""
        return int(self.weights.shape[1])

    @property
    def edges(self) -> int:
        """Stored weights."""
        return int(self.weights.nnz)

    def __repr__(self) -> str:
        return f"Layer({self.n_in} -> {self.n_out}, {self.edges:,} edges, {self.activation!r})"


def _real_dtype(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """Return the storage dtype, float32 or float64, for values of `dtype`."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ModelError(f"{what} have dtype {dtype}; give real numbers of at most 64 bits")
    return np.result_type(dtype, np.float32)


def _canonical_weights(weights: Any) -> sp.csr_array:
    if not sp.issparse(weights):
        weights = np.asarray(weights)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ModelError(
            f"weights have shape {weights.shape}; give a 2-D array (n_in, n_out), both at least 1"
        )
    dtype = _real_dtype(weights.dtype, "weights")
    if not sp.issparse(weights):
        weights = weights.astype(dtype, copy=False)  # SciPy has no sparse float16
    try:
        csr = sp.csr_array(weights)
        # Kernels trust indices, so a corrupt array must not get past this point.
        csr.check_format(full_check=True)
    except ValueError as error:
        raise ModelError(f"weights are not a valid sparse array: {error}") from None
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    csr = csr.astype(dtype, copy=False)
    if not np.isfinite(csr.data).all():
        raise ModelError("weights hold NaN or infinity; give finite numbers")
    return csr


def _canonical_bias(bias: ArrayLike | None, n_out: int) -> NDArray[Any] | None:
    if bias is None:
        return None
    array = np.asarray(bias)
    array = array.astype(_real_dtype(array.dtype, "bias values"), copy=False)
    if array.ndim != 0 and array.shape != (n_out,):
        raise ModelError(f"bias has shape {array.shape}; give None, a scalar or ({n_out},)")
    if not np.isfinite(array).all():
        raise ModelError("bias holds NaN or infinity; give finite numbers")
    return np.broadcast_to(array, (n_out,)) if array.ndim == 0 else array


class LayerSource(Protocol):
    """A lazy source of layers: each is made or read when asked for, and not kept.

    It may also have attributes, so that nobody has to read layers to know: ``edges``, the stored
    weights of all its layers, ``n_in`` of the first and ``n_out`` of the last.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Layer: ...


class _Reiterable:
    """Gives what can only be iterated, again and again, the face of a LayerSource."""

    def __init__(self, fresh: Callable[[], Iterable[Layer]]) -> None:
        self._fresh = fresh
        self._length: int | None = None

    def __iter__(self) -> Iterator[Layer]:
        layers = self._fresh()
        if not isinstance(layers, Iterable):
            raise ModelError(
                f"the function of layers returned {a_type(layers)}; it must return an "
                "iterator of Layer"
            )
        return iter(layers)

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    def __getitem__(self, index: int) -> Layer:
        return next(islice(self, index, None))


class _Window:
    """Layers start to stop of a source, lazily."""

    def __init__(self, source: LayerSource, indices: range) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Layer:
        return self._source[self._indices[index]]


def _as_source(layers: Any) -> LayerSource:
    if isinstance(layers, Network):
        return layers._source
    if isinstance(layers, tuple | list | Iterator):
        return tuple(layers)
    if hasattr(layers, "__len__") and hasattr(layers, "__getitem__"):
        return layers  # type: ignore[no-any-return]
    if callable(layers):
        return _Reiterable(layers)
    if hasattr(layers, "__iter__"):
        return _Reiterable(lambda: layers)
    raise ModelError(
        f"layers is {a_type(layers)}; give a list of Layer, a lazy source with len() and "
        "indexing, or a function that returns an iterator of Layer"
    )


class Network:
    """A chain of layers, each reading what the one before wrote.

    A network is not to be changed: engines, and `predict`, keep what they compiled.

    Parameters
    ----------
    layers : list of Layer, LayerSource, callable, or iterable of Layer
        A list or tuple is kept. Anything else with ``len`` and indexing is a lazy source: it is
        asked for one layer at a time, every time. So are a callable without arguments that returns
        a fresh iterator of layers (a generator function) and an object that can be iterated again
        and again; these are run through once more to count them. A one-shot iterator can be read
        only once, so its layers are kept.
    name : str, optional
        For people.
    head : {"softmax", "log_softmax"}, optional
        What is done to a sample's last row at the end, over all of its outputs. `Result.outputs`
        are after it; which samples are live, and their labels, do not depend on it.
    notes : iterable of str
        What an importer did to make the network a chain, a sentence each; see `notes`.

    Attributes
    ----------
    name, head : str or None
    notes : tuple of str
        For people: not kept in files.

    Raises
    ------
    ModelError
        If there is no such head, no layer, an item is not a Layer, or a layer does not read as many
        neurons as the one before writes. The layers of a lazy source are checked whenever they are
        read.

    Examples
    --------
    >>> import numpy as np
    >>> Network([Layer(np.eye(3)), Layer(np.ones((3, 2)))])
    Network(2 layers, 3 -> 2, 9 edges)
    """

    def __init__(
        self,
        layers: Iterable[Layer] | LayerSource | Callable[[], Iterable[Layer]],
        *,
        name: str | None = None,
        head: str | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self.name = name
        self.head = check_head(head)
        self.notes = tuple(notes)
        self._source = _as_source(layers)
        self._n_in: int | None = getattr(self._source, "n_in", None)
        self._n_out: int | None = getattr(self._source, "n_out", None)
        self._edges: int | None = getattr(self._source, "edges", None)
        self._engine: Engine | None = None
        if len(self._source) == 0:
            raise ModelError("the network has no layers; give at least one")
        if isinstance(self._source, tuple):
            self._edges = sum(layer.edges for layer in self)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Layer]:
        source = self._source
        indexed = (source[index] for index in range(len(source)))
        previous: int | None = None
        for index, layer in enumerate(source if isinstance(source, _Reiterable) else indexed):
            _check_layer(layer, index, previous)
            previous = layer.n_out
            yield layer

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "Network": ...
    def __getitem__(self, index: int | slice) -> "Layer | Network":
        """Return one layer, or the network of a range of layers, with the head after the last."""
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            head = self.head if chosen and chosen[-1] == len(self) - 1 else None
            if isinstance(self._source, _Reiterable) and (index.step or 1) > 0:
                fresh, bounds = self._source, index.indices(len(self))
                return Network(
                    _Reiterable(lambda: islice(fresh, *bounds)), name=self.name, head=head
                )
            return Network(_Window(self._source, chosen), name=self.name, head=head)
        position = range(len(self))[index]
        layer = self._source[position]
        _check_layer(layer, position, None)
        return layer

    @property
    def n_in(self) -> int:
        """Neurons the first layer reads."""
        if self._n_in is None:
            self._n_in = self[0].n_in
        return self._n_in

    @property
    def n_out(self) -> int:
        """Neurons the last layer writes."""
        if self._n_out is None:
            self._n_out = self[-1].n_out
        return self._n_out

    @property
    def edges(self) -> int:
        """Stored weights of all layers; reads them all once where the source does not say."""
        if self._edges is None:
            self._edges = sum(layer.edges for layer in self)
        return self._edges

    def predict(self, features: Any) -> NDArray[np.int64]:
        """Return the index of the largest output of each sample, the first where several tie.

        Compiles the network for the CPU with default options at the first call; to choose the
        device or options, use `teraedge.compile` and `Result.labels`.

        Parameters
        ----------
        features : array, shape (samples, n_in)
            Anything that `Engine.run` takes.

        Returns
        -------
        ndarray of int64, shape (samples,)
        """
        if self._engine is None:
            from teraedge import engines

            self._engine = engines.compile(self)
        return self._engine.run(features).labels

    def __repr__(self) -> str:
        edges = "" if self._edges is None else f", {self._edges:,} edges"
        name = "" if self.name is None else f"{self.name!r}, "
        layers = f"{len(self)} layer{'s' if len(self) > 1 else ''}"
        head = "" if self.head is None else f", {self.head}"
        return f"Network({name}{layers}, {self.n_in} -> {self.n_out}{edges}{head})"


def _check_layer(layer: Any, index: int, n_in: int | None) -> None:
    if not isinstance(layer, Layer):
        raise ModelError(f"layer {index} is {a_type(layer)}; give a teraedge.Layer")
    if n_in is not None and layer.n_in != n_in:
        raise ModelError(
            f"layer {index} reads {layer.n_in} neurons but layer {index - 1} writes {n_in}; "
            "they must be equal"
        )
