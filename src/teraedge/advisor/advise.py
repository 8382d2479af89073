"""Run the layers of a network, and others of their shapes, and say what sparsity is worth."""

from collections.abc import Callable
from statistics import median

from teraedge.advisor.advice import Advised
from teraedge.advisor.bench import Bench, Target
from teraedge.advisor.dense import dense_program
from teraedge.advisor.rounds import measure
from teraedge.engines import compile as compile_network
from teraedge.errors import OptionsError
from teraedge.network import Layer, Network


def advise(
    network: Network,
    device: str = "cpu",
    *,
    target: Target = "throughput",
    budget: float = 45.0,
    progress: Callable[[float], None] | None = None,
) -> Advised:
    """Measure, layer by layer, what the sparsity of a network is worth on a device.

    Each layer runs alone, on random features of which half are zero after an activation that makes
    zeros; beside it a dense layer, random edges of several densities, and other patterns. All take
    turns, in rounds.

    Parameters
    ----------
    network : Network
    device : str, default "cpu"
    target : {"latency", "throughput"}
        One sample at a time, or many side by side.
    budget : float, default 45
        Seconds, about; what has not been measured when they have passed is left out.
    progress : callable, optional
        Told how much is done, from 0 to 1.

    Returns
    -------
    Advised

    Raises
    ------
    OptionsError
        If the target is not known.
    DeviceError
        If there is no such device.
    """
    if target not in ("latency", "throughput"):
        raise OptionsError(f"target is {target!r}; allowed: 'latency', 'throughput'")
    # Kernels that are compiled for the first time would take all of the budget.
    compile_network(Network([Layer([[1.0]])]), device).close()
    benches = [
        Bench(network[layers[0]], layers, device, target, _has_zeros(network, layers[0]))
        for layers in _alike(network)
    ]
    # First what each layer is worth now; then what it could be, those of most edges first.
    programs = [program for bench in benches for program in bench.first()]
    programs += [program for bench in benches for program in bench.others()]
    measure(programs, budget, progress or (lambda _: None))
    ran = [bench for bench in benches if bench.was_run]
    return Advised(
        device,
        next((bench.hardware for bench in ran), device),
        target,
        max((len(bench.features) for bench in ran), default=1),
        dense_program(device)[0],
        sorted((bench.advice() for bench in ran), key=lambda one: one.layers),
        sorted(number for bench in benches if not bench.was_run for number in bench.layers),
        max((bench.rounds for bench in ran), default=0),
        median([program.spread for program in programs if program.turns] or [1.0]),
    )


def _alike(network: Network) -> list[list[int]]:
    """Return the layers of the same shape and about the same density, those of most edges first."""
    groups: dict[tuple[int, int, str], list[int]] = {}
    edges = {}
    for number, layer in enumerate(network):
        key = layer.n_in, layer.n_out, f"{layer.edges:.1e}"
        groups.setdefault(key, []).append(number)
        edges[key] = layer.edges
    return [groups[key] for key in sorted(groups, key=lambda key: -edges[key])]


def _has_zeros(network: Network, number: int) -> bool:
    """Tell whether a layer reads what an activation has set to zero in half of the places."""
    return number > 0 and network[number - 1].activation.clamp[0] == 0
