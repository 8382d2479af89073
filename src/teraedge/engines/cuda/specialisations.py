"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.plan import dense as dense_layout
from teraedge.plan.bf16 import MOST_TERMS
from teraedge.plan.block import KINDS
from teraedge.plan.device import COLUMNS, THREADS, BlockKind
from teraedge.plan.gpu import RESIDENT_HEIGHT, SAMPLES, WIDE_TALL_EDGES
from teraedge.plan.small import STAGES as SMALL_STAGES
from teraedge.plan.small import THREADS as SMALL_THREADS
from teraedge.plan.staged import LISTS, SLICES
from teraedge.plan.staged import SAMPLES as STAGED_SAMPLES

Specialisation = tuple[str, dict[str, int | str], list[str]]
"""A file, its macros, and the kernels in it."""

WIDE_TILES, WIDE_THREADS = 2, 512
"""Tiles that a warp of the wide kernel takes at a time, and threads of a block."""
WIDE_STAGES, CHAINED_STAGES = (3, 2), (4, 3, 2)
"""Pieces in the ring of a warp: as many as shared memory has room for."""
CHAINED_PANELS = 16
"""Panels that a warp of the chained kernel takes in a run, at most."""
WIDE_EDGES = 8
"""Edges of a piece."""
DENSE_THREADS = 256
CENSUS_THREADS = 512


def _curves(curved: bool) -> dict[str, int | str]:
    """Return the macro for smooth activations, which cost registers, where they are needed."""
    return {"CURVES": 1} if curved else {}


def resident(samples: int, tall: bool, curved: bool) -> Specialisation:
    """Return the resident kernel for tiles of so many samples, perhaps with `tall` panels.

    Only the largest tiles gain where it is known that there are none.
    """
    sizes = {"SAMPLES": samples, "TALL": RESIDENT_HEIGHT if tall or samples < 32 else 0}
    return "resident.cu", {**sizes, "THREADS": THREADS, **_curves(curved)}, ["resident"]


def small(curved: bool) -> Specialisation:
    """Return the small kernel."""
    sizes = {"STAGES": SMALL_STAGES, "THREADS": SMALL_THREADS}
    return "small.cu", {**sizes, **_curves(curved)}, ["small"]


def staged(buffers: int, curved: bool) -> Specialisation:
    """Return the staged kernel with room for so many parts of the inputs."""
    sizes = {"SAMPLES": STAGED_SAMPLES, "LISTS": LISTS, "SLICES": SLICES}
    more = {"BUFFERS": buffers, "THREADS": THREADS}
    return "staged.cu", {**sizes, **more, **_curves(curved)}, ["staged"]


def block(kind: BlockKind) -> Specialisation:
    """Return the block kernel of a kind."""
    sizes = {name.upper(): value for name, value in kind._asdict().items()}
    return "block.cu", {**sizes, "THREADS": THREADS}, ["block"]


def dense(terms: int, curved: bool) -> Specialisation:
    """Return the dense kernel for weights of so many terms."""
    fragments, stages = dense_layout.HEIGHT // 16, dense_layout.dense_stages(terms)
    sizes = {"FRAGMENTS": fragments, "TERMS": terms, "STAGES": stages}
    return "dense.cu", {**sizes, **_curves(curved)}, ["dense"]


def wide_shared(height: int, stages: int) -> int:
    """Return the dynamic shared memory of a block of the wide kernel, in bytes."""
    piece = WIDE_EDGES * (WIDE_TILES * COLUMNS + height) * 4
    return WIDE_THREADS // 32 * stages * piece


def wide(height: int, stages: int, curved: bool) -> Specialisation:
    """Return the wide kernel for panels of one height."""
    sizes = {"TILES": WIDE_TILES, "STAGES": stages, "THREADS": WIDE_THREADS}
    return "wide.cu", {"HEIGHT": height, **sizes, **_curves(curved)}, ["wide"]


def chained_shared(height: int, stages: int) -> int:
    """Return the dynamic shared memory of a block of the chained kernel, in bytes."""
    piece = WIDE_EDGES * (COLUMNS + 2 * height) * 4 + height * 8
    return WIDE_THREADS // 32 * (stages * (piece + 16) + (CHAINED_PANELS + 2) * 16)


def chained(height: int, stages: int, curved: bool) -> Specialisation:
    """Return the chained kernel for panels of one height."""
    sizes = {"HEIGHT": height, "STAGES": stages, "MOST": CHAINED_PANELS}
    return "chained.cu", {**sizes, "THREADS": WIDE_THREADS, **_curves(curved)}, ["chained"]


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
            *("load_packed", "turn_bits", "load_dense", "load_sparse"),
            *("mark", "store_rows", "apply_head"),
        ],
    )


def all_specialisations() -> list[Specialisation]:
    """Return every one that an engine may ask for."""
    found = [compact(), samples(), *map(block, KINDS)]
    for curved in (False, True):
        found.append(small(curved))
        found += [resident(count, True, curved) for count in SAMPLES]
        found.append(resident(32, False, curved))
        found += [dense(terms, curved) for terms in range(1, MOST_TERMS + 1)]
        found += [staged(buffers, curved) for buffers in (1, 2)]
        found += [
            wide(height, stages, curved)
            for height in (1, *WIDE_TALL_EDGES)
            for stages in WIDE_STAGES
        ]
        found += [
            chained(height, stages, curved)
            for height in WIDE_TALL_EDGES
            for stages in CHAINED_STAGES
        ]
    return found
