// How a warp of the chained kernel multiplies rows of fp16 or bf16: on tensor cores, eight edges at a time, a panel
// of 16 neurons (of 8, the others are zero) by 64 samples.
//
// Activations are what tensor cores take. Weights are split into TERMS of the same type, which hold those that the
// host lets through to 21 bits or more; where all are equal, rows are summed and the sums are multiplied. Sums are
// fp32, cut off at their last bit.
#pragma once

#include "chained_walk.cuh"
#include "mma.cuh"

constexpr int PARTS = COLUMNS / 8;              // matrices of eight samples
constexpr int TERMS = STORAGE == 1 ? 2 : 3;     // of a weight
constexpr unsigned ONES = STORAGE == 1 ? 0x3c003c00 : 0x3f803f80;

// Lane 4 g + q has of neurons g and g + 8 the samples 2 q and 2 q + 1 of each part.
struct Sums {
    float of[PARTS][4];
};

// For these samples, two a word, the bits of all neurons, ored.
struct Seen {
    unsigned bits[PARTS];
};

// sums[16][8] += a[16][8] * b[8][8] by a warp, with a's rows g and g + 8, columns 2 q and 2 q + 1, and b's column g,
// rows 2 q and 2 q + 1.
#ifndef TERAEDGE_EMULATED
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint2 &a, unsigned b) {
#if STORAGE == 1
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#endif
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a.x), "r"(a.y), "r"(b));
}
#else
inline void multiply_add(float (&sums)[4], const uint2 &a, unsigned b) {
    static unsigned given[32][32][3]; // of every lane of every warp of the block
    unsigned(*mine)[3] = given[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    mine[lane][0] = a.x, mine[lane][1] = a.y, mine[lane][2] = b;
    __syncwarp();
    auto value = [&](int from, int word, int half) {
        return bits_loaded(static_cast<unsigned short>(mine[from][word] >> 16 * half));
    };
    for (int k = 0; k < 4; k++) {
        double sum = sums[k];
        for (int inner = 0; inner < 8; inner++)
            sum += static_cast<double>(value(lane / 4 * 4 + inner / 2, k / 2, inner % 2)) *
                   value((2 * (lane % 4) + k % 2) * 4 + inner / 2, 2, inner % 2);
        sums[k] = static_cast<float>(sum);
    }
    __syncwarp();
}
#endif

// The rows of a piece as tensor cores read them; zero beyond its edges.
__device__ __forceinline__ void load_rows(unsigned piece, int count, int lane, unsigned (&rows)[PARTS]) {
    const int edge = lane % 8, first = lane % 4 * 2;
#pragma unroll
    for (int four = 0; four < PARTS / 4; four++) {
        unsigned words[4];
        load_turned(rings, piece + place_of(edge, four * 4 + lane / 8) * 16, words);
#pragma unroll
        for (int k = 0; k < 4; k++)
            rows[four * 4 + k] = words[k];
    }
    if (count < EDGES) {
        const unsigned there = (first < count ? 0xffffu : 0) | (first + 1 < count ? 0xffff0000u : 0);
#pragma unroll
        for (int k = 0; k < PARTS; k++)
            rows[k] &= there;
    }
}

// The terms of the weights of a panel, `apart` from one edge to the next.
__device__ __forceinline__ void load_weights(const float *weights, int apart, int count, int lane, uint2 (&terms)[TERMS]) {
    const int neuron = lane / 4, first = lane % 4 * 2;
#pragma unroll
    for (int below = 0; below < 2; below++) {
        float2 left = make_float2(0.0f, 0.0f);
        if (below == 0 || HEIGHT > 8) {
            const float *from = weights + first * apart + neuron + below * 8;
            left.x = first < count ? from[0] : 0.0f;
            left.y = first + 1 < count ? from[apart] : 0.0f;
        }
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            const unsigned term = stored(left);
            const float2 gone = loaded(term);
            left.x -= gone.x, left.y -= gone.y;
            (below ? terms[t].y : terms[t].x) = term;
        }
    }
}

// Multiply a piece into the sums of a panel.
template <bool EQUAL>
__device__ __forceinline__ void add_rows(const float *weights, int apart, int count, int lane,
                                         const unsigned (&rows)[PARTS], Sums &sums) {
    uint2 terms[TERMS];
    if (EQUAL)
        terms[0] = make_uint2(ONES, HEIGHT > 8 ? ONES : 0);
    else
        load_weights(weights, apart, count, lane, terms);
#pragma unroll
    for (int t = EQUAL ? 0 : TERMS - 1; t >= 0; t--)
#pragma unroll
        for (int part = 0; part < PARTS; part++)
            multiply_add(sums.of[part], terms[t], rows[part]);
}

// Multiply a piece into the sums of a panel, or of two.
template <bool EQUAL, bool TWO>
__device__ __forceinline__ void add_piece(const Job &, const uint4 *stage, int count, int lane, Sums &now, Sums &next) {
    constexpr int WIDTH = HEIGHT * (TWO ? 2 : 1);
    const float *weights = reinterpret_cast<const float *>(stage + ROWS);
    unsigned rows[PARTS];
    load_rows(shared_address(rings, static_cast<unsigned>(stage - rings) * 16), count, lane, rows);
    add_rows<EQUAL>(weights, WIDTH, count, lane, rows, now);
    if (TWO)
        add_rows<EQUAL>(weights + HEIGHT, WIDTH, count, lane, rows, next);
}

// Turn over the 4 x 4 words that four neighbouring lanes have: word k of lane q goes to word q of lane k.
__device__ __forceinline__ uint4 turned(const unsigned *words, int lane) {
    unsigned a = words[0], b = words[1], c = words[2], d = words[3];
    const bool odd = lane & 1, high = lane & 2;
    const unsigned ab = __shfl_xor_sync(ALL_LANES, odd ? a : b, 1), cd = __shfl_xor_sync(ALL_LANES, odd ? c : d, 1);
    (odd ? a : b) = ab, (odd ? c : d) = cd;
    const unsigned ac = __shfl_xor_sync(ALL_LANES, high ? a : c, 2), bd = __shfl_xor_sync(ALL_LANES, high ? b : d, 2);
    (high ? a : c) = ac, (high ? b : d) = bd;
    return make_uint4(a, b, c, d);
}

// Bias, activation, and out, by the last piece of a panel; ors the bits of each sample's values into `some`.
template <bool EQUAL>
__device__ __forceinline__ void finish(const Job &job, const uint4 *piece, unsigned tile, int lane, Sums &sums,
                                       Seen &some) {
    const Target *targets = reinterpret_cast<const Target *>(piece + TARGETS) + lane / 4;
    uint4 *out = reinterpret_cast<uint4 *>(job.out) + job.layer.n_out * tile * ROW + lane % 4;
    const float value = EQUAL ? job.layer.value : 1.0f;
#pragma unroll
    for (int below = 0; below < HEIGHT / 8; below++) {
        const Target target = targets[below * 8];
        unsigned words[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const float *sum = sums.of[part] + 2 * below;
            words[part] = two_stored(activate(job.layer, sum[0] * value, target.bias),
                                     activate(job.layer, sum[1] * value, target.bias));
            some.bits[part] |= words[part];
        }
        uint4 *to = out + static_cast<i64>(target.output) * ROW;
#pragma unroll
        for (int four = 0; four < PARTS / 4; four++)
            store_global(to + four * 4, turned(words + four * 4, lane));
    }
}

// Mark the samples with a nonzero output: of a tile, a word of even columns and one of odd ones.
__device__ __forceinline__ void mark(const Job &job, unsigned tile, int lane, const Seen &some) {
    unsigned found[2] = {};
#pragma unroll
    for (int part = 0; part < PARTS; part++) { // -0 is zero
        found[0] |= (some.bits[part] & 0x7fffu ? 1u : 0u) << (part * 4 + lane % 4);
        found[1] |= (some.bits[part] & 0x7fff0000u ? 1u : 0u) << (part * 4 + lane % 4);
    }
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const unsigned all = __reduce_or_sync(ALL_LANES, found[odd]);
        unsigned *seen = job.nonzero + tile * 2 + odd;
        if (lane == 0 && (all & ~*seen)) // most runs tell nothing new
            atomicOr(seen, all);
    }
}
