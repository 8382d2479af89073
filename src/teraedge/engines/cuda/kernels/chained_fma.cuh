// How a warp of the chained kernel multiplies rows of fp32: a lane is four samples and half of a panel's neurons.
#pragma once

#include "chained_walk.cuh"

struct Sums {
    float4 of[OWN]; // neurons
};

// For each of four samples, its bits of all neurons, ored.
struct Seen {
    unsigned bits[4];
};

__device__ __forceinline__ void add(float4 &sum, const float4 &x, float weight) {
    sum.x = fmaf(x.x, weight, sum.x);
    sum.y = fmaf(x.y, weight, sum.y);
    sum.z = fmaf(x.z, weight, sum.z);
    sum.w = fmaf(x.w, weight, sum.w);
}

// Multiply an edge into the sums of a panel.
template <bool EQUAL>
__device__ __forceinline__ void add_edge(float value, const float4 &x, const float4 *weights, Sums &sums) {
#pragma unroll
    for (int four = 0; four < OWN / 4; four++) {
        const float4 w = EQUAL ? make_float4(value, value, value, value) : weights[four];
        add(sums.of[four * 4 + 0], x, w.x);
        add(sums.of[four * 4 + 1], x, w.y);
        add(sums.of[four * 4 + 2], x, w.z);
        add(sums.of[four * 4 + 3], x, w.w);
    }
}

// Multiply a piece into the sums of a panel, or of two.
template <bool EQUAL, bool TWO>
__device__ __forceinline__ void add_piece(const Job &job, const uint4 *stage, int count, int lane, Sums &now,
                                          Sums &next) {
    const float value = job.layer.value;
    const float4 *rows = reinterpret_cast<const float4 *>(stage) + lane % ROW;
    const float4 *weights = reinterpret_cast<const float4 *>(stage + ROWS) + lane / ROW * (OWN / 4);
    constexpr int QUADS_HERE = QUADS * (TWO ? 2 : 1);
    auto one = [&](int k) {
        const float4 x = rows[k * ROW];
        add_edge<EQUAL>(value, x, weights + k * QUADS_HERE, now);
        if (TWO)
            add_edge<EQUAL>(value, x, weights + k * QUADS_HERE + QUADS, next);
    };
    if (count == EDGES) {
#pragma unroll(EQUAL ? 2 : 1) // more at once take too many registers
        for (int k = 0; k < EDGES; k++)
            one(k);
    } else {
#pragma unroll 1
        for (int k = 0; k < count; k++)
            one(k);
    }
}

// Bias, activation, and out, by the last piece of a panel; ors the bits of each sample's values into `some`.
template <bool EQUAL>
__device__ __forceinline__ void finish(const Job &job, const uint4 *piece, unsigned tile, int lane, Sums &sums,
                                       Seen &some) {
    const Target *targets = reinterpret_cast<const Target *>(piece + TARGETS) + lane / ROW * OWN;
    float4 *out = reinterpret_cast<float4 *>(job.out) + job.layer.n_out * tile * ROW + lane % ROW;
#pragma unroll
    for (int h = 0; h < OWN; h++) {
        const float bias = targets[h].bias;
        float4 &y = sums.of[h];
        y.x = activate(job.layer, y.x, bias), y.y = activate(job.layer, y.y, bias);
        y.z = activate(job.layer, y.z, bias), y.w = activate(job.layer, y.w, bias);
        some.bits[0] |= __float_as_uint(y.x), some.bits[1] |= __float_as_uint(y.y);
        some.bits[2] |= __float_as_uint(y.z), some.bits[3] |= __float_as_uint(y.w);
    }
#pragma unroll
    for (int h = 0; h < OWN; h++)
        store_global(out + static_cast<i64>(targets[h].output) * ROW, sums.of[h]);
}

// Mark the samples with a nonzero output: of a tile, a word of even columns and one of odd ones.
__device__ __forceinline__ void mark(const Job &job, unsigned tile, int lane, const Seen &some) {
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const unsigned two = (some.bits[odd] << 1 ? 1u : 0u) | (some.bits[odd + 2] << 1 ? 2u : 0u); // -0 is zero
        const unsigned all = __reduce_or_sync(ALL_LANES, two << lane % ROW * 2);
        unsigned *seen = job.nonzero + tile * 2 + odd;
        if (lane == 0 && (all & ~*seen)) // most runs tell nothing new
            atomicOr(seen, all);
    }
}

