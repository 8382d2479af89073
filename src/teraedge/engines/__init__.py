"""Engines: what runs a plan on a device."""

import re
from pathlib import Path

from teraedge.engines.engine import Engine
from teraedge.errors import FormatError, ModelError, OptionsError
from teraedge.network import Network
from teraedge.options import Options
from teraedge.text import a_type

__all__ = ["Engine", "compile", "load_plan"]

_DEVICES = re.compile(r"cpu|cuda(:(0|[1-9]\d*))?")


def compile(  # noqa: A001 (the field's verb)
    network: Network, device: str = "cpu", options: Options | None = None
) -> Engine:
    """Compile a network for a device: all work that does not need the samples, done once.

    Parameters
    ----------
    network : Network
        Its layers are read one at a time.
    device : str, default "cpu"
        Where to run: "cpu", "cuda" (the first GPU) or "cuda:1" (the second), and so on.
    options : Options, optional
        By default ``Options()``: everything that is exact is on.

    Returns
    -------
    Engine

    Raises
    ------
    OptionsError
        If the device or the options are not known.
    DeviceError
        If there is no such GPU.
    DependencyError
        If a GPU is asked for and ``teraedge[cuda13]`` is not installed.
    ModelError
        If a layer cannot be represented in the precision asked for.

    Examples
    --------
    >>> import numpy as np, teraedge
    >>> layer = teraedge.Layer(np.eye(3), bias=-1.0, activation=teraedge.ReLU())
    >>> network = teraedge.Network([layer])
    >>> result = teraedge.compile(network).run(np.array([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]))
    >>> result.outputs
    array([[0., 1., 2.], [0., 0., 0.]], dtype=float32)
    >>> result.live
    array([0])
    """
    if not isinstance(device, str) or not _DEVICES.fullmatch(device):
        raise OptionsError(f"device is {device!r}; allowed: 'cpu', 'cuda', 'cuda:1', ...")
    _check(network, options)
    options = Options() if options is None else options
    if device == "cpu":
        if options.precision != "fp32":
            raise OptionsError(
                f"precision is {options.precision!r}; on device 'cpu' only 'fp32' is allowed; "
                "give that, or run on a GPU with device 'cuda'"
            )
        from teraedge.engines.cpu import CpuEngine

        return CpuEngine.compile(network, options)
    from teraedge.engines.cuda.engine import CudaEngine

    return CudaEngine(network, options, device)


def load_plan(
    path: str | Path, *, network: Network | None = None, options: Options | None = None
) -> Engine:
    """Load what `Engine.save` wrote: an engine that is ready to run and needs no network.

    Layers are mapped from the file, so that several processes share them. What decided the plan
    must be the same here: the version of teraedge, the device and its vector width.

    Parameters
    ----------
    path : path
        ``*.safetensors``, or the ``*.safetensors.index.json`` of a large plan.
    network : Network, optional
        What the plan must have been compiled from; it is read to compare fingerprints.
    options : Options, optional
        By default those of the plan. `threads`, `memory` and `merge` may differ.

    Returns
    -------
    Engine

    Raises
    ------
    FormatError
        If a file is missing, cut short, malformed, or a plan for something else. Values are not
        checked: a flipped bit in a weight goes unseen.

    Examples
    --------
    >>> import numpy as np, tempfile, teraedge
    >>> engine = teraedge.compile(teraedge.Network([teraedge.Layer(np.eye(3))]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     engine.save(f"{folder}/plan.safetensors")
    ...     teraedge.load_plan(f"{folder}/plan.safetensors").run(np.ones((1, 3))).outputs
    array([[1., 1., 1.]], dtype=float32)
    """
    from teraedge.engines.cpu import CpuEngine
    from teraedge.plan.fingerprint import fingerprint
    from teraedge.plan.saved import open_plan

    saved = open_plan(path)
    _check(network, options, needed=False)
    if saved.device != "cpu":
        raise FormatError(f"{saved.path}: is for the device {saved.device!r}; allowed: 'cpu'")
    options = saved.options if options is None else options
    for name in ("prune", "chosen_passes", "precision"):
        given, wanted = getattr(saved.options, name), getattr(options, name)
        if given != wanted:
            raise FormatError(
                f"{saved.path}: was compiled with {name} {given!r} and {wanted!r} is wanted; "
                "compile the network with these options and save it again"
            )
    if network is not None and fingerprint(network) != saved.fingerprint:
        raise FormatError(
            f"{saved.path}: was compiled from another network; compile this one and save it again"
        )
    return CpuEngine.load(saved, options)


def _check(network: object, options: object, needed: bool = True) -> None:
    """Refuse what is neither a network nor options."""
    if not isinstance(network, Network) and (needed or network is not None):
        raise ModelError(
            f"the network is {a_type(network)}; give a teraedge.Network, as "
            "teraedge.Network([layer, ...]) or teraedge.Network(source)"
        )
    if not isinstance(options, Options | None):
        raise OptionsError(f"options are {a_type(options)}; give teraedge.Options(...) or None")
