"""What the machine gives this process."""

import os
import platform
import re
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHES = 32 * 2**10, 2**20


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the machine's memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def cpu_model() -> str:
    """Return the name of the CPU as its maker writes it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown CPU"


def cache_bytes() -> tuple[int, int]:
    """Return the bytes of a core's L1 data cache and of its L2, or usual ones if not known."""
    found: dict[str, int] = {}
    for index in _CACHES.glob("index*"):
        try:
            level, kind = ((index / name).read_text().strip() for name in ("level", "type"))
            size = re.fullmatch(r"(\d+)K", (index / "size").read_text().strip())
        except OSError:
            continue
        if size and kind in ("Data", "Unified"):
            found[level] = int(size[1]) * 2**10
    l1, l2 = found.get("1", _USUAL_CACHES[0]), found.get("2", _USUAL_CACHES[1])
    return (l1, l2) if l1 < l2 else _USUAL_CACHES
