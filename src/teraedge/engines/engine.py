"""Engine: the face every device's engine shows."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from teraedge.result import Result

if TYPE_CHECKING:
    from teraedge.options import Options


class Engine(ABC):
    """A compiled network, ready to run any number of times; made by `teraedge.compile`.

    Attributes
    ----------
    device : str
        Where it runs, as given to `compile`.
    options : Options
    n_in, n_out : int
        Neurons the network reads and writes.
    edges : int
        Stored weights of the network as given.
    compile_seconds : float
        Wall time of compile.
    """

    device: str
    options: "Options"
    n_in: int
    n_out: int
    edges: int
    compile_seconds: float

    @abstractmethod
    def run(self, features: Any) -> Result:
        """Run the network over samples.

        Parameters
        ----------
        features : array, shape (samples, n_in)
            NumPy or SciPy sparse, `PackedFeatures`, or any host array with DLPack or
            ``__array__``; bool, integers or real numbers.

        Returns
        -------
        Result

        Raises
        ------
        FeatureError
            If the features do not fit the network or are not finite.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back threads and memory. A closed engine cannot run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
