// What a warp of the chained kernel (chained.cu) brings into its ring, and in what order.
#pragma once

#include "census.cuh"

#ifndef EQUAL_ONLY
#define EQUAL_ONLY 0
#endif

constexpr int WARPS = THREADS / 32;
constexpr int ALIGN = 8;                           // lists begin at multiples of so many edges
constexpr int EDGES = STORAGE ? 16 : 8;            // of a piece
constexpr int ROW = COLUMNS * sizeof(Stored) / 16; // in 16 bytes: the samples of a tile
constexpr int APART = 32 / ROW;                    // rows that the lanes of a warp copy together
constexpr int OWN = HEIGHT / 2;                    // neurons of a lane
constexpr int QUADS = HEIGHT / 4;                  // in 16 bytes: an edge's weights
constexpr int ROWS = EDGES * ROW;                  // of a piece: rows,
constexpr int TARGETS = ROWS + (EQUAL_ONLY ? 0 : EDGES * QUADS * 2); // weights into one panel or two,
constexpr int STAGE = TARGETS + HEIGHT / 2;        // and outputs of a panel that it is the last piece of
constexpr int LISTS = MOST + 1;                    // that it reads, with the one before
static_assert(LISTS <= 32, "a lane brings a list");
constexpr int SHARE = STAGES * (STAGE + 1) + LISTS + 1; // of a warp: pieces, notes and its run
constexpr unsigned BOTH = 32, FINISH = 64, END = 128; // of a note, besides the number of edges

extern __shared__ uint4 rings[]; // [WARPS][SHARE]

// What the layer reads: rows, each sample in its slot; rows where samples lie anywhere; or bits.
enum Rows { IN_SLOTS, SCATTERED, BITS };

// What all threads of a block need to know; in shared memory, because sums need the registers.
struct Job {
    Layer layer;
    Panels panels;
    const Stored *rows; // what the layer reads
    Stored *out;
    const unsigned *masks; // live samples before the layer
    unsigned *nonzero;     // samples with a nonzero output, to be added to
    const int *sources;    // for each slot, where its sample lies in rows, with SCATTERED
    Rows kind;
    unsigned items;        // runs of panels, of each tile one after the other
    int length, runs;      // panels of a run; runs of a tile
};

__shared__ Job shared_job; // so declared that functions that are not inlined know where it is

// Edges of a panel alone; shared with the next panel, into both; into this panel, the last of a run; into the
// next, the first of a run.
enum Part { ALONE, INTO_BOTH, INTO_LAST, INTO_FIRST };

// A run of panels that a warp is bringing; in shared memory.
struct Run {
    List lists[LISTS]; // of its panels, and of the one before, if there is one
    unsigned tile;
    int first, end;    // the panel of the first list, and the one after the last
    int unused;
};
static_assert(sizeof(Run) == (LISTS + 1) * 16, "a part of SHARE");

// What a warp brings next: edges of a panel that are alone its own, then those that the next panel reads too.
struct Walk {
    unsigned item;
    const char *from[2]; // rows of the tile, where this lane copies; of its two samples, with SCATTERED
    int panel;           // the one at hand
    i64 begin;           // of these edges,
    int done, left;      // of which some have been brought
    int then;            // edges that come after them
    Part part;
    unsigned inputs[EDGES / 2]; // of the edges to come, on their way
    Run *run;
};

__device__ __forceinline__ const List &list_at(const Walk &at) { return at.run->lists[at.panel - at.run->first]; }

// Go on to the edges that the panel shares with the next.
__device__ __forceinline__ void start_shared(Walk &at) {
    const List list = list_at(at);
    at.begin = list.begin + (list.length + ALIGN - 1) / ALIGN * ALIGN;
    at.done = 0, at.left = list.shared, at.then = 0;
    at.part = at.panel + 1 < at.run->end ? INTO_BOTH : INTO_LAST;
}

__device__ __forceinline__ void start_panel(Walk &at) {
    const List list = list_at(at);
    if (list.length == 0 && list.shared) {
        start_shared(at);
        return;
    }
    at.begin = list.begin;
    at.done = 0, at.left = list.length, at.then = list.shared;
    at.part = ALONE;
}

// Where in a piece the samples of an edge lie, 16 bytes of them. Rows of 128 bytes are so turned that those of
// eight edges lie in different banks.
__device__ __forceinline__ int place_of(int edge, int samples) {
    return edge * ROW + (STORAGE ? samples ^ edge % 8 : samples);
}

// Where the rows of a tile are that this lane copies.
template <Rows KIND>
__device__ __forceinline__ void find_rows(const Job &job, Walk &at, unsigned tile, int lane) {
    const i64 n = job.layer.n_in;
    if (KIND == BITS) {
        at.from[0] = reinterpret_cast<const char *>(job.rows) + n * tile * 8;
    } else if (KIND == SCATTERED) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int slot = job.sources[static_cast<i64>(tile) * COLUMNS + lane + 32 * k];
            at.from[k] = slot < 0 ? nullptr : reinterpret_cast<const char *>(job.rows + place(slot, 0, n));
        }
    } else {
        at.from[0] = reinterpret_cast<const char *>(job.rows) + (n * tile * ROW + lane % ROW) * 16;
    }
}

// Start the item at hand, or the next one that has a live sample.
template <Rows KIND>
__device__ __forceinline__ void start_item(const Job &job, unsigned warps, Walk &at, int lane) {
    for (; at.item < job.items; at.item += warps) {
        const unsigned tile = at.item / job.runs;
        if ((job.masks[tile * 2] | job.masks[tile * 2 + 1]) == 0)
            continue;
        at.panel = static_cast<int>(at.item % job.runs) * job.length;
        find_rows<KIND>(job, at, tile, lane);
        const int first = at.panel > 0 ? at.panel - 1 : 0, count = static_cast<int>(job.panels.count);
        const int end = at.panel + job.length < count ? at.panel + job.length : count;
        __syncwarp(); // all have done with the run before
        if (first + lane < end)
            reinterpret_cast<uint4 *>(at.run->lists)[lane] =
                __ldg(reinterpret_cast<const uint4 *>(job.panels.lists) + first + lane);
        if (lane == 0)
            at.run->tile = tile, at.run->first = first, at.run->end = end;
        __syncwarp();
        if (first < at.panel && at.run->lists[0].shared) {
            at.panel--;
            start_shared(at);
            at.part = INTO_FIRST;
        } else {
            start_panel(at);
        }
        return;
    }
}

// Go on to the next edges, of the panel, the next panel or the next run.
template <Rows KIND>
__device__ __forceinline__ void advance(const Job &job, unsigned warps, Walk &at, int lane) {
    if (at.left > 0)
        return;
    if (at.then)
        start_shared(at);
    else if (++at.panel < at.run->end)
        start_panel(at);
    else
        at.item += warps, start_item<KIND>(job, warps, at, lane);
}

// Have the inputs of the edges at hand come: of all, two a word, or, where they take a word, of those that this
// part of the warp copies.
__device__ __forceinline__ void fetch_inputs(const Job &job, Walk &at, int lane) {
    const i64 edge = at.begin + at.done;
    if (job.layer.wide) {
        const unsigned *from = static_cast<const unsigned *>(job.panels.indices) + edge + lane / ROW;
#pragma unroll
        for (int k = 0; k < EDGES / APART; k++)
            at.inputs[k] = __ldg(from + APART * k);
    } else {
#pragma unroll
        for (int k = 0; k < EDGES / 8; k++) {
            const uint4 four = __ldg(static_cast<const uint4 *>(job.panels.indices) + edge / 8 + k);
            at.inputs[4 * k] = four.x, at.inputs[4 * k + 1] = four.y;
            at.inputs[4 * k + 2] = four.z, at.inputs[4 * k + 3] = four.w;
        }
    }
}

// Queue the copies of rows for some edges, to an address of shared memory.
template <Rows KIND>
__device__ __forceinline__ void copy_rows(const Job &job, const Walk &at, int count, unsigned to, int lane) {
    const int part = lane / ROW;
    const bool upper = part & 1;
    unsigned inputs[EDGES / APART]; // of APART edges, the one that this part of the warp copies
#pragma unroll
    for (int k = 0; k < EDGES / APART; k++) {
        const unsigned two = APART == 2 || part < 2 ? at.inputs[k * (APART / 2)] : at.inputs[k * (APART / 2) + APART / 4];
        inputs[k] = job.layer.wide ? at.inputs[k] : upper ? two >> 16 : two & 0xffff;
    }
    if constexpr (KIND == SCATTERED) {
#pragma unroll
        for (int k = 0; k < EDGES / 2; k++) {
            const unsigned other = __shfl_xor_sync(ALL_LANES, inputs[k], ROW);
#pragma unroll
            for (int odd = 0; odd < 2; odd++)
#pragma unroll
                for (int side = 0; side < 2; side++)
                    if (2 * k + odd < count && at.from[side])
                        copy_async_to<4>(rings, to + ((2 * k + odd) * COLUMNS + 32 * side + lane) * 4,
                                     at.from[side] + static_cast<i64>(odd == upper ? inputs[k] : other) * (COLUMNS * 4));
        }
    } else if (KIND == BITS) {
#pragma unroll
        for (int k = 0; k < EDGES / APART; k++)
            if (APART * k + part < count && lane % ROW == 0)
                copy_async_to<8>(rings, to + (APART * k + part) * 8, at.from[0] + static_cast<i64>(inputs[k]) * 8);
    } else { // a part of the warp an edge, a lane 16 bytes of the row
#pragma unroll
        for (int k = 0; k < EDGES / APART; k++)
            if (APART * k + part < count)
                copy_async_to<16>(rings, to + place_of(APART * k + part, lane % ROW) * 16,
                                  at.from[0] + static_cast<i64>(inputs[k]) * (ROW * 16));
    }
}

// Queue the copy of the next piece, if there is one, into the stage of the ring at an address, with a note.
template <bool EQUAL, Rows KIND>
__device__ __forceinline__ void bring(const Job &job, unsigned warps, Walk &at, unsigned to, uint4 *note, int lane) {
    if (at.item < job.items) {
        const int count = at.left < EDGES ? at.left : EDGES;
        copy_rows<KIND>(job, at, count, to, lane);
        if (!EQUAL) {
            const int quads = at.part == INTO_BOTH ? 2 * QUADS : QUADS, apart = at.part == ALONE ? QUADS : 2 * QUADS;
            const uint4 *weights = reinterpret_cast<const uint4 *>(job.panels.weights) + at.begin * QUADS +
                                   at.done * apart + (at.part == INTO_FIRST ? QUADS : 0);
            const int there = EDGES == ALIGN ? EDGES : (count + ALIGN - 1) / ALIGN * ALIGN;
            for (int k = lane; k < there * quads; k += 32)
                copy_async_to<16>(rings, to + (ROWS + k) * 16, weights + k / quads * apart + k % quads);
        }
        const bool last = at.part != INTO_FIRST && at.left <= EDGES && at.then == 0;
        if (last && lane < HEIGHT / 2)
            copy_async_to<16>(rings, to + (TARGETS + lane) * 16, reinterpret_cast<const uint4 *>(job.panels.targets) +
                                                   static_cast<i64>(at.panel) * (HEIGHT / 2) + lane);
        if (lane == 0)
            *note = make_uint4(count | (at.part == INTO_BOTH ? BOTH : 0) | (last ? FINISH : 0) |
                                   (last && at.panel + 1 == at.run->end ? END : 0),
                               at.run->tile, 0, 1);
        at.left -= EDGES;
        at.done += EDGES;
        advance<KIND>(job, warps, at, lane);
        if (at.item < job.items)
            fetch_inputs(job, at, lane); // so that they are there the next time
    } else if (lane == 0) {
        *note = make_uint4(0, 0, 0, 0);
    }
    end_group(); // also where there is nothing: groups are counted
}
