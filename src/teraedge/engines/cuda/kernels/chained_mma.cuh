// How a warp of the chained kernel multiplies rows of fp16 or bf16: on tensor cores, 16 edges at a time, a
// panel of 16 neurons (of 8, the others are zero) by 64 samples.
//
// Activations are what tensor cores take. Weights are split into TERMS of the same type, which hold those that the
// host lets through to 21 bits or more; where all are equal, rows are summed and the sums are multiplied. Sums are
// fp32, cut off at their last bit.
#pragma once

#include "chained_walk.cuh"
#include "mma.cuh"

constexpr int PARTS = COLUMNS / 8;          // matrices of eight samples
constexpr int TERMS = STORAGE == 1 ? 2 : 3; // of a weight

// Lane 4 g + q has of neurons g and g + 8 the samples 2 q and 2 q + 1 of each part.
struct Sums {
    float of[PARTS][4];
};

// Whether these samples have a nonzero: bits 15 - part and 31 - part.
struct Seen {
    unsigned bits;
};

// Which of two values, of edges `first` and the next, there are.
__device__ __forceinline__ unsigned there(int first, int count) {
    return (first < count ? 0xffffu : 0) | (first + 1 < count ? 0xffff0000u : 0);
}

// The rows of a piece as tensor cores read them, of two parts from `first` on: of each, edges 0 to 7 and 8 to 15;
// zero beyond its edges.
__device__ __forceinline__ void load_rows(unsigned piece, int first, int count, int lane, unsigned (&rows)[4]) {
    load_turned(rings, piece + place_of(lane % 16, first + lane / 16) * 16, rows);
    if (count < EDGES) {
        const unsigned low = there(lane % 4 * 2, count), high = there(lane % 4 * 2 + 8, count);
        rows[0] &= low, rows[1] &= high, rows[2] &= low, rows[3] &= high;
    }
}

// The terms of the weights of a panel, from an address of shared memory on, `apart` from one edge to the next.
__device__ __forceinline__ void load_weights(unsigned weights, int apart, int count, int lane, uint4 (&terms)[TERMS]) {
    const int neuron = lane / 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int below = k % 2 * 8, edge = lane % 4 * 2 + k / 2 * 8;
        float2 left = make_float2(0.0f, 0.0f);
        if (below == 0 || HEIGHT > 8) {
            const unsigned from = weights + (edge * apart + neuron + below) * 4;
            left.x = edge < count ? load_shared<float>(rings, from) : 0.0f;
            left.y = edge + 1 < count ? load_shared<float>(rings, from + apart * 4) : 0.0f;
        }
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            const unsigned term = stored(left);
            const float2 gone = loaded(term);
            left.x -= gone.x, left.y -= gone.y;
            (k == 0 ? terms[t].x : k == 1 ? terms[t].y : k == 2 ? terms[t].z : terms[t].w) = term;
        }
    }
}

// Multiply a piece into the sums of a panel, or of two. The smallest terms come first.
template <bool EQUAL, bool TWO>
__device__ __forceinline__ void add_piece(const Job &, const uint4 *stage, int count, int lane, Sums &now, Sums &next) {
    constexpr int WIDTH = HEIGHT * (TWO ? 2 : 1), LAST = EQUAL ? 0 : TERMS - 1;
    constexpr unsigned UPPER = HEIGHT > 8 ? ONES : 0;
    const unsigned piece = shared_address(rings, static_cast<unsigned>(stage - rings) * 16), weights = piece + ROWS * 16;
    uint4 terms[2][TERMS];
    if (EQUAL) {
        terms[0][0] = terms[1][0] = make_uint4(ONES, UPPER, ONES, UPPER);
    } else {
        load_weights(weights, WIDTH, count, lane, terms[0]);
        if (TWO)
            load_weights(weights + HEIGHT * 4, WIDTH, count, lane, terms[1]);
    }
#pragma unroll
    for (int first = 0; first < PARTS; first += 2) {
        unsigned rows[4];
        load_rows(piece, first, count, lane, rows);
#pragma unroll
        for (int t = LAST; t >= 0; t--)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                multiply_add(now.of[first + k], terms[0][t], rows[2 * k], rows[2 * k + 1]);
                if (TWO)
                    multiply_add(next.of[first + k], terms[1][t], rows[2 * k], rows[2 * k + 1]);
            }
    }
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

// Bias, activation, and out, by the last piece of a panel; notes in `some` which samples have a nonzero.
template <bool EQUAL>
__device__ __forceinline__ void finish(const Job &job, const uint4 *piece, unsigned tile, int lane, Sums &sums,
                                       Seen &some) {
    const Target *targets = reinterpret_cast<const Target *>(piece + TARGETS) + lane / 4;
    uint4 *out = reinterpret_cast<uint4 *>(job.out) + job.layer.n_out * tile * ROW + lane % 4;
    const float value = EQUAL ? job.layer.value : 1.0f;
    const unsigned lower = two_stored(job.layer.lower, job.layer.lower);
    const unsigned upper = two_stored(job.layer.upper, job.layer.upper);
#pragma unroll
    for (int below = 0; below < HEIGHT / 8; below++) {
        const Target target = targets[below * 8];
        unsigned words[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const float *sum = sums.of[part] + 2 * below;
            float a = fmaf(sum[0], value, target.bias), b = fmaf(sum[1], value, target.bias);
#if CURVES
            if (job.layer.curve)
                a = curved(job.layer.curve, a), b = curved(job.layer.curve, b);
#endif
            words[part] = clamped(two_stored(a, b), lower, upper); // as good as before they are rounded
            some.bits |= (((words[part] & 0x7fff7fffu) + 0x7fff7fffu) & 0x80008000u) >> part; // -0 is zero
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
    for (int part = 0; part < PARTS; part++) {
        found[0] |= (some.bits >> (15 - part) & 1) << (part * 4 + lane % 4);
        found[1] |= (some.bits >> (31 - part) & 1) << (part * 4 + lane % 4);
    }
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const unsigned all = __reduce_or_sync(ALL_LANES, found[odd]);
        unsigned *seen = job.nonzero + tile * 2 + odd;
        if (lane == 0 && (all & ~*seen)) // most runs tell nothing new
            atomicOr(seen, all);
    }
}
