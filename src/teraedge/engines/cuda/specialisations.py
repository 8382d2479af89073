"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.plan.block import KINDS
from teraedge.plan.device import COLUMNS, LANES, THREADS, BlockKind
from teraedge.plan.gpu import SAMPLES, WIDE_HEIGHT
from teraedge.plan.staged import LISTS, SLICES
from teraedge.plan.staged import SAMPLES as STAGED_SAMPLES

Specialisation = tuple[str, dict[str, int | str], list[str]]
"""A file, its macros, and the kernels in it."""

WIDE_TILES, WIDE_THREADS = 2, 512
"""Tiles that a warp of the wide kernel takes at a time, and threads of a block."""
WIDE_STAGES = (3, 2)
"""Pieces in the ring of a warp: three on GPUs with room for them in shared memory, else two."""
WIDE_EDGES = 8
"""Edges of a piece."""
CENSUS_THREADS = 512


def resident(samples: int) -> Specialisation:
    """Return the resident kernel for tiles of so many samples."""
    return "resident.cu", {"SAMPLES": samples, "THREADS": THREADS}, ["resident"]


def staged(buffers: int) -> Specialisation:
    """Return the staged kernel with room for so many parts of the inputs."""
    sizes = {"SAMPLES": STAGED_SAMPLES, "LISTS": LISTS, "SLICES": SLICES}
    return "staged.cu", {**sizes, "BUFFERS": buffers, "THREADS": THREADS}, ["staged"]


def block(kind: BlockKind) -> Specialisation:
    """Return the block kernel of a kind."""
    sizes = {name.upper(): value for name, value in kind._asdict().items()}
    return "block.cu", {**sizes, "THREADS": block_threads(kind)}, ["block"]


def block_threads(kind: BlockKind) -> int:
    """Return the threads of a block of the block kernel: one more warp for errands, if it fits."""
    return THREADS if kind.held or kind.terms else THREADS + LANES


def wide_shared(height: int, stages: int) -> int:
    """Return the dynamic shared memory of a block of the wide kernel, in bytes."""
    piece = WIDE_EDGES * (WIDE_TILES * COLUMNS + height) * 4
    return WIDE_THREADS // 32 * stages * piece


def wide(height: int, stages: int) -> Specialisation:
    """Return the wide kernel for panels of one height."""
    sizes = {"TILES": WIDE_TILES, "STAGES": stages, "THREADS": WIDE_THREADS}
    return "wide.cu", {"HEIGHT": height, **sizes}, ["wide"]


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
    wides = (wide(height, stages) for height in (1, WIDE_HEIGHT) for stages in WIDE_STAGES)
    stageds = (staged(buffers) for buffers in (1, 2))
    blocks = (block(kind) for kind in KINDS)
    residents = (resident(count) for count in SAMPLES)
    return [*residents, *blocks, *stageds, *wides, compact(), samples()]
