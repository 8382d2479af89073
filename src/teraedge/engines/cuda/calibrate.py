"""What a GPU's kernels reach: measured once a GPU, and kept in the cache folder.

The file lies under a key of the GPU, its driver and our sources. `TERAEDGE_CALIBRATION=typical`
stands for figures of one H200, scaled, so that layouts do not depend on what was measured.
"""

import hashlib
import json
import logging
import os
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from teraedge import __version__
from teraedge.cache import atomic_write, cache_dir
from teraedge.engines.cuda.driver import Device
from teraedge.errors import DataError
from teraedge.plan.cost import VARIABLE
from teraedge.plan.rates import Rates

log = logging.getLogger(__name__)

_known: dict[str, Rates] = {}
_measuring = Lock()


class Kept(NamedTuple):
    """Rates as they were kept, and when they were measured: a date and time of ISO 8601."""

    rates: Rates
    measured: str


def rates_of(device: Device, name: str) -> Rates:
    """Return the rates of a GPU, measured where that was not done before.

    Parameters
    ----------
    device : Device
    name : str
        That it is opened by.
    """
    if is_typical():
        return typical(device)
    with _measuring:  # one thread at a time, or they would measure each other
        key = _key(device)
        if key not in _known:
            found = kept(device)
            _known[key] = _measured(device, name) if found is None else found.rates
        return _known[key]


def is_typical() -> bool:
    """Tell whether nothing is to be measured."""
    return os.environ.get(VARIABLE) == "typical"


def typical(device: Device) -> Rates:
    """Return the rates of one H200, scaled to the clocks of a device."""
    return Rates().scaled(device.multiprocessors, device.clock_hz)


def kept(device: Device) -> Kept | None:
    """Return what was measured before; None where nothing was, or the file makes no sense."""
    path = _path(device)
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
        rates = Rates.from_json(found["rates"])
        measured = datetime.fromisoformat(found["measured"]).isoformat(timespec="seconds")
        if (rates.multiprocessors, rates.clock) != (device.multiprocessors, device.clock_hz):
            return None
        return Kept(rates, measured)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _measured(device: Device, name: str) -> Rates:
    from teraedge.engines.cuda.measure import measure  # which needs engines

    start = time.perf_counter()
    rates, complete = measure(name)
    log.info("measured the speeds of %s in %.2f s", device.name, time.perf_counter() - start)
    path = _path(device)
    if path is None or not complete:
        return rates
    other = kept(device)
    if other is not None:  # another process was faster, and all must use the same
        return other.rates
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"device": device.name, "measured": now, "rates": rates.to_json()}
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    except OSError as error:  # a folder that cannot be written is no reason to fail
        log.info("the measured speeds cannot be kept: %s", error)
    return rates


def _path(device: Device) -> Path | None:
    """Return the file of a GPU's rates, None where there is no folder for it."""
    try:
        return cache_dir() / "calibration" / f"cuda-{_key(device)}.json"
    except DataError:
        return None


def _key(device: Device) -> str:
    about = [device.name, device.multiprocessors, device.clock_hz, device.shared_bytes]
    about += [device.driver_version, __version__, _sources()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


@cache
def _sources() -> str:
    """Hash the kernels and what measures them: a change may change what they reach."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [
        here / "measure.py",
        here / "trials.py",
        *sorted((here / "kernels").glob("*.cu*")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
