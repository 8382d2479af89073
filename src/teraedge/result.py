"""Result: what a run gives back."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from teraedge.errors import ModelError, OptionsError
from teraedge.head import apply_head
from teraedge.options import Precision

if TYPE_CHECKING:
    from teraedge.network import Network

Block = tuple[NDArray[np.int64], NDArray[Any]]
"""Sample ids, and a row a sample."""

LazyBlock = tuple[NDArray[np.int64], NDArray[Any] | Callable[[], NDArray[Any]]]
"""The same, where the rows may be fetched when they are first asked for."""

LazyBlocks = Sequence[LazyBlock] | Callable[[], Sequence[LazyBlock]] | NDArray[Any]
"""Several, which may be found when they are first asked for; or the rows of all samples, in order:
these are handed out as they are."""


class LayerTrace(NamedTuple):
    """What one layer did in a run.

    Attributes
    ----------
    live : int
        Samples still live after the layer.
    edges : int
        Executed edges: multiply-adds of the samples that went into the layer.
    seconds : float
        The layer's share of the run; the shares of threads that ran side by side are averaged.
    """

    live: int
    edges: int
    seconds: float


class Top(NamedTuple):
    """The largest outputs of each sample, the largest first, and where they are.

    Attributes
    ----------
    labels : ndarray of int64, shape (samples, k)
    values : ndarray, shape (samples, k)
    """

    labels: NDArray[np.int64]
    values: NDArray[Any]


class Result:
    """The answer of a run, and what the run did.

    Rows of samples that were dropped, being zero for good, are not stored: `outputs` fills them in
    when asked, `live_outputs` never does.

    Parameters
    ----------
    shape : (int, int)
        (samples, n_out) of the whole answer.
    blocks : sequence of (ids, rows), or ndarray
        0-based sample ids, shape (k,), and their last rows, shape (k, n_out), in any order; or a
        function that returns the rows, or all of this, called when they are first asked for; or
        the rows of all samples, which `outputs` then need not copy.
    trace : sequence of LayerTrace
        One a layer; or a function that returns them, called when they are first asked for.
    seconds : float
        Wall time of the run, features in the caller's memory to rows in ours.
    nominal_edges : int
        Samples x edges of the network as given.
    exact : sequence of str
        What the run did to be faster without changing the answer, by name ("prune", ...).
    same_as : ndarray of int64, shape (samples,), optional
        For each sample the id of the one whose row is also its own; of itself where it ran.
    passes : mapping of str to int
        The passes that found something, and the edges a sample that each saved.
    rounding : sequence of str
        What makes the last bits differ from those of the reference, a sentence each.
    live : ndarray of int64, optional
        The ids with a nonzero last row, ascending, where they are known without the rows.
    head : str, optional
        That of the network, yet to be applied to `blocks`.
    precision : {"fp32", "fp16", "bf16"}
        How activations were stored; see `Options`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        blocks: LazyBlocks,
        trace: Sequence[LayerTrace] | Callable[[], Sequence[LayerTrace]],
        *,
        seconds: float,
        nominal_edges: int,
        exact: Sequence[str] = (),
        same_as: NDArray[np.int64] | None = None,
        passes: Mapping[str, int] | None = None,
        rounding: Sequence[str] = (),
        live: NDArray[np.int64] | None = None,
        head: str | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.shape = shape
        self._trace = trace
        self.seconds = seconds
        self.nominal_edges = nominal_edges
        self.exact = tuple(exact)
        self.passes = dict(passes or {})
        self.rounding = tuple(rounding)
        self.precision = precision
        self._lazy_blocks: LazyBlocks | None = blocks
        self._whole = blocks if isinstance(blocks, np.ndarray) else None
        self._same_as, self._live, self._head = same_as, live, head

    @property
    def trace(self) -> tuple[LayerTrace, ...]:
        """What each layer did, in the order of the network as given."""
        if not isinstance(self._trace, tuple):
            self._trace = tuple(self._trace() if callable(self._trace) else self._trace)
        return self._trace

    @property
    def samples(self) -> int:
        """Samples the run was given."""
        return self.shape[0]

    @property
    def executed_edges(self) -> int:
        """Multiply-adds that ran, over all layers."""
        return sum(layer.edges for layer in self.trace)

    @cached_property
    def _blocks(self) -> list[Block]:
        """The rows there are, fetched."""
        if self._whole is not None:
            return [(np.arange(self.samples), self._whole)]
        lazy, self._lazy_blocks = self._lazy_blocks or (), None  # fetched once, then given back
        found = lazy() if callable(lazy) else lazy
        blocks = [(ids, rows() if callable(rows) else rows) for ids, rows in found if len(ids)]
        return blocks if self._same_as is None else _with_equals(blocks, self._same_as)

    @cached_property
    def _live_rows(self) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Ids with a nonzero last row, sorted, and the positions of those rows in each block."""
        kept = [np.flatnonzero(rows.any(axis=1)) for _, rows in self._blocks]
        ids = [block[0][rows] for block, rows in zip(self._blocks, kept, strict=True)]
        live = np.concatenate(ids) if ids else np.empty(0, np.int64)
        return np.sort(live), kept

    @property
    def live(self) -> NDArray[np.int64]:
        """0-based ids of the samples whose last row is nonzero, ascending, shape (live,).

        A head does not count: its outputs are never all zero.
        """
        return self._live_rows[0] if self._live is None else self._live

    @cached_property
    def live_outputs(self) -> NDArray[Any]:
        """Last rows of the samples of `live`, in their order, shape (live, n_out)."""
        live, kept = self._live_rows
        out = np.empty((len(live), self.shape[1]), self._dtype)
        for (ids, rows), keep in zip(self._blocks, kept, strict=True):
            out[np.searchsorted(live, ids[keep])] = rows[keep]
        return apply_head(self._head, out)

    @property
    def outputs(self) -> Any:
        """Last rows of all samples, after the head, shape (samples, n_out)."""
        return self._on_host

    @cached_property
    def _on_host(self) -> NDArray[Any]:
        return apply_head(self._head, self._rows())

    def _rows(self) -> NDArray[Any]:
        """Return the last rows of all samples, before the head."""
        if self._whole is not None:
            return self._whole if self._head is None else self._whole.copy()
        blocks = self._blocks
        out = np.zeros(self.shape, blocks[0][1].dtype if blocks else np.float32)
        for ids, rows in blocks:
            out[ids] = rows
        return out

    def to_numpy(self) -> NDArray[Any]:
        """Return the last rows of all samples on the host, shape (samples, n_out).

        `outputs` gives them where the features were, which may be a GPU.
        """
        return self._on_host

    def to_pandas(self, *, live_only: bool = False, columns: Sequence[Any] | None = None) -> Any:
        """Return the last rows as a `pandas.DataFrame`, a row a sample.

        Parameters
        ----------
        live_only : bool, default False
            Only the samples of `live`.
        columns : sequence, shape (n_out,), optional
            A name for each output; by default 0, 1, ...

        Returns
        -------
        pandas.DataFrame
            float32, the sample ids as its index, named "sample".

        Raises
        ------
        DependencyError
            If pandas is not installed.
        """
        from teraedge.tables import to_pandas

        return to_pandas(self, live_only, columns)

    def to_arrow(self, *, live_only: bool = False) -> Any:
        """Return the answer as a `pyarrow.Table`, a row a sample, ready for Parquet.

        Parameters
        ----------
        live_only : bool, default False
            Only the samples of `live`.

        Returns
        -------
        pyarrow.Table
            Columns "sample" (int64), "label" (int64, the largest output) and "outputs"
            (fixed-size lists of n_out float32), of which the outputs are not copied.

        Raises
        ------
        DependencyError
            If pyarrow is not installed.
        """
        from teraedge.tables import to_arrow

        return to_arrow(self, live_only)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of the largest output of each sample, the first where several tie."""
        labels = np.zeros(self.samples, np.int64)  # of a row that is all zero, the first
        for ids, rows in self._blocks:
            labels[ids] = rows.argmax(axis=1)
        return labels

    def top(self, k: int) -> Top:
        """Return the `k` largest outputs of each sample, the first where several tie.

        Parameters
        ----------
        k : int
            From 1 to n_out.

        Returns
        -------
        Top
            On the host: labels and values, each of shape (samples, k). Values are after the head,
            and their order is that before it, which does not round ties together.

        Raises
        ------
        OptionsError
            If `k` is out of range.
        """
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.shape[1]:
            raise OptionsError(f"k is {k!r}; give a whole number from 1 to {self.shape[1]}")
        rows = self._rows()
        labels = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        return Top(labels, np.take_along_axis(apply_head(self._head, rows), labels, axis=1))

    def error_bound(self, network: "Network", features: Any) -> NDArray[np.float64]:
        """Bound how far each output may lie from the float64 reference, whatever `rounding` says.

        Costs a run of the reference; see `rounding.error_bound`.

        Parameters
        ----------
        network : Network
            The one that was run, as given.
        features : array, shape (samples, n_in)
            Those that were run.

        Returns
        -------
        ndarray of float64, shape (samples, n_out)

        Raises
        ------
        ModelError, FeatureError
            If they do not fit this result.
        """
        from teraedge.rounding import error_bound

        bound = error_bound(network, features, self.precision)
        if bound.shape != self.shape:
            raise ModelError(
                f"the network and features give {bound.shape} outputs and this result has "
                f"{self.shape}; give those of the run"
            )
        return bound

    @property
    def _dtype(self) -> np.dtype[Any]:
        return self._blocks[0][1].dtype if self._blocks else np.dtype(np.float32)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.outputs, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return (
            f"Result({self.samples} samples x {self.shape[1]} neurons, {len(self.live)} live, "
            f"{self.seconds:.3g} s)"
        )


def _with_equals(blocks: list[Block], same_as: NDArray[np.int64]) -> list[Block]:
    """Return the blocks with the rows of samples that did not run because they equal another."""
    if (same_as == np.arange(len(same_as))).all():
        return blocks
    by_root = np.argsort(same_as, kind="stable")
    roots = same_as[by_root]
    grown = []
    for ids, rows in blocks:
        first, last = np.searchsorted(roots, ids), np.searchsorted(roots, ids, "right")
        members = [by_root[a:b] for a, b in zip(first, last, strict=True)]
        grown.append((np.concatenate(members), np.repeat(rows, last - first, axis=0)))
    return grown
