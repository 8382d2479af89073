"""Which layers take another kernel for the sake of their neighbours.

Layers are laid out one by one; a change of kernels between two of them is a launch, and all rows go
through device memory. A few small layers among others are therefore better off in the resident
kernel, which takes them as well.
"""

from collections.abc import Sequence
from itertools import groupby

from teraedge.plan.device import DeviceLayer
from teraedge.plan.predict import predicted
from teraedge.plan.rates import FEW, Rates
from teraedge.plan.resident import resident_instead


def settled(layers: Sequence[DeviceLayer], rates: Rates, *, few: bool) -> list[DeviceLayer]:
    """Return layers, where small ones that save less than the changes of kernels are resident.

    Parameters
    ----------
    layers : sequence of DeviceLayer
    rates : Rates
        Of the device.
    few : bool
        Whether few samples may be left in time.
    """
    found: list[DeviceLayer] = []
    for is_small, run in groupby(layers, key=lambda layer: layer.kernel == "small"):
        part = list(run)
        if is_small:
            borders = (len(found) > 0) + (len(found) + len(part) < len(layers))
            part = _settled_run(part, borders, rates, FEW if few else 1.0)
        found += part
    return found


def _settled_run(
    layers: list[DeviceLayer], borders: int, rates: Rates, longer: float
) -> list[DeviceLayer]:
    """Return small layers with so many borders to others as they are, or all resident.

    They may take so much `longer`.
    """
    if borders == 0:
        return layers
    others = [predicted(resident_instead(layer), rates) for layer in layers]
    saved = _seconds(others) - _seconds(layers) / longer
    if any(layer.kernel == "small" for layer in others) or saved >= borders * rates.switch:
        return layers
    return others


def _seconds(layers: list[DeviceLayer]) -> float:
    return sum(layer.choice.seconds or 0.0 for layer in layers)
