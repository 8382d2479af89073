"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.plan.gpu import SAMPLES, THREADS, WIDE_HEIGHT

Specialisation = tuple[str, dict[str, int | str], list[str]]
"""A file, its macros, and the kernels in it."""

WIDE_TILES = 2
"""Tiles that a warp of the wide kernel takes at a time."""
WIDE_BLOCKS = 2
"""Blocks of it that a multiprocessor holds at once, at least."""
WIDE_THREADS = 256
CENSUS_THREADS = 1024


def resident(samples: int) -> Specialisation:
    """Return the resident kernel for tiles of so many samples."""
    return "resident.cu", {"SAMPLES": samples, "THREADS": THREADS}, ["resident"]


def wide() -> Specialisation:
    """Return the wide kernel."""
    return "wide.cu", {"HEIGHT": WIDE_HEIGHT, "TILES": WIDE_TILES, "BLOCKS": WIDE_BLOCKS}, ["wide"]


def compact() -> Specialisation:
    """Return what counts samples and moves them together."""
    return "compact.cu", {}, ["census", "compact"]


def samples() -> Specialisation:
    """Return what takes samples in and out."""
    return (
        "samples.cu",
        {},
        ["begin", "load_packed", "load_dense", "load_sparse", "store_rows"],
    )


def all_specialisations() -> list[Specialisation]:
    """Return every one that an engine may ask for."""
    return [*(resident(count) for count in SAMPLES), wide(), compact(), samples()]
