"""Engine: the face every device's engine shows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from teraedge.errors import DeviceError
from teraedge.result import Result

if TYPE_CHECKING:
    from teraedge.options import Options
    from teraedge.plan.explain import Explanation


Progress: TypeAlias = Callable[[float], None]
"""Told from time to time how much is done, from 0 to 1, possibly from several threads."""


class Engine(ABC):
    """A compiled network, ready to run any number of times; made by `teraedge.compile`.

    Attributes
    ----------
    device : str
        Where it runs, as given to `compile`.
    hardware : str
        What that is, as its maker calls it.
    options : Options
    n_in, n_out : int
        Neurons the network reads and writes.
    edges : int
        Stored weights of the network as given.
    head : str or None
        Of the network; see `Network`.
    compile_seconds : float
        Wall time of compile.
    """

    device: str
    hardware: str
    options: "Options"
    n_in: int
    n_out: int
    edges: int
    head: str | None
    compile_seconds: float

    @abstractmethod
    def run(self, features: Any, *, progress: Progress | None = None) -> Result:
        """Run the network over samples.

        Parameters
        ----------
        features : array, shape (samples, n_in)
            NumPy or SciPy sparse, `PackedFeatures`, or any host array with DLPack or
            ``__array__``; bool, integers or real numbers.
        progress : callable, optional
            Called with the fraction done, from 0 to 1, also from other threads.

        Returns
        -------
        Result

        Raises
        ------
        FeatureError
            If the features do not fit the network or are not finite.
        """

    @abstractmethod
    def explain(self) -> "Explanation":
        """Explain, for every layer, its layout and kernel, how long it takes, and why.

        Returns
        -------
        Explanation
            ``print`` it; `rows` and `to_json` have the figures. After a run its times are those
            of the last run.
        """

    def save(self, path: str | Path) -> None:
        """Write the compiled plan, all layers included, for `teraedge.load_plan`.

        Parameters
        ----------
        path : path
            ``*.safetensors``; a large plan becomes several files beside it and an index, as a
            model does. A plan of that name is replaced once the new one is complete.

        Raises
        ------
        FormatError
            If the file cannot be written.
        DeviceError
            If plans of this device cannot be saved.
        """
        raise DeviceError(
            f"plans for {self.device!r} cannot be saved; save the network, or compile for 'cpu'"
        )

    @abstractmethod
    def close(self) -> None:
        """Give back threads and memory. A closed engine cannot run."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n_in} -> {self.n_out}, {self.edges:,} edges)"

    def __deepcopy__(self, memo: object) -> Self:
        """Return the engine itself: it owns threads and device memory, and runs do not change it.

        So copies of what holds one, such as a module or an estimator, share it.
        """
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
