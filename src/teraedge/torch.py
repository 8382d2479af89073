"""An engine as a PyTorch module, for inference inside a larger model.

Importing this module imports torch; ``import teraedge`` does not.
"""

from typing import TYPE_CHECKING, Any

from teraedge.errors import DependencyError, FeatureError
from teraedge.text import a_type

try:
    import torch
except ImportError:
    raise DependencyError(
        "teraedge.torch needs PyTorch, which is not installed; pip install 'teraedge[torch]'"
    ) from None

if TYPE_CHECKING:
    from teraedge.engines import Engine

__all__ = ["EngineModule", "wrap"]


class EngineModule(torch.nn.Module):
    """A compiled network as a module without parameters; made by `wrap`.

    Attributes
    ----------
    engine : Engine
        Shared by copies of the module: ``copy.deepcopy`` does not compile anything again.
    """

    def __init__(self, engine: "Engine") -> None:
        super().__init__()
        self.engine = engine

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Run the network over samples.

        Parameters
        ----------
        features : Tensor, shape (..., n_in)
            On the engine's device; bool, integers or real numbers. On a GPU the engine waits for
            what the current stream has queued before, not for other streams.

        Returns
        -------
        Tensor of float32, shape (..., n_out)
            On the same device, ready to be read from any stream.

        Raises
        ------
        FeatureError
            If the features are not a tensor, lie on another device, do not fit the network, are
            not finite, or require a gradient while gradients are recorded.
        """
        if not isinstance(features, torch.Tensor):
            raise FeatureError(
                f"features are {a_type(features)}; give a torch.Tensor, or call "
                "engine.run for other arrays"
            )
        if features.requires_grad and torch.is_grad_enabled():
            raise FeatureError(
                "features require a gradient and teraedge only runs inference; call the module "
                "under torch.no_grad(), or give features.detach()"
            )
        if features.device.type != self.engine.device.partition(":")[0]:
            raise FeatureError(
                f"features lie on {str(features.device)!r} and the engine runs on "
                f"{self.engine.device!r}; move them, or compile the network for their device"
            )
        if features.ndim == 0 or features.shape[-1] != self.engine.n_in:
            raise FeatureError(
                f"features have shape {tuple(features.shape)}; the network reads "
                f"(..., {self.engine.n_in})"
            )
        samples = features.detach().reshape(-1, features.shape[-1])
        if samples.dtype in (torch.float16, torch.bfloat16):  # NumPy has no bfloat16
            samples = samples.float()
        return self._run(samples).reshape(*features.shape[:-1], self.engine.n_out)

    def _run(self, samples: torch.Tensor) -> torch.Tensor:
        if samples.device.type == "cpu":
            return torch.from_numpy(self.engine.run(samples.numpy()).outputs)
        with torch.cuda.device(samples.device):  # whose current stream DLPack hands over
            return self.engine.run(samples).outputs

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the module."""
        engine = self.engine
        return f"{engine.n_in} -> {engine.n_out}, {engine.edges:,} edges, {engine.device}"


def wrap(engine: "Engine") -> EngineModule:
    """Return an engine as an inference-only `torch.nn.Module`.

    Parameters
    ----------
    engine : Engine
        As `teraedge.compile` returns it. The module has no parameters, and ``to()`` does not move
        it: compile the network for the device where its inputs will be.

    Returns
    -------
    EngineModule

    Raises
    ------
    DependencyError
        When this module is imported and PyTorch is not installed.
    TypeError
        If `engine` is not an engine.

    Examples
    --------
    >>> import torch, teraedge
    >>> network = teraedge.Network([teraedge.Layer([[1.0], [2.0]])])
    >>> model = torch.nn.Sequential(teraedge.torch.wrap(teraedge.compile(network)))
    >>> model(torch.ones(3, 2))
    tensor([[3.],
            [3.],
            [3.]])
    """
    _check_engine(engine)
    return EngineModule(engine)


def _check_engine(engine: Any) -> None:
    from teraedge.engines import Engine

    if not isinstance(engine, Engine):
        raise TypeError(f"the engine is {a_type(engine)}; give what teraedge.compile returns")
