"""The plan of a network on a GPU: which layers stay there, each laid out for its best kernel."""

from dataclasses import replace

import numpy as np

from teraedge.activations import Identity
from teraedge.engines.cuda.driver import Device
from teraedge.engines.cuda.feeder import PLACES
from teraedge.engines.cuda.once import with_lone
from teraedge.network import Layer, Network
from teraedge.options import Options
from teraedge.plan import gpu
from teraedge.plan.device import DeviceLayer
from teraedge.plan.kernel_sizes import STATIC_SHARED
from teraedge.plan.neighbours import settled
from teraedge.plan.plan import Plan, part_of
from teraedge.plan.predict import predicted
from teraedge.plan.rates import Rates


def plan_of(
    network: Network, options: Options, device: Device, rates: Rates, budget: int
) -> Plan[DeviceLayer]:
    """Return the plan, in which layers that stay have the best kernel among neighbours.

    Parameters
    ----------
    network : Network
    options : Options
    device : Device
    rates : Rates
        Of the device.
    budget : int
        Bytes for layers on the device.
    """
    few = options.prune or options.merge
    lay_out = _LayOut(options, device, rates, few)
    plan = Plan(network, options, lay_out, budget, PLACES)
    lay_out.keeps_lone = False  # layers that come from the host in every run have no use for it
    plan.resident = settled(plan.resident, rates, few=few)
    if plan.resident:
        room = device.shared_bytes - STATIC_SHARED
        plan.resident[0] = gpu.with_bits(plan.resident[0], room, rates)
    for number, layer in enumerate(plan.resident):
        plan.parts[number] = part_of(layer, plan.origin[number])
    return plan


class _LayOut:
    """Lays layers out for a device; `few` samples may be left in time."""

    def __init__(self, options: Options, device: Device, rates: Rates, few: bool) -> None:
        self._options, self._device, self._rates, self._few = options, device, rates, few
        self.keeps_lone = options.merge

    def __call__(self, layer: Layer) -> DeviceLayer:
        laid_out = gpu.lay_out(
            layer,
            self._device.shared_bytes,
            tensor_cores=self._device.tensor_cores,
            precision=self._options.precision,
            few=self._few,
            rates=self._rates,
        )
        if self.keeps_lone:
            laid_out = with_lone(laid_out, layer)
        return replace(predicted(laid_out, self._rates), copies=_copies(layer))


def _copies(layer: Layer) -> bool:
    """Tell whether each output is one input or zero, and every input is some output."""
    weights = layer.weights
    if weights.nnz > layer.n_out or not isinstance(layer.activation, Identity):
        return False
    if layer.bias is not None and np.any(layer.bias):
        return False
    readers = np.bincount(weights.indices, minlength=layer.n_out)
    return bool((weights.data == 1).all() and readers.max() <= 1 and np.diff(weights.indptr).all())
