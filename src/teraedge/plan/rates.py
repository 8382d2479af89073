"""What a layer takes on a GPU in each of the CUDA kernels: to choose between them, and to predict.

A plan never measures. The engine measures its GPU's `Rates` once (`engines.cuda.measure`) and hands
them to the layouts; all seconds here are a sample's, with all samples live and enough of them to
fill the GPU.
"""

from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from typing import Any, Self

from teraedge.options import Precision
from teraedge.plan.block import PANEL, STEP
from teraedge.plan.block_parts import BlockKind
from teraedge.plan.device import DeviceLayer, DevicePanels
from teraedge.plan.kernel_sizes import LANES, WARPS
from teraedge.plan.panels import PanelLayer
from teraedge.plan.staged import CHUNKS, READS_A_STEP, SAMPLES, SLICES, WIDTH, Staging
from teraedge.plan.terms import MOST_TERMS, PLANES

WIDE_HEIGHTS = (16, 8)
"""Neurons that tall panels may have in the wide kernel."""
SWITCH_BYTES = 4250
"""What a change of kernels costs a sample, as bytes of device memory: a launch, and all rows
written and read."""
CHAINED = 0.65
"""What the chained kernel reaches of the bytes a second that the wide one does for tall panels: it
has more to do for each, as it takes 64 samples at a time and not 128. So it is the faster where it
reads no more than so much of the rows. Measured apart, both are small differences of large times,
and layers that share half of their rows would change kernels with the noise."""
FEW_CLOCKS, FEW_EDGE_CLOCKS, FEW_NEURON_CLOCKS = 250, 0.25, 0.3
"""Clocks of a layer over a few samples: from barrier to barrier, and for each edge and neuron."""
SCHEDULERS = 4
BITS_EQUAL, BITS_EDGE, BITS_OUTPUT, BITS_TURN, BITS_ISSUED = 12, 2.5, 12, 45, 0.5
"""Instructions of the kernel for packed features: an edge of equal weights for 32 samples, one of
distinct weights for a sample, an output for a sample, and turning the bits of an input for 32
samples; and the share of issue slots that it uses."""
MERGE_SECONDS = 25e-6
"""What it takes to look for equal samples and to put them back, five launches."""
FEW = 1.5
"""How much longer than the resident kernel the small one may take for many samples: with few of
them left, as is soon the case, a layer takes 0.5 to 1 microsecond there, and 5 in the resident
kernel."""


def products(terms: int, precision: Precision = "fp32") -> int:
    """Return the products on tensor cores for each multiply-add.

    Parameters
    ----------
    terms : int
        Of a weight.
    precision : {"fp32", "fp16", "bf16"}
        How activations are stored.
    """
    most, planes = MOST_TERMS[precision], PLANES[precision]
    return sum(a + b < most for a in range(max(terms, 1)) for b in range(planes))


@dataclass(frozen=True)
class Rates:
    """How fast a GPU's kernels are; by default those of one H200.

    Attributes
    ----------
    multiprocessors : int
    clock : float
        Hz.
    single_reads, tall_reads : float
        Reads of 128 bytes a second from shared memory, for single neurons and for tall panels.
    list_bytes : float
        Bytes a second of indices and weights that the kernels which gather from shared memory read.
    border : float
        Seconds that a block of threads waits between two layers, or two parts of one.
    block_tile : float
        Seconds of the block kernel for 16 neurons by 16 inputs and a tile of samples.
    block_sample, block_product : float
        The same for each sample, and for each product of a sample on tensor cores.
    dense_edge, dense_product : float
        Seconds of the dense kernel for an edge, and for each product of it.
    staged_reads, staged_bytes : float
        Reads of 128 bytes a second of the staged kernel, and bytes of rows that it brings.
    wide_bytes, tall_bytes : float
        Bytes of rows of fp32 a second of the wide kernel, for single neurons and for panels of 16.
    small_edge, small_neuron : float
        Seconds of the small kernel for an edge and for a neuron.
    hbm_bytes : float
        Bytes a second of a copy within device memory, read and written.
    host_bytes : float
        Bytes a second from page-locked memory of the host.
    """

    multiprocessors: int = 132
    clock: float = 1.98e9
    single_reads: float = 2.61e11
    tall_reads: float = 1.1e11
    list_bytes: float = 6.2e12
    border: float = 3.5e-6
    block_tile: float = 9.1e-11
    block_sample: float = 1.2e-12
    block_product: float = 1.33e-12
    dense_edge: float = 4.6e-15
    dense_product: float = 4.2e-15
    staged_reads: float = 2.61e11
    staged_bytes: float = 3.5e12
    wide_bytes: float = 9.1e12
    tall_bytes: float = 6.8e12
    small_edge: float = 2.37e-13
    small_neuron: float = 2.15e-12
    hbm_bytes: float = 4.2e12
    host_bytes: float = 5.5e10

    def scaled(self, multiprocessors: int, clock: float) -> Self:
        """Return rates of a GPU that nobody measured: as much faster or slower as its clocks.

        Parameters
        ----------
        multiprocessors : int
        clock : float
            Hz.
        """
        faster = multiprocessors * clock / self.speed
        values = {
            name: value * faster if name.endswith(("_reads", "_bytes")) else value / faster
            for name, value in self.to_json().items()
        }
        values |= {"multiprocessors": multiprocessors, "clock": clock}
        return replace(self, **values | {"border": self.border * self.clock / clock})

    def to_json(self) -> dict[str, Any]:
        """Return the rates as plain values."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Return the rates that `to_json` gave.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a value is not a finite number above 0.
        """
        if not isinstance(values, dict) or set(values) != set(_NAMES):
            raise ValueError(f"must be an object with the names {', '.join(_NAMES)}")
        for name, value in values.items():
            kind = int if name == "multiprocessors" else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number")
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and above 0")
        return cls(**values)

    @property
    def speed(self) -> float:
        """Clocks a second of all multiprocessors: reads that their shared memory serves at most."""
        return self.multiprocessors * self.clock

    @property
    def switch(self) -> float:
        """What another kernel must save to be worth a change."""
        return SWITCH_BYTES / self.hbm_bytes

    def border_seconds(self, neurons: int, itemsize: int) -> float:
        """Return what a change of kernels takes: all rows are written and read again."""
        return max(self.switch, 2 * self.moved_seconds(neurons, itemsize))

    @property
    def fastest(self) -> float:
        """Edges a second beyond which no kernel but the dense one gets."""
        return PANEL * STEP / self.fragment_seconds(1, 16)

    @property
    def slowest(self) -> float:
        """Edges a second that all kernels reach."""
        return self.wide_bytes / 8

    def small_seconds(self, edges: int, neurons: int) -> float:
        """Return what the small kernel takes."""
        return edges * self.small_edge + neurons * self.small_neuron

    def wave_seconds(self, layer: DeviceLayer, samples: int) -> float:
        """Return what a layer takes if each multiprocessor has one tile, of so many samples."""
        return self.seconds(layer) * samples * self.multiprocessors

    def few_seconds(self, edges: int, neurons: int) -> float:
        """Return what the kernel for a few samples takes: one wave, of four samples each."""
        return (FEW_CLOCKS + edges * FEW_EDGE_CLOCKS + neurons * FEW_NEURON_CLOCKS) / self.clock

    def gathered_seconds(self, single: float, tall: float, samples: int, equal: bool) -> float:
        """Return what the resident kernel takes.

        Parameters
        ----------
        single, tall : float
            How often 32 lanes read an input each, for single neurons and for tall panels.
        samples : int
            Of a tile.
        equal : bool
            Whether all weights are, so that only indices are read besides.
        """
        chunks = samples // 4
        # Of two bytes for an index, and of four for a weight.
        seconds = single * (4 * chunks + (0.5 if equal else 1.5)) / self.single_reads
        # Two chunks of samples at a time, and for each the indices and weights once more; those
        # cost less than their bytes, as they come from further away meanwhile.
        splits = max(1, chunks // 2)
        seconds += tall * (4 * chunks + splits * (1 if equal else 3)) / self.tall_reads
        nbytes = (single + tall) * LANES * 2
        if not equal:
            nbytes += (single + tall * 4) * LANES * 4
        border = self.border / self.multiprocessors
        return (max(seconds, nbytes / self.list_bytes) + border) / samples

    def resident_seconds(self, layer: PanelLayer, samples: int) -> float:
        """Return what the resident kernel takes with tiles of so many samples, 0 for none."""
        if samples == 0:
            return inf
        single, tall = len(layer.single.indices) / LANES, len(layer.tall.indices) / LANES
        return self.gathered_seconds(single, tall, samples, layer.value is not None)

    def fragment_seconds(self, products: int, samples: int) -> float:
        """Return what the block kernel takes for 16 neurons by 16 inputs."""
        return self.block_tile / samples + self.block_sample + products * self.block_product

    def block_seconds(self, layer: DeviceLayer) -> float:
        """Return what the block kernel takes."""
        if layer.block is None:
            return inf
        kind: BlockKind = layer.block.kind
        each = self.fragment_seconds(products(kind.terms, kind.precision), kind.samples)
        multiplied = layer.tall.slots / (PANEL * STEP) * each
        # Every tile reads all weights from L2, two bytes a term.
        return max(multiplied, layer.tall.slots * kind.terms * 2 / self.wide_bytes / kind.samples)

    def block_at_best(self, layer: PanelLayer) -> float:
        """Return what the block kernel would take if no single neuron were padded."""
        inputs = len(layer.tall.indices) + len(layer.single.indices) / PANEL
        return inputs / STEP * self.fragment_seconds(1, 16)

    def dense_seconds(self, edges: int, terms: int, precision: Precision = "fp32") -> float:
        """Return what the dense kernel takes for so many edges, padding included."""
        return edges * (self.dense_edge + products(terms, precision) * self.dense_product)

    def wide_tall_edge(self, height: int) -> float:
        """Return what an input of a tall panel of the wide kernel costs, in single ones."""
        return 1 + (self.wide_bytes / self.tall_bytes - 1) * height / WIDE_HEIGHTS[0]

    def wide_seconds(self, layer: PanelLayer) -> float:
        """Return what the wide kernel takes: it reads an activation an edge of a panel from L2."""
        tall, single = len(layer.tall.indices), len(layer.single.indices)
        return self._wide(single, tall, layer.tall.height, layer.n_in + layer.n_out)

    def bits_seconds(self, layer: DeviceLayer) -> float:
        """Return what a wide first layer takes on packed features, in a kernel of its own.

        Where all weights are equal, an edge is counted for 32 samples at once.
        """
        equal = layer.value is not None
        edges = sum(int(part.lists["length"].sum()) for part in (layer.tall, layer.single))
        instructions = edges * BITS_EQUAL if equal else layer.edges * LANES * BITS_EDGE
        instructions += layer.n_out * LANES * BITS_OUTPUT + layer.n_in * BITS_TURN
        computed = instructions / LANES / LANES / (BITS_ISSUED * SCHEDULERS * self.speed)
        return computed + self.moved_seconds(layer.n_out, layer.itemsize)

    def _wide(self, single: float, tall: float, height: int, neurons: int) -> float:
        """Return what the wide kernel takes, to which values of two bytes make no difference."""
        reads = single + tall * self.wide_tall_edge(height)
        return reads * 4 / self.wide_bytes + self.moved_seconds(neurons, 4)

    def moved_seconds(self, neurons: int, itemsize: int) -> float:
        """Return what it takes to read, or write, activations in device memory."""
        return neurons * itemsize / self.hbm_bytes

    def staged_seconds(self, layer: PanelLayer, plan: Staging) -> float:
        """Return what the staged kernel takes.

        Lists are read step by step, and reads that meet in a bank take turns. Before that, or at
        the same time where there is room for two parts, each output block gets all rows, and the
        lists stream in besides.
        """
        shape = plan.parts, plan.blocks, plan.buffers
        equal = layer.value is not None
        return self._staged(plan.slots, plan.meetings, layer.n_in, shape, equal)

    def _staged(
        self, slots: int, meetings: int, n_in: int, shape: tuple[int, int, int], equal: bool
    ) -> float:
        parts, blocks, buffers = shape
        reads = slots / LANES * (READS_A_STEP - equal) + meetings * CHUNKS
        row_bytes = blocks * n_in * SAMPLES * 4
        rows, lists = row_bytes / self.staged_bytes, slots * (2 if equal else 6) / self.list_bytes
        waits = parts * blocks * self.border / self.multiprocessors
        if buffers > 1:
            reads += row_bytes / 128  # written to shared memory, which is busy with reads
            return (max(reads / self.staged_reads, rows + lists) + waits) / SAMPLES
        return (max(reads / self.staged_reads, lists) + rows + waits) / SAMPLES

    def staged_at_best(self, layer: PanelLayer) -> float:
        """Return what the staged kernel would take without any padding, all reads hidden."""
        return max(layer.edges, WIDTH) / LANES * 4 * CHUNKS / self.staged_reads / SAMPLES

    def seconds(self, layer: DeviceLayer) -> float:
        """Return what a layer takes that is laid out."""
        if layer.block is not None:
            return self.block_seconds(layer)
        if layer.kernel == "dense":
            return self.dense_seconds(layer.tall.slots, layer.terms, layer.precision)
        if layer.kernel == "small":
            return self.small_seconds(layer.edges, layer.n_out)
        equal = layer.value is not None
        if layer.kernel == "resident":
            return self.gathered_seconds(
                steps(layer.single), steps(layer.tall), layer.samples, equal
            )
        if layer.kernel == "staged":
            blocks = -(-layer.single.count // layer.parts // (WARPS * SLICES))
            shape = layer.parts, blocks, layer.buffers
            return self._staged(layer.single.slots, 0, layer.n_in, shape, equal)
        neurons = layer.n_in + layer.n_out
        if layer.kernel == "chained":
            rows = chained_rows(layer) * layer.itemsize / (CHAINED * self.tall_bytes)
            return rows + self.moved_seconds(neurons, layer.itemsize)
        tall = layer.tall.slots / layer.tall.height
        return self._wide(layer.single.slots, tall, layer.tall.height, neurons)


_NAMES = tuple(field.name for field in fields(Rates))


def steps(panels: DevicePanels) -> float:
    """Return how often 32 lanes read an input each."""
    return panels.slots / panels.height / LANES


def chained_rows(layer: DeviceLayer) -> int:
    """Return how many rows of inputs the chained kernel reads."""
    return int(layer.tall.lists["length"].sum() + layer.tall.lists["shared"].sum())
