"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.plan.block import KINDS
from teraedge.plan.device import COLUMNS, LANES, THREADS, BlockKind
from teraedge.plan.gpu import SAMPLES, WIDE_TALL_EDGES
from teraedge.plan.small import SAMPLES as SMALL_SAMPLES
from teraedge.plan.small import THREADS as SMALL_THREADS
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


def _curves(curved: bool) -> dict[str, int | str]:
    """Return the macro for smooth activations, which cost registers, where they are needed."""
    return {"CURVES": 1} if curved else {}


def resident(samples: int, curved: bool) -> Specialisation:
    """Return the resident kernel for tiles of so many samples."""
    sizes = {"SAMPLES": samples, "THREADS": THREADS}
    return "resident.cu", {**sizes, **_curves(curved)}, ["resident"]


def small(curved: bool) -> Specialisation:
    """Return the small kernel."""
    sizes = {"SAMPLES": SMALL_SAMPLES, "THREADS": SMALL_THREADS}
    return "small.cu", {**sizes, **_curves(curved)}, ["small"]


def staged(buffers: int, curved: bool) -> Specialisation:
    """Return the staged kernel with room for so many parts of the inputs."""
    sizes = {"SAMPLES": STAGED_SAMPLES, "LISTS": LISTS, "SLICES": SLICES}
    more = {"BUFFERS": buffers, "THREADS": THREADS}
    return "staged.cu", {**sizes, **more, **_curves(curved)}, ["staged"]


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


def wide(height: int, stages: int, curved: bool) -> Specialisation:
    """Return the wide kernel for panels of one height."""
    sizes = {"TILES": WIDE_TILES, "STAGES": stages, "THREADS": WIDE_THREADS}
    return "wide.cu", {"HEIGHT": height, **sizes, **_curves(curved)}, ["wide"]


def compact() -> Specialisation:
    """Return what counts samples and moves them together."""
    return "compact.cu", {}, ["census", "compact"]


def samples() -> Specialisation:
    """Return what takes samples in and out."""
    return (
        "samples.cu",
        {},
        [
            *("begin", "count_bright", "sum_bins", "place_samples"),
            *("load_packed", "load_dense", "load_sparse", "mark", "store_rows", "apply_head"),
        ],
    )


def all_specialisations() -> list[Specialisation]:
    """Return every one that an engine may ask for."""
    found = [compact(), samples(), *map(block, KINDS)]
    for curved in (False, True):
        found.append(small(curved))
        found += [resident(count, curved) for count in SAMPLES]
        found += [staged(buffers, curved) for buffers in (1, 2)]
        found += [
            wide(height, stages, curved)
            for height in (1, *WIDE_TALL_EDGES)
            for stages in WIDE_STAGES
        ]
    return found
