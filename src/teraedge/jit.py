"""numba's compiler with its cache where ours are: compiled once a machine, not in site-packages."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from teraedge.cache import cache_dir


def _source_key() -> str:
    """Hash the sources of what is compiled: numba would not see a change in an imported file."""
    digest = hashlib.sha256(numba.__version__.encode())
    here = Path(__file__).parent
    plans = [here / "plan" / name for name in ("banks.py", "chained.py", "lookups.py", "parts.py")]
    for path in sorted([*plans, *(here / "engines" / "cpu").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def jit(*signatures: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for the given signatures, without the GIL, cached on disk."""

    def decorate(function: Callable[..., Any]) -> Any:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(cache_dir() / "numba" / SOURCE_KEY)
        try:
            return numba.njit(list(signatures), nogil=True, cache=True, error_model="numpy")(
                function
            )
        finally:
            numba.config.CACHE_DIR = before

    return decorate


def inlined(function: Callable[..., Any]) -> Any:
    """Let a function be compiled as part of its one caller only, and not again by itself."""
    return numba.njit(inline="always", error_model="numpy")(function)


SOURCE_KEY = _source_key()
"""Changes with any source of what is compiled and with numba."""
