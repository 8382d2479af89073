// What small.cu does with the layers of a segment: where they lie in shared memory, and the sums of a slice.
//
// Specialised by: THREADS, STAGES.
#pragma once

#include "common.cuh"

constexpr int WARPS = THREADS / 32 - 1; // that compute; the last one copies
constexpr int GROUP = 4; // samples of a row
constexpr int ZERO_ROWS = 8; // rows of zeros before the first neuron: padding

// What there is to know of a slice, as plan/small.py writes it: at the beginning of a piece, one for each of a
// power of two of slices.
struct alignas(16) Slice {
    int begin;   // in units of 16 bytes from the beginning of the piece
    int lengths; // *quads* of eight edges and, from bit 16 on, pairs of edges that are left over; -1: no slice
    float lower, upper;
};
constexpr int TARGETS = 16, QUAD = 32, PAIR = 8; // units of indices for a warp; weights take twice as many

// Where a piece lies in global memory.
struct alignas(16) Place {
    const uint4 *from;
    int units;
    int flags; // slices: 1 << bits 0 to 7; bit 8: the last of its layer; enum Curve from bit 16 on
};

// What is counted of a layer: in this tile, and in all of them.
struct Counts {
    unsigned nonzero, stamp; // samples with a nonzero output; when it began
    unsigned ran, live, clocks;
};

// Sizes, and where the parts of shared memory begin, in units.
extern __shared__ uint4 space[]; // ring [STAGES][stage], rows [2][groups][row_count], Place [pieces + 1], bits, Counts [layers + 1]

struct Areas {
    int stage, groups, row_count, layers, pieces;
    int rows, places, bits, counts;

    __device__ __forceinline__ Areas(int stage_size, int group_count, int rows_of_group, int layer_count, int piece_count,
                                     int bit_count)
        : stage(stage_size), groups(group_count), row_count(rows_of_group), layers(layer_count), pieces(piece_count) {
        rows = STAGES * stage;
        places = rows + 2 * groups * row_count;
        bits = places + pieces + 1;
        counts = bits + (bit_count + 7) / 8;
    }
    // What goes into a layer of the segment, or comes out of the one before it; of the first group.
    __device__ __forceinline__ float4 *rows_of(int layer) const {
        return reinterpret_cast<float4 *>(space) + rows + (layer & 1) * groups * row_count;
    }
    __device__ __forceinline__ Counts &counts_of(int layer) const {
        return reinterpret_cast<Counts *>(space + counts)[layer];
    }
    __device__ __forceinline__ Place &place_of(int piece) const { return reinterpret_cast<Place *>(space + places)[piece]; }
    __device__ __forceinline__ unsigned short *bits_of(i64 neuron) const {
        return reinterpret_cast<unsigned short *>(space + bits) + neuron;
    }
};

// What the threads of a block tell each other.
struct Now {
    u64 began, began_nanos;
    unsigned ticket, left;
    int awake;       // layers up to the last after which a zero row may come to life
    int slots[WORD]; // where samples go
};

// Find the pieces of all layers; by all threads. Counts are used for sums before they begin to count.
__device__ __forceinline__ void find_pieces(const Layer *layers, const Areas &areas, Now &now) {
#pragma unroll 1
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        areas.counts_of(k).ran = static_cast<unsigned>(layers[k].single.count);
        if (!layers[k].droppable)
            atomicMax(&now.awake, k + 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) { // sums of pieces up to each layer
        const int lane = threadIdx.x;
        unsigned before = 0;
#pragma unroll 1
        for (int first = 0; first < areas.layers; first += 32) {
            const unsigned own = first + lane < areas.layers ? areas.counts_of(first + lane).ran : 0;
            unsigned sum = own;
            for (int step = 1; step < 32; step *= 2) {
                const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (first + lane < areas.layers)
                areas.counts_of(first + lane).live = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    __syncthreads();
#pragma unroll 1
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Panels &panels = layers[k].single;
        Counts &counts = areas.counts_of(k);
        for (unsigned piece = 0; piece < counts.ran; piece++) {
            const List list = panels.lists[piece];
            areas.place_of(counts.live + piece) = {static_cast<const uint4 *>(panels.indices) + list.begin, list.length,
                                                   list.shared};
        }
        counts.ran = counts.live = counts.clocks = 0;
    }
}

// Have a piece come into its place of the ring, if there is one; by one warp.
__device__ __forceinline__ void request(const Areas &areas, int piece, int unit, int lane) {
    if (piece < areas.pieces) {
        const Place place = areas.place_of(piece);
        uint4 *to = space + unit;
#pragma unroll 4
        for (int k = lane; k < place.units; k += 32)
            copy_async(to + k, place.from + k);
    }
    end_group();
}

// Rows in shared memory, rows of zeros first.
struct FromShared {
    enum { AHEAD = true }; // whether indices and weights are read ahead
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const { return rows[neuron]; }
};

// Rows in global memory; those of zeros, which the first numbers stand for, are not there.
struct FromRows {
    enum { AHEAD = false }; // registers are short
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        return neuron < ZERO_ROWS ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                                  : __ldg(rows + (neuron - ZERO_ROWS) * (COLUMNS / 4));
    }
};

// Packed features, turned, zeros first.
struct FromBits {
    enum { AHEAD = false };
    const unsigned short *bits;
    int shift; // to the group
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        const unsigned four = bits[neuron] >> shift;
        return make_float4(four & 1 ? 1.0f : 0.0f, four & 2 ? 1.0f : 0.0f, four & 4 ? 1.0f : 0.0f, four & 8 ? 1.0f : 0.0f);
    }
};

__device__ __forceinline__ void add(const float4 &x, float weight, float *totals) {
    totals[0] = fmaf(x.x, weight, totals[0]);
    totals[1] = fmaf(x.y, weight, totals[1]);
    totals[2] = fmaf(x.z, weight, totals[2]);
    totals[3] = fmaf(x.w, weight, totals[3]);
}

// Sum the inputs of a lane's neuron of a slice. Indices and weights of the next quad are read before those at
// hand are used, one quad too many.
template <class From>
__device__ __forceinline__ void sum(const From &from, const uint4 *edges, int lengths, int lane, float *totals) {
    const int quads = lengths & 0xffff, pairs = lengths >> 16;
    if (quads) {
        const uint4 *indices = edges + lane;
        const float4 *weights = reinterpret_cast<const float4 *>(edges + quads * QUAD) + lane;
        uint4 four = *indices;
        float4 w[2] = {weights[0], weights[QUAD]};
#pragma unroll 1
        for (int k = 0; k < quads; k++) {
            const float4 x[8] = {from(four.x & 0xffff), from(four.x >> 16), from(four.y & 0xffff), from(four.y >> 16),
                                 from(four.z & 0xffff), from(four.z >> 16), from(four.w & 0xffff), from(four.w >> 16)};
            const float4 now[2] = {w[0], w[1]};
            indices += QUAD, weights += 2 * QUAD;
            if (From::AHEAD)
                four = *indices, w[0] = weights[0], w[1] = weights[QUAD];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                add(x[4 * half], now[half].x, totals), add(x[4 * half + 1], now[half].y, totals);
                add(x[4 * half + 2], now[half].z, totals), add(x[4 * half + 3], now[half].w, totals);
            }
            if (!From::AHEAD)
                four = *indices, w[0] = weights[0], w[1] = weights[QUAD];
        }
    }
    edges += 3 * QUAD * quads;
    const unsigned *indices = reinterpret_cast<const unsigned *>(edges) + lane;
    const float2 *weights = reinterpret_cast<const float2 *>(edges + pairs * PAIR) + lane;
#pragma unroll 1
    for (int k = 0; k < pairs; k++) {
        const unsigned both = indices[k * 32];
        const float2 w = weights[k * 32];
        const float4 x[2] = {from(both & 0xffff), from(both >> 16)};
        add(x[0], w.x, totals), add(x[1], w.y, totals);
    }
}

struct Bounds {
    float lower, upper;
    int curve;
};

// Run a slice of a piece on a group, into `rows`; returns the samples with a nonzero output. Where there are fewer
// than 32 neurons, other lanes write a row for nobody, whose number has the sign bit.
template <class From>
__device__ __forceinline__ unsigned run_slice(const uint4 *piece, const Slice &slice, int curve, const From &from,
                                              float4 *rows, int lane) {
    piece += slice.begin;
    float totals[GROUP] = {};
    const int2 target = reinterpret_cast<const int2 *>(piece)[lane];
    sum(from, piece + TARGETS, slice.lengths, lane, totals);
    const Bounds bounds = {slice.lower, slice.upper, curve};
    unsigned some = 0;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        totals[k] = activate(bounds, totals[k], __int_as_float(target.y));
        some |= totals[k] != 0.0f ? 1u << k : 0u;
    }
    rows[target.x & 0x7fffffff] = make_float4(totals[0], totals[1], totals[2], totals[3]);
    return __reduce_or_sync(ALL_LANES, target.x < 0 ? 0 : some);
}

// Run a piece on all groups with live samples, into `rows`; by the warps that compute.
template <class Inputs>
__device__ __forceinline__ void run_piece(const Areas &areas, const uint4 *piece, int flags, unsigned running,
                                          const Inputs &inputs, float4 *rows, unsigned *nonzero, int warp, int lane) {
    const int shift = flags & 0xff;
#pragma unroll 1
    for (int item = warp; item < areas.groups << shift; item += WARPS) {
        const int group = item >> shift;
        const Slice slice = reinterpret_cast<const Slice *>(piece)[item & ((1 << shift) - 1)];
        if ((running >> group * GROUP & first_bits(GROUP)) == 0 || slice.lengths < 0)
            continue;
        const unsigned some = run_slice(piece, slice, flags >> 16, inputs(group), rows + group * areas.row_count, lane);
        if (lane == 0)
            atomicOr(nonzero, some << group * GROUP);
    }
}
