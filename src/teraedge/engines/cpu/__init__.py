"""The CPU engine: tiles of samples through all layers, on every core."""

from teraedge.engines.cpu.engine import CpuEngine

__all__ = ["CpuEngine"]
