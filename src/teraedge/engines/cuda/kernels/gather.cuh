// What the kernels share that keep rows of SAMPLES floats in shared memory, and gather from there.
//
// A lane works on one neuron, or on one panel of neurons that read the same inputs: for each edge it
// reads the input's row as 16-byte chunks into registers. Lanes read *different* rows, and shared
// memory serves eight 16-byte reads at once if they fall into different bank groups. Lane k therefore
// starts with chunk k % CHUNKS, and of the lanes that are at the same chunk the plan has ordered the
// edges so that their rows differ modulo 8 / CHUNKS: no two reads meet in a bank (few, where that would
// make lists much longer).
//
// Specialised by: SAMPLES (4, 8, 16, 32).
#pragma once

#include "common.cuh"

constexpr int CHUNKS = SAMPLES / 4;
constexpr int ZERO_ROWS = 8; // rows of zeros behind the last neuron: padding

// What a lane needs for a pair of edges of a panel: two indices in a word, and the weights. In memory,
// weights lie as [pair][2 HEIGHT / v][32 lanes][v], v of them a load.
template <int HEIGHT> struct Pair {
    unsigned indices;
    float weights[2][HEIGHT]; // [edge][neuron]

    template <bool EQUAL>
    __device__ __forceinline__ void load(const unsigned *all_indices, const float *all_weights, int pair) {
        indices = __ldg(all_indices + pair * 32);
        if (EQUAL)
            return;
        all_weights += pair * 64 * HEIGHT;
        if constexpr (HEIGHT == 1) {
            const float2 both = __ldg(reinterpret_cast<const float2 *>(all_weights));
            weights[0][0] = both.x, weights[1][0] = both.y;
        } else {
#pragma unroll
            for (int edge = 0; edge < 2; edge++) {
                const float4 four = __ldg(reinterpret_cast<const float4 *>(all_weights) + edge * 32);
                weights[edge][0] = four.x, weights[edge][1] = four.y;
                weights[edge][2] = four.z, weights[edge][3] = four.w;
            }
        }
    }
};

// Multiply one input's chunks into totals[HEIGHT][CHUNK_COUNT * 4]. An index counts chunks, so it is
// the address of a row.
template <int HEIGHT, int CHUNK_COUNT, bool EQUAL>
__device__ __forceinline__ void add_edge(const float4 *rows, unsigned row, float value, const float *weights,
                                         float *totals) {
#pragma unroll
    for (int j = 0; j < CHUNK_COUNT; j++) {
        const float4 x = rows[row ^ j];
#pragma unroll
        for (int h = 0; h < HEIGHT; h++) {
            const float w = EQUAL ? value : weights[h];
            float *sum = totals + (h * CHUNK_COUNT + j) * 4;
            sum[0] = fmaf(x.x, w, sum[0]);
            sum[1] = fmaf(x.y, w, sum[1]);
            sum[2] = fmaf(x.z, w, sum[2]);
            sum[3] = fmaf(x.w, w, sum[3]);
        }
    }
}

// Pairs of edges that are loaded together.
constexpr __device__ int pairs_ahead(int height, int chunks) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    if (height == 1 && chunks == 2)
        return 1; // registers are scarcer there, see below
#endif
    return height > 1 ? 1 : chunks >= 8 ? 1 : chunks >= 4 ? 2 : 4;
}

// Whether the next pairs are loaded before those at hand are summed. Newer GPUs multiply and add two by
// two, which wants pairs of registers; there the registers do not suffice.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool EARLY = false;
#else
constexpr bool EARLY = true;
#endif

// Sum the inputs of a lane's PANELS panels of a slice, taking a pair of edges of each in turn:
// CHUNK_COUNT chunks from `first` on of `rows`, each xor-ed with the lane's own. The next AHEAD pairs are on
// their way while AHEAD are summed; the less that takes, the more there must be. They are loaded
// together, because a warp can wait for few groups of loads apart.
template <int PANELS, int HEIGHT, int CHUNK_COUNT, bool EQUAL>
__device__ __forceinline__ void gather(const float4 *rows, const Panels &panels, int slice, int lane, int first,
                                       float value, float *totals) {
    constexpr int AHEAD = pairs_ahead(HEIGHT, CHUNK_COUNT);
    constexpr int ROUNDS = PANELS > AHEAD ? PANELS / AHEAD : 1; // till the panels come again
    static_assert(AHEAD % PANELS == 0 || PANELS % AHEAD == 0, "each place is of one panel");
    const List list = panels.lists[slice];
    const unsigned *indices = static_cast<const unsigned *>(panels.indices) + list.begin * (32 * PANELS) + lane;
    const float *weights =
        panels.weights + list.begin * (64 * HEIGHT * PANELS) + lane * (HEIGHT == 1 ? 2 : HEIGHT);
    const unsigned swizzle = (lane & (CHUNKS - 1)) ^ first;
    Pair<HEIGHT> now[AHEAD], next[AHEAD];
    int left = list.length * PANELS;
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        if (k < left)
            now[k].template load<EQUAL>(indices, weights, k);
#pragma unroll 1
    while (left > 0) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            indices += AHEAD * 32;
            if (!EQUAL)
                weights += AHEAD * 64 * HEIGHT;
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (EARLY && AHEAD + k < left)
                    next[k].template load<EQUAL>(indices, weights, k);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (ROUNDS > 1 || k < left) {
                    float *sums = totals + (round * AHEAD + k) % PANELS * HEIGHT * CHUNK_COUNT * 4;
                    const unsigned both = now[k].indices;
                    add_edge<HEIGHT, CHUNK_COUNT, EQUAL>(rows, (both & 0xffff) ^ swizzle, value, now[k].weights[0],
                                                         sums);
                    add_edge<HEIGHT, CHUNK_COUNT, EQUAL>(rows, (both >> 16) ^ swizzle, value, now[k].weights[1],
                                                         sums);
                }
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (EARLY)
                    now[k] = next[k];
                else if (AHEAD + k < left)
                    now[k].template load<EQUAL>(indices, weights, k);
            left -= AHEAD;
        }
    }
}

// Add the bias to the sums of one neuron, apply the activation and round, in place; with `look`, returns the
// samples where that is nonzero.
template <int CHUNK_COUNT>
__device__ __forceinline__ unsigned finish(const Layer &layer, float bias, int swizzle, bool look, float *totals) {
    unsigned live = 0;
#pragma unroll
    for (int k = 0; k < CHUNK_COUNT * 4; k++)
        totals[k] = rounded(activate(layer, totals[k], bias));
    if (look) {
#pragma unroll
        for (int j = 0; j < CHUNK_COUNT; j++) {
            const float *y = totals + 4 * j;
            const unsigned some =
                (y[0] != 0.0f) | (y[1] != 0.0f) << 1 | (y[2] != 0.0f) << 2 | (y[3] != 0.0f) << 3;
            live |= some << ((swizzle ^ j) * 4);
        }
    }
    return live;
}
