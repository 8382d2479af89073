"""Reading a traced PyTorch module, operation by operation; see `torch`."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as everybody does)
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn.utils.prune import BasePruningMethod

from teraedge.activations import GELU, Activation, Sigmoid, SiLU, Tanh, clipped
from teraedge.errors import ModelError
from teraedge.formats import _chain, _graph
from teraedge.formats._conv import REFUSED, convolved, same_padding
from teraedge.formats._graph import Value
from teraedge.formats._support import unsupported
from teraedge.formats._torch_functions import FUNCTIONS, METHODS, flatten, unflatten
from teraedge.network import Network
from teraedge.text import a_type

MODULES = (
    nn.Linear,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.GELU,
    nn.SiLU,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Softmax,
    nn.LogSoftmax,
    nn.Conv1d,
    nn.Conv2d,
)
"""Modules that are read as they are; others are looked into."""


def read_module(
    module: Any, input_shape: tuple[int, ...] | None, lower_conv: bool, name: str | None
) -> Network:
    """Return the network of a module; see `torch.from_torch`."""
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model is {a_type(module)}; give a torch.nn.Module, such as nn.Sequential(...)"
        )
    wrapped = getattr(module, "_orig_mod", None)  # of torch.compile
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped = module.module
    if wrapped is not None:
        return read_module(wrapped, input_shape, lower_conv, name)
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError("the model is compiled by torch.jit; give the nn.Module it was made from")
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise ModelError(
            f"the model is {a_type(module)}, which computes nothing; give nn.Sequential(*modules)"
        )
    required = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 1:
        raise ModelError(
            f"{type(module).__name__} has {len(required)} inputs; give a module of a single tensor"
        )
    outer = nn.Sequential(module)  # so that a module that is itself an operation is one node
    try:
        graph = _Tracer().trace(outer)
    except ModelError:
        raise
    except Exception as error:  # whatever the module does with a stand-in for its input
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"torch.fx cannot trace {type(module).__name__} ({reason}); give a module without "
            "control flow that depends on its input, or its chain as nn.Sequential"
        ) from None
    return Reader(outer, graph, input_shape, lower_conv).read(name or type(module).__name__)


class _Tracer(fx.Tracer):  # type: ignore[misc]
    """Looks into every module but those of `MODULES`, told by the forward that they have."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = _kind(m)
        where = module_qualified_name.removeprefix("0.")
        if kind is None:
            if type(m).__module__.startswith("torch.") and not isinstance(
                m, nn.Sequential | fx.GraphModule
            ):
                raise unsupported(f"{type(m).__name__} (module {where or '0'})")
            return False
        if any(nn.parameter.is_lazy(parameter) for parameter in m.parameters()):
            raise ModelError(f"{type(m).__name__} (module {where}) has no values yet; run it once")
        hooks = [
            hook
            for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
            if not isinstance(hook, BasePruningMethod)
        ]
        if hooks:
            raise ModelError(
                f"module {where} has the hook {type(hooks[0]).__name__}, which may change what it "
                "computes; remove it first"
            )
        return True


def _kind(module: nn.Module) -> Any:
    """Return which of `MODULES` computes what a module does, None where none does."""
    return next(
        (
            kind
            for kind in MODULES
            if isinstance(module, kind) and type(module).forward is kind.forward
        ),
        None,
    )


class Reader:
    """Turns the nodes of a traced module into values of a chain."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        input_shape: tuple[int, ...] | None,
        lower_conv: bool,
    ) -> None:
        self.module, self.graph, self.lower_conv = module, graph, lower_conv
        self.input_shape = input_shape
        self.dtype = np.dtype(np.float32)
        self.notes: list[str] = []
        self.known: dict[fx.Node, Any] = {}

    def read(self, name: str) -> Network:
        """Read all nodes, in their order."""
        output: Any = None
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = Value(self._input_shape(node), where="the input")
            elif node.op == "output":
                output = self._get(node.args[0])
            else:
                self.known[node] = self._node(node)
        if isinstance(output, tuple | list) and len(output) == 1:
            output = output[0]
        if not isinstance(output, Value):
            raise ModelError(
                f"the module returns {a_type(output)}; give one that returns a tensor "
                "that is computed from its input"
            )
        output = _graph.reshaped(output, (output.size,))
        return _chain.chain(output, dtype=self.dtype, name=name, notes=self.notes)

    def _input_shape(self, node: fx.Node) -> tuple[int, ...]:
        if self.input_shape is not None:
            return _graph.given_shape(self.input_shape)
        for other in self.graph.nodes:
            if other.op == "call_module":
                module = self.module.get_submodule(other.target)
                if isinstance(module, nn.Linear):
                    return (module.in_features,)
                if isinstance(module, nn.BatchNorm1d):
                    return (module.num_features,)
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    if not self.lower_conv:
                        raise ModelError(f"{type(module).__name__} is a convolution; {REFUSED}")
                    break
            if other.op == "call_function" and other.target is F.linear:
                return (int(self._attribute(other.args[1].target).shape[1]),)
        raise ModelError(
            "the shape of the input is not known; give input_shape, such as (784,) or (1, 28, 28)"
        )

    def _attribute(self, target: str) -> Any:
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        return value

    def _get(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self.known[node])

    def _node(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        arguments, keywords = self._get(node.args), self._get(node.kwargs)
        if node.op == "call_module":
            path = str(node.target)
            where = path.removeprefix("0.")
            module = self.module.get_submodule(path)
            given = [*arguments, *keywords.values()][0]
            where = f"{type(module).__name__} (module {where})"
            return self._apply(where, self._module, module, given, where)
        name = node.target if isinstance(node.target, str) else node.target.__name__
        where = f"{name} (node {node.name})"
        if node.op == "call_method":
            call = METHODS.get(str(node.target))
        else:
            call = FUNCTIONS.get(node.target)
        if call is None:
            raise unsupported(where)
        return self._apply(where, call, self, where, *arguments, **keywords)

    def _apply(self, where: str, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Call what reads an operation, which may refuse its arguments."""
        try:
            return call(*arguments, **keywords)
        except TypeError as error:
            raise ModelError(f"{where} has arguments that are not supported: {error}") from None

    def _module(self, module: Any, x: Any, where: str) -> Value:
        kind = _kind(module)
        if kind in (nn.Dropout, nn.Identity):
            return x  # type: ignore[no-any-return]
        if kind is nn.Linear:
            weight, bias = self.weight_of(module), self.bias_of(module)
            return self.linear(where, x, weight, bias)
        if kind in (nn.Conv1d, nn.Conv2d):
            return self.conv(where, x, module)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            return self.batch_norm(where, x, module)
        if kind is nn.Flatten:
            return flatten(self, where, x, module.start_dim, module.end_dim)
        if kind is nn.Unflatten:
            return unflatten(where, x, module.dim, module.unflattened_size)
        if kind in (nn.Softmax, nn.LogSoftmax):
            head = "softmax" if kind is nn.Softmax else "log_softmax"
            return _graph.ended(x, head, module.dim, where)
        return _graph.activated(x, _activation_of(kind, module), where)

    def weight_of(self, module: nn.Module, name: str = "weight") -> Any:
        """Return a parameter as it is now: pruning only writes it when the module is called."""
        original = getattr(module, f"{name}_orig", None)
        if original is not None:
            return original * getattr(module, f"{name}_mask")
        # A parametrisation may do something else, and change itself, while it is trained.
        training = [part for part in module.modules() if part.training]
        module.eval()
        try:
            with torch.no_grad():
                return getattr(module, name)
        finally:
            for part in training:
                part.training = True

    def bias_of(self, module: nn.Module) -> Any:
        """Return the bias, None where there is none."""
        if module.bias is None and getattr(module, "bias_orig", None) is None:
            return None
        return self.weight_of(module, "bias")

    def numbers(self, tensor: Any, where: str) -> NDArray[Any]:
        """Return a parameter as float32 or float64."""
        if not isinstance(tensor, torch.Tensor):
            return np.asarray(tensor)
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise ModelError(f"{where} has no values yet; load its weights first")
        if not (tensor.is_floating_point() or tensor.dtype in (torch.int32, torch.int64)):
            raise ModelError(
                f"{where} has numbers of {tensor.dtype}; give the model in float32, float16 or "
                "bfloat16, before it is quantised"
            )
        tensor = tensor.detach()
        if tensor.layout is not torch.strided or _is_wrapper(tensor):
            tensor = tensor.to_dense()
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()
        array: NDArray[Any] = tensor.cpu().numpy()
        self.dtype = np.result_type(self.dtype, array.dtype)
        return array

    def linear(self, where: str, x: Value, weight: Any, bias: Any = None) -> Value:
        """Return x W.T + b."""
        weights = self.numbers(weight, where)
        if weights.ndim != 2:
            raise ModelError(f"{where} has a weight of shape {weights.shape}; give a matrix")
        return _graph.linear(
            x, weights.T, None if bias is None else self.numbers(bias, where), where
        )

    def batch_norm(self, where: str, x: Value, module: Any) -> Value:
        """Return (x - mean) / sqrt(var + eps) gamma + beta, as a scale and a shift."""
        if module.running_mean is None or module.running_var is None:
            raise ModelError(
                f"{where} has no running statistics, so its answer depends on the batch; train "
                "with track_running_stats=True"
            )
        mean = self.numbers(module.running_mean, where).astype(np.float64)
        variance = self.numbers(module.running_var, where).astype(np.float64)
        scale = 1 / np.sqrt(variance + module.eps)
        shift = -mean * scale
        if module.affine:
            gamma = self.numbers(module.weight, where).astype(np.float64)
            beta = self.numbers(module.bias, where).astype(np.float64)
            scale, shift = scale * gamma, shift * gamma + beta
        if not x.shape or x.shape[0] != module.num_features:
            raise ModelError(f"{where} has {module.num_features} features and is given {x.shape}")
        across = (-1,) + (1,) * (len(x.shape) - 1)  # a channel has one scale
        return _graph.scaled(x, scale.reshape(across), shift.reshape(across), where)

    def conv(self, where: str, x: Value, module: Any) -> Value:
        """Return a convolution as a sparse layer."""
        if not self.lower_conv:
            raise ModelError(f"{where} is a convolution; {REFUSED}")
        if module.padding_mode != "zeros":
            raise ModelError(
                f"{where} has padding_mode {module.padding_mode!r}; only 'zeros' is supported"
            )
        if module.padding == "same":
            sizes = zip(module.kernel_size, module.dilation, strict=True)
            padding = [same_padding(length, step) for length, step in sizes]
        elif module.padding == "valid":
            padding = [(0, 0)] * len(module.kernel_size)
        else:
            padding = [(size, size) for size in module.padding]
        bias = self.bias_of(module)
        lowered, note = convolved(
            x,
            self.numbers(self.weight_of(module), where),
            None if bias is None else self.numbers(bias, where),
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=module.groups,
            where=where,
        )
        self.notes.append(note)
        return lowered


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is of another kind, such as 2:4 semi-structured."""
    return type(tensor) not in (torch.Tensor, nn.Parameter) and hasattr(tensor, "to_dense")


def _activation_of(kind: Any, module: Any) -> Activation:
    if kind is nn.ReLU:
        return clipped(0.0, math.inf)
    if kind in (nn.Hardtanh, nn.ReLU6):
        return clipped(float(module.min_val), float(module.max_val))
    if kind is nn.GELU:
        return GELU(module.approximate)
    return {nn.Sigmoid: Sigmoid(), nn.Tanh: Tanh(), nn.SiLU: SiLU()}[kind]
