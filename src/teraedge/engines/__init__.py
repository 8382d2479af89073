"""Engines: what runs a plan on a device."""

from teraedge.engines.engine import Engine
from teraedge.errors import ModelError, OptionsError
from teraedge.network import Network
from teraedge.options import Options

__all__ = ["Engine", "compile"]


def compile(  # noqa: A001 (the field's verb)
    network: Network, device: str = "cpu", options: Options | None = None
) -> Engine:
    """Compile a network for a device: all work that does not need the samples, done once.

    Parameters
    ----------
    network : Network
        Its layers are read one at a time.
    device : {"cpu"}
        Where to run.
    options : Options, optional
        By default ``Options()``: everything that is exact is on.

    Returns
    -------
    Engine

    Raises
    ------
    OptionsError
        If the device or the options are not known.
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
    if device != "cpu":
        raise OptionsError(f"device is {device!r}; allowed: 'cpu'")
    if not isinstance(network, Network):
        raise ModelError(
            f"the network is a {type(network).__name__}; give a teraedge.Network, for example "
            "teraedge.Network([layer, ...])"
        )
    if not isinstance(options, Options | None):
        raise OptionsError(
            f"options are a {type(options).__name__}; give teraedge.Options(...) or None"
        )
    from teraedge.engines.cpu import CpuEngine

    return CpuEngine.compile(network, Options() if options is None else options)
