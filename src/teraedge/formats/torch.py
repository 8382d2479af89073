"""PyTorch modules to and from networks.

A module is traced by ``torch.fx`` and read, never called on data. Its answer is that of eval mode:
dropout does nothing, and BatchNorm uses its running statistics, folded into the layers beside it in
float64.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from teraedge.activations import (
    GELU,
    Activation,
    ClippedReLU,
    Hardtanh,
    Identity,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.errors import DependencyError, ModelError
from teraedge.network import Layer, Network

if TYPE_CHECKING:
    import torch


def from_torch(
    module: "torch.nn.Module",
    *,
    input_shape: tuple[int, ...] | None = None,
    lower_conv: bool = False,
    name: str | None = None,
) -> Network:
    """Make a network of a PyTorch module, without changing what it computes in eval mode.

    Takes ``nn.Sequential`` and whatever ``torch.fx`` can trace of Linear, ReLU, ReLU6, Hardtanh,
    clamp, Sigmoid, Tanh, GELU, SiLU, BatchNorm1d, Dropout, Identity, Flatten, sums of values and
    products with constants, as modules, functions or methods; at the end Softmax or LogSoftmax,
    which become the network's `head`, and argmax, which is left out: `Result.labels` is it.

    Weights may be pruned (``torch.nn.utils.prune``, any parametrisation), sparse or 2:4
    semi-structured, float16 or bfloat16. Those that are zero do not become edges.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    input_shape : tuple of int, optional
        Of the input, without the axis of samples. By default what the first Linear reads.
    lower_conv : bool, default False
        Turn Conv1d and Conv2d into sparse layers, one edge a multiply-add; needs `input_shape`.
        `Network.notes` says how many edges come of it.
    name : str, optional
        By default the name of the module's class.

    Returns
    -------
    Network
        Its `notes` say what was added to make it a chain, as for residual sums.

    Raises
    ------
    ModelError
        If the module cannot be traced, or has an operation that is not one of these.
    DependencyError
        If torch is not installed.

    Examples
    --------
    >>> import pytest; torch = pytest.importorskip("torch")
    >>> module = torch.nn.Sequential(torch.nn.Linear(784, 100), torch.nn.ReLU())
    >>> from_torch(module).n_out
    100
    """
    _need_torch()
    from teraedge.formats._torch_trace import read_module

    return read_module(module, input_shape, lower_conv, name)


def to_torch(network: Network) -> "torch.nn.Sequential":
    """Make a PyTorch module of a network: dense Linear layers and activations.

    Parameters
    ----------
    network : Network

    Returns
    -------
    torch.nn.Sequential
        In eval mode, on the CPU; its dtype is that of the layers. A head becomes Softmax or
        LogSoftmax.

    Raises
    ------
    DependencyError
        If torch is not installed.

    Examples
    --------
    >>> import pytest; torch = pytest.importorskip("torch")
    >>> to_torch(Network([Layer([[1.0, 0.0]], activation=ReLU())]))
    Sequential(
      (0): Linear(in_features=1, out_features=2, bias=False)
      (1): ReLU()
    )
    """
    torch = _need_torch()
    modules: list[Any] = []
    for layer in network:
        modules.append(_linear(torch, layer))
        modules += _activation(torch.nn, layer.activation)
    if network.head is not None:
        heads = {"softmax": torch.nn.Softmax, "log_softmax": torch.nn.LogSoftmax}
        modules.append(heads[network.head](dim=1))
    return torch.nn.Sequential(*modules).eval()


def _need_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise DependencyError("PyTorch is not installed; pip install 'teraedge[torch]'") from None
    return torch


def _linear(torch: Any, layer: Layer) -> Any:
    # Made without the random values that torch would draw.
    dense = torch.from_numpy(np.ascontiguousarray(layer.weights.toarray().T))
    with torch.device("meta"):
        module = torch.nn.Linear(
            layer.n_in, layer.n_out, bias=layer.bias is not None, dtype=dense.dtype
        )
    module.weight = torch.nn.Parameter(dense)
    if layer.bias is not None:
        bias = torch.from_numpy(np.array(layer.bias)).to(dense.dtype)
        module.bias = torch.nn.Parameter(bias)
    return module


def _activation(nn: Any, activation: Activation) -> list[Any]:
    """Return the modules for an activation: none for the identity."""
    match activation:
        case Identity():
            return []
        case ReLU():
            return [nn.ReLU()]
        case ClippedReLU(upper=6.0):
            return [nn.ReLU6()]
        case ClippedReLU() | Hardtanh():
            return [nn.Hardtanh(*activation.clamp)]
        case Sigmoid():
            return [nn.Sigmoid()]
        case Tanh():
            return [nn.Tanh()]
        case GELU():
            return [nn.GELU(approximate=activation.approximate)]
        case SiLU():
            return [nn.SiLU()]
    raise ModelError(f"PyTorch has no module for {activation!r}")
