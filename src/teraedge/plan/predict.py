"""What a laid-out layer takes on a GPU, and which limit it runs against."""

from dataclasses import replace

from teraedge.plan.block import PANEL, STEP
from teraedge.plan.choice import Part
from teraedge.plan.cost import Limit
from teraedge.plan.device import DeviceLayer
from teraedge.plan.rates import Rates, chained_rows, products, steps

MULTIPLY_ADDS = 128
"""fp32 multiply-adds that a multiprocessor does in a clock."""
PRODUCT_CLOCKS = 6.2
"""Clocks that a product on tensor cores takes, 2048 multiply-adds, for eight samples; measured."""
TENSOR_CORES = 4
"""Of a multiprocessor."""


def predicted(layer: DeviceLayer, rates: Rates) -> DeviceLayer:
    """Return the layer with seconds a sample, and its limit, in its choice."""
    seconds = rates.seconds(layer)
    name, least = _limit(layer, rates)
    limit = Limit(name, min(least, seconds))
    return replace(layer, choice=replace(layer.choice, seconds=seconds, limit=limit))


def streamed(part: Part, samples: int, rates: Rates) -> Part:
    """Return what is told of a layer that comes from the host in every run.

    Parameters
    ----------
    part : Part
        With a prediction.
    samples : int
        Of a run, which share the copy.
    rates : Rates
    """
    choice = part.choice
    copy = part.nbytes / rates.host_bytes / max(samples, 1)
    if choice.seconds is not None and copy > choice.seconds:
        choice = replace(choice, seconds=copy, limit=Limit("copy", copy))
    why = f"{choice.why}; the layer comes from the host in every run"
    return part._replace(choice=replace(choice, why=why))


def _limit(layer: DeviceLayer, rates: Rates) -> Limit:
    """Return what no kernel of its kind could beat."""
    if layer.block is not None:
        kind = layer.block.kind
        fragments = layer.tall.slots / (PANEL * STEP)
        return _tensor(fragments * products(kind.terms, kind.precision), rates)
    if layer.kernel == "dense":
        return _tensor(
            layer.tall.slots / (PANEL * STEP) * products(layer.terms, layer.precision), rates
        )
    if layer.kernel == "small":
        return Limit("load", rates.seconds(layer))
    if layer.kernel in ("wide", "chained"):
        reads = layer.tall.slots / layer.tall.height + layer.single.slots
        if layer.kernel == "chained":
            reads = float(chained_rows(layer))
        rows = reads * layer.itemsize / rates.wide_bytes
        activations = rates.moved_seconds(layer.n_in + layer.n_out, layer.itemsize)
        return Limit("L2", rows) if rows > activations else Limit("HBM", activations)
    # Four reads of 128 bytes give 32 lanes four samples each.
    loads = (steps(layer.single) + steps(layer.tall)) / rates.speed
    sums = layer.edges / MULTIPLY_ADDS / rates.speed
    return Limit("load", loads) if loads > sums else Limit("fma", sums)


def _tensor(fragments: float, rates: Rates) -> Limit:
    """Return the time of products of 16 neurons by 16 inputs on tensor cores."""
    return Limit("tensor", fragments * PRODUCT_CLOCKS / 8 / TENSOR_CORES / rates.speed)
