"""Equal samples, found and run once in segments of many layers (kernels/merge.cu, few.cu)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teraedge.engines.cuda.driver import Device, Kernel, Memory, Stream
from teraedge.engines.cuda.launcher import Launcher
from teraedge.engines.cuda.specialisations import MERGE_TABLE, MERGE_THREADS, few, merge
from teraedge.engines.cuda.state import EQUAL, RunState
from teraedge.network import Layer
from teraedge.plan.device import DeviceLayer
from teraedge.plan.few import MERGED, Few, lanes_used, lay_out_few, may_be_few, stream_bytes
from teraedge.plan.gpu import all_single
from teraedge.plan.kernel_sizes import LANES, STATIC_SHARED
from teraedge.plan.panels import PanelLayer
from teraedge.plan.saturation import saturation
from teraedge.plan.segments import Segment


class _Sent(NamedTuple):
    """A segment on the device, as the kernel for a few samples reads it."""

    stream: Memory
    saturation: Memory
    sizes: Few
    n_in: int
    n_out: int


class Once:
    """Launches segments, those that may around the search for equal samples.

    Parameters
    ----------
    device : Device
    stream : Stream
    launcher : Launcher
        Of the segments themselves.

    Attributes
    ----------
    equal : dict of str to int
        Device addresses of what is known of equal samples, where some segment may run them once.
    """

    def __init__(self, device: Device, stream: Stream, launcher: Launcher) -> None:
        self._device, self._stream, self._launcher = device, stream, launcher
        self._sent: dict[Segment, _Sent] = {}
        self._kernels: dict[str, Kernel] = {}
        self._few: dict[tuple[int, bool], Kernel] = {}
        self.equal: dict[str, int] = {}

    def send(self, layers: list[DeviceLayer], parts: list[Segment], nbytes: int) -> list[Segment]:
        """Bring the segments that may run over a few samples to the device.

        Parameters
        ----------
        layers : list of DeviceLayer
        parts : list of Segment
            Those that they make.
        nbytes : int
            Device memory that there is.

        Returns
        -------
        list of Segment
            The same, where there is no room for some only as they are.
        """
        found = []
        for part in parts:
            own = layers[part.first : part.first + part.count]
            before = layers[part.first - 1].clamp[1] if part.first else np.inf
            sent = self._send(own, before, nbytes) if part.few else None
            if sent is None:
                found.append(replace(part, few=0))
                continue
            nbytes -= sent.stream.nbytes
            self._sent[part] = sent
            self._prepare(sent.sizes.ahead, part.curved)
            found.append(part)
        return found

    def launch(self, segment: Segment, layers: int, state: RunState, number: int) -> None:
        """Queue a segment; as `Launcher.launch`."""
        sent = self._sent.get(segment)
        if sent is None:
            self._launcher.launch(self._stream, segment, layers, state, number)
            return
        self._merge("match", MERGE_TABLE, state.struct, number, sent.n_in)
        self._merge("settle", 0, state.struct, number, sent.n_in, segment.few)
        sizes = sent.sizes
        kernel = self._few[sizes.ahead, segment.curved]
        threads = sizes.warps * LANES
        grid = self._launcher.blocks(kernel, threads, sizes.shared)
        self._stream.launch(
            kernel, grid, threads, sizes.shared,
            layers, segment.first, segment.count, state.struct, number,
            sent.stream, sizes.rows, self._launcher.sharing(segment), sent.saturation,
        )  # fmt: skip
        self._launcher.launch(self._stream, segment, layers, state, number)
        self._merge("spread", 0, state.struct, number, sent.n_out)

    def _send(self, layers: list[DeviceLayer], before: float, nbytes: int) -> _Sent | None:
        lone = [layer.lone for layer in layers if layer.lone is not None]
        if stream_bytes(lone) > nbytes:
            return None
        room = self._device.shared_bytes - STATIC_SHARED
        sizes = lay_out_few(lone, room)
        if sizes is None:
            return None
        memory = self._device.allocate(sizes.stream.nbytes)
        self._stream.to_device(memory, sizes.stream)
        known, row = _saturation_bytes(before, lone, sizes.warps)
        known_memory = self._device.allocate(known.nbytes)
        known[:8].view(np.uint64)[0] = known_memory.address + row
        self._stream.to_device(known_memory, known)
        self._stream.synchronize()
        kept = sizes._replace(stream=sizes.stream[:0])
        return _Sent(memory, known_memory, kept, layers[0].n_in, layers[-1].n_out)

    def _prepare(self, ahead: int, curved: bool) -> None:
        """Compile what a segment needs, and make room for what is found out before it."""
        if not self._kernels:
            self._kernels = self._device.kernels(*merge())
            self._known = self._device.allocate(MERGED * 8 * len(EQUAL))
            self._stream.fill(self._known, 0)  # hashes are zero between two uses
            addresses = (self._known.address + MERGED * 8 * k for k in range(len(EQUAL)))
            self.equal = dict(zip(EQUAL, addresses, strict=True))
        if (ahead, curved) not in self._few:
            file, defines, names = few(ahead, curved)
            self._few[ahead, curved] = self._device.kernels(file, defines, names)[names[0]]

    def _merge(self, name: str, shared: int, *arguments: int | Memory) -> None:
        kernel = self._kernels[name]
        grid = self._device.multiprocessors  # blocks wait for each other, so there are few
        self._stream.launch(kernel, grid, MERGE_THREADS, shared, *arguments)


def with_lone(laid_out: DeviceLayer, layer: Layer) -> DeviceLayer:
    """Return a layer with what the kernel for a few samples takes, if it may run there."""
    knows = laid_out.resident and laid_out.precision == "fp32"
    if not knows or not may_be_few(layer.n_in, layer.n_out):
        return laid_out
    return replace(laid_out, lone=all_single(layer))


def without_lone(layers: list[DeviceLayer]) -> list[DeviceLayer]:
    """Return layers without that: it takes as much host memory as they do."""
    return [replace(layer, lone=None) for layer in layers]


def _saturation_bytes(
    before: float, layers: Sequence[PanelLayer], warps: int
) -> tuple[NDArray[np.uint8], int]:
    """Return a `struct Saturation` of kernels/few.cu and what belongs to it, and where its row is.

    Where the way of saturated samples is not known, no bound is ever met.
    """
    found = saturation(before, layers)
    threads = np.zeros(len(layers), np.int32)
    row = np.zeros(layers[-1].n_out, np.float32)
    bound = np.float32(np.nan)
    if found is not None:
        own = [lanes_used(layer.n_out, warps) for layer in layers]
        threads[:] = np.where(found.layers[1:], own, 0)
        row = found.row
        bound = np.float32(before) if found.layers[0] else bound
    header = np.zeros(16, np.uint8)
    header[8:12] = np.frombuffer(bound.tobytes(), np.uint8)
    parts = [header, threads.view(np.uint8), row.view(np.uint8)]
    return np.concatenate(parts), len(header) + threads.nbytes
