"""The kernels there are, and the macros that each may be compiled with."""

from teraedge.options import ITEMSIZE, PRECISIONS, Precision
from teraedge.plan import dense as dense_layout
from teraedge.plan import few as few_layout
from teraedge.plan.block import KINDS
from teraedge.plan.block_parts import BlockKind
from teraedge.plan.gpu import BIT_SAMPLES, BIT_THREADS, BIT_TILES, RESIDENT_HEIGHT
from teraedge.plan.kernel_sizes import COLUMNS, LANES, THREADS
from teraedge.plan.rates import WIDE_HEIGHTS
from teraedge.plan.resident import NOT_CURVED, SAMPLES
from teraedge.plan.small import STAGES as SMALL_STAGES
from teraedge.plan.small import THREADS as SMALL_THREADS
from teraedge.plan.staged import LISTS, SLICES
from teraedge.plan.staged import SAMPLES as STAGED_SAMPLES
from teraedge.plan.terms import MOST_TERMS

Specialisation = tuple[str, dict[str, int | str], list[str]]
"""A file, its macros, and the kernels in it."""

WIDE_TILES, WIDE_THREADS = 2, 512
"""Tiles that a warp of the wide kernel takes at a time, and threads of a block."""
WIDE_STAGES = {4: (3, 2), 2: (5, 3)}
"""Pieces in the ring of a warp, as many as shared memory has room for; by the bytes of a value."""
CHAINED_STAGES = {(4, False): (4, 3, 2), (2, False): (3, 2), (2, True): (6, 4)}
"""The same, and by whether there is no room for weights, as all are equal."""
CHAINED_PANELS = 16
"""Panels that a warp of the chained kernel takes in a run, at most."""
WIDE_EDGES, CHAINED_EDGES = 8, {4: 8, 2: 16}
"""Edges of a piece."""
DENSE_THREADS = 256
MERGE_THREADS, MERGE_TABLE = 512, 2 * few_layout.MERGED * 8
"""Threads of a block that finds equal samples, and bytes of its table (kernels/merge.cu)."""
CENSUS_THREADS = 512


def _curves(curved: bool) -> dict[str, int | str]:
    """Return the macro for smooth activations, which cost registers, where they are needed."""
    return {"CURVES": 1} if curved else {}


def _stored(precision: Precision) -> dict[str, int | str]:
    """Return the macro for activations that are stored in less than fp32."""
    return {"STORAGE": PRECISIONS.index(precision)} if precision != "fp32" else {}


def resident(
    samples: int, tall: bool, curved: bool, precision: Precision = "fp32"
) -> Specialisation:
    """Return the resident kernel for tiles of so many samples, perhaps with `tall` panels.

    Only the largest tiles gain where it is known that there are none; halves take more registers.
    """
    known = samples == 32 and precision == "fp32" and not tall
    sizes = {"SAMPLES": samples, "TALL": 0 if known else RESIDENT_HEIGHT}
    more = {"THREADS": THREADS, **_curves(curved), **_stored(precision)}
    return "resident.cu", {**sizes, **more}, ["resident"]


def small(curved: bool) -> Specialisation:
    """Return the small kernel."""
    sizes = {"STAGES": SMALL_STAGES, "THREADS": SMALL_THREADS}
    return "small.cu", {**sizes, **_curves(curved)}, ["small"]


def few(ahead: int, curved: bool) -> Specialisation:
    """Return the kernel for a few samples with so many packets in a ring."""
    sizes: dict[str, int | str] = {"THREADS": few_layout.WARPS * LANES, "AHEAD": ahead}
    return "few.cu", {**sizes, **_curves(curved)}, ["few"]


def merge() -> Specialisation:
    """Return what finds equal samples, and puts them back."""
    return "merge.cu", {}, ["match", "settle", "spread"]


def staged(buffers: int, curved: bool) -> Specialisation:
    """Return the staged kernel with room for so many parts of the inputs."""
    sizes = {"SAMPLES": STAGED_SAMPLES, "LISTS": LISTS, "SLICES": SLICES}
    more = {"BUFFERS": buffers, "THREADS": THREADS}
    return "staged.cu", {**sizes, **more, **_curves(curved)}, ["staged"]


def block(kind: BlockKind) -> Specialisation:
    """Return the block kernel of a kind."""
    sizes = {"SAMPLES": kind.samples, "TERMS": kind.terms, "HELD": kind.held}
    return "block.cu", {**sizes, "THREADS": THREADS, **_stored(kind.precision)}, ["block"]


def dense(terms: int, curved: bool, precision: Precision = "fp32") -> Specialisation:
    """Return the dense kernel for weights of so many terms."""
    fragments, stages = dense_layout.HEIGHTS[precision] // 16, dense_layout.dense_stages(terms)
    sizes = {"FRAGMENTS": fragments, "TERMS": terms, "STAGES": stages}
    return "dense.cu", {**sizes, **_curves(curved), **_stored(precision)}, ["dense"]


def wide_shared(height: int, stages: int, itemsize: int) -> int:
    """Return the dynamic shared memory of a block of the wide kernel, in bytes."""
    piece = WIDE_EDGES * (WIDE_TILES * COLUMNS * itemsize + height * 4)
    return WIDE_THREADS // 32 * stages * piece


def wide(height: int, stages: int, curved: bool, precision: Precision = "fp32") -> Specialisation:
    """Return the wide kernel for panels of one height."""
    sizes = {"TILES": WIDE_TILES, "STAGES": stages, "THREADS": WIDE_THREADS}
    more = {**_curves(curved), **_stored(precision)}
    return "wide.cu", {"HEIGHT": height, **sizes, **more}, ["wide"]


def chained_shared(height: int, stages: int, itemsize: int, equal_only: bool) -> int:
    """Return the dynamic shared memory of a block of the chained kernel, in bytes."""
    weights = 0 if equal_only else 2 * height * 4
    piece = CHAINED_EDGES[itemsize] * (COLUMNS * itemsize + weights) + height * 8
    return WIDE_THREADS // 32 * (stages * (piece + 16) + (CHAINED_PANELS + 2) * 16)


def chained(
    height: int,
    stages: int,
    curved: bool,
    precision: Precision = "fp32",
    equal_only: bool = False,
) -> Specialisation:
    """Return the chained kernel for panels of one height, perhaps without room for weights."""
    sizes = {"HEIGHT": height, "STAGES": stages, "MOST": CHAINED_PANELS}
    more = {"THREADS": WIDE_THREADS, **_curves(curved), **_stored(precision)}
    if equal_only:
        more["EQUAL_ONLY"] = 1
    return "chained.cu", {**sizes, **more}, ["chained"]


def bits(samples: int, curved: bool, precision: Precision = "fp32") -> Specialisation:
    """Return the kernel for packed features of a wide first layer."""
    sizes = {"SAMPLES": samples, "THREADS": BIT_THREADS[samples], "BLOCKS": BIT_TILES[samples]}
    return "bits.cu", {**sizes, **_curves(curved), **_stored(precision)}, ["bits"]


def compact(precision: Precision = "fp32") -> Specialisation:
    """Return what counts samples and moves them together."""
    return "compact.cu", _stored(precision), ["census", "compact"]


def samples(precision: Precision = "fp32") -> Specialisation:
    """Return what takes samples in and out."""
    return (
        "samples.cu",
        _stored(precision),
        [
            *("begin", "count_bright", "sum_bins", "place_samples"),
            *("load_packed", "turn_bits", "load_dense", "load_sparse"),
            *("mark", "store_rows", "scatter_rows", "apply_head"),
        ],
    )


def all_specialisations() -> list[Specialisation]:
    """Return every one that an engine may ask for."""
    found = [block(kind) for kind in KINDS]
    found += [small(curved) for curved in (False, True)]
    found += [few(ahead, curved) for ahead in few_layout.AHEAD for curved in (False, True)]
    found.append(merge())
    found += [staged(buffers, curved) for buffers in (1, 2) for curved in (False, True)]
    for precision, itemsize in ITEMSIZE.items():
        found += [compact(precision), samples(precision)]
        for curved in (False, True):
            found += [
                resident(count, True, curved, precision)
                for count in SAMPLES
                if count != NOT_CURVED or itemsize == 4 or not curved
            ]
            if itemsize == 4:
                found.append(resident(32, False, curved, precision))
            found += [
                dense(terms, curved, precision) for terms in range(1, MOST_TERMS[precision] + 1)
            ]
            found += [bits(count, curved, precision) for count in BIT_SAMPLES]
            found += [
                wide(height, stages, curved, precision)
                for height in (1, *WIDE_HEIGHTS)
                for stages in WIDE_STAGES[itemsize]
            ]
            found += [
                chained(height, stages, curved, precision, equal)
                for (size, equal), counts in CHAINED_STAGES.items()
                for stages in counts
                for height in WIDE_HEIGHTS
                if size == itemsize and (size == 4 or equal or height == max(WIDE_HEIGHTS))
            ]
    return found
