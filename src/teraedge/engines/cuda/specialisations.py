"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.plan.gpu import SAMPLES, THREADS, WIDE_HEIGHT

Specialisation = tuple[str, dict[str, int | str], list[str]]
"""A file, its macros, and the kernels in it."""

WIDE_SHAPES = {1: (2, 2), WIDE_HEIGHT: (2, 2)}
"""For each height of panels: tiles that a warp of the wide kernel takes at a time, and blocks that a
multiprocessor holds at once, at least."""
WIDE_THREADS = 256
CENSUS_THREADS = 1024


def resident(samples: int) -> Specialisation:
    """Return the resident kernel for tiles of so many samples."""
    return "resident.cu", {"SAMPLES": samples, "THREADS": THREADS}, ["resident"]


def wide(height: int) -> Specialisation:
    """Return the wide kernel for panels of one height."""
    tiles, blocks = WIDE_SHAPES[height]
    return "wide.cu", {"HEIGHT": height, "TILES": tiles, "BLOCKS": blocks}, ["wide"]


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
    wides = (wide(height) for height in WIDE_SHAPES)
    return [*(resident(count) for count in SAMPLES), *wides, compact(), samples()]
