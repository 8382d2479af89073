"""Which layers take another kernel for the sake of their neighbours.

Layers are laid out one by one; a change of kernels between two of them is a launch, and all rows go
through device memory. A few layers of the small or of the block kernel among others are therefore
better off in the resident kernel, if that is what their neighbours take.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from teraedge.plan.block_parts import BlockKind
from teraedge.plan.device import DeviceLayer, Kernel
from teraedge.plan.predict import predicted
from teraedge.plan.rates import FEW, Rates
from teraedge.plan.resident import resident_instead


def settled(layers: Sequence[DeviceLayer], rates: Rates, *, few: bool) -> list[DeviceLayer]:
    """Return layers, where those that save less than the changes of kernels are resident.

    Parameters
    ----------
    layers : sequence of DeviceLayer
    rates : Rates
        Of the device.
    few : bool
        Whether few samples may be left in time.
    """
    found: list[DeviceLayer] = []
    for (kernel, _), run in groupby(layers, key=_kind):
        part = list(run)
        borders = [part[0].n_in] * (len(found) > 0)
        borders += [part[-1].n_out] * (len(found) + len(part) < len(layers))
        longer = FEW if few and kernel == "small" else 1.0
        found += _settled_run(part, borders, rates, longer)
    return [layer if layer.instead is None else replace(layer, instead=None) for layer in found]


def _kind(layer: DeviceLayer) -> tuple[Kernel, BlockKind | None]:
    return layer.kernel, None if layer.block is None else layer.block.kind


def _settled_run(
    layers: list[DeviceLayer], borders: list[int], rates: Rates, longer: float
) -> list[DeviceLayer]:
    """Return layers as they are, or all resident.

    They may take so much `longer`. `borders` has the neurons between them and others.
    """
    if not borders or any(layer.instead is None for layer in layers):
        return layers
    others = [predicted(resident_instead(layer), rates) for layer in layers]
    saved = _seconds(others) - _seconds(layers) / longer
    cost = sum(rates.border_seconds(neurons, layers[0].itemsize) for neurons in borders)
    if any(layer.kernel != "resident" for layer in others) or saved >= cost:
        return layers
    return others


def _seconds(layers: list[DeviceLayer]) -> float:
    return sum(layer.choice.seconds or 0.0 for layer in layers)
