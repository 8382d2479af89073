// Products on tensor cores of fp32 values, as sums of bf16 terms.
//
// An fp32 value has 24 significant bits and a bf16 one 8, with the same range, so x = x0 + x1 + x2
// exactly, each term what is left, cut off after 8 bits. Weights are split by the host, rounded to
// nearest, into as many of three terms as it takes to hold them exactly. Of the products of terms
// those are kept that reach 2^-24 of the whole. Tensor cores cut sums off at the last bit of the
// largest summand, so small terms are summed apart, and first.
#pragma once

#include "common.cuh"

// The upper halves of two words, a's below: two values cut off to bf16.
__device__ __forceinline__ unsigned upper_halves(float a, float b) {
    return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}

// What is left of a value beyond its first 8 bits; exact.
__device__ __forceinline__ float beyond_bf16(float x) {
    return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}

// The three terms of two values, a's in the lower halves.
__device__ __forceinline__ void split(float a, float b, unsigned &first, unsigned &second, unsigned &third) {
    first = upper_halves(a, b);
    a = beyond_bf16(a), b = beyond_bf16(b);
    second = upper_halves(a, b);
    third = upper_halves(beyond_bf16(a), beyond_bf16(b));
}

// sums[16][8] += a[16][16] * b[16][8] by a warp. Lane 4 g + q holds sums of rows g and g + 8, columns 2 q
// and 2 q + 1; of a, row g (x, z) and g + 8 (y, w), columns 2 q, 2 q + 1 (x, y) and those + 8 (z, w); and of
// b, column g, rows 2 q, 2 q + 1 (low) and those + 8 (high).
#ifndef TERAEDGE_EMULATED
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint4 &a, unsigned low, unsigned high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high));
}
#else
inline void multiply_add(float (&sums)[4], const uint4 &a, unsigned low, unsigned high) {
    static unsigned given[32][32][6]; // of every lane of every warp of the block
    unsigned(*mine)[6] = given[threadIdx.x / 32];
    const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
    const unsigned words[6] = {a.x, a.y, a.z, a.w, low, high};
    for (int k = 0; k < 6; k++)
        mine[lane][k] = words[k];
    __syncwarp();
    auto value = [&](int from, int word, int half) {
        return __uint_as_float(half ? mine[from][word] & 0xffff0000u : mine[from][word] << 16);
    };
    for (int k = 0; k < 4; k++) {
        const int below = k / 2, column = 2 * quarter + k % 2; // row group + 8 * below
        double sum = sums[k];
        for (int inner = 0; inner < 16; inner++) {
            const int part = inner / 8, of = inner % 8 / 2, half = inner % 2;
            sum += static_cast<double>(value(4 * group + of, below + 2 * part, half)) *
                   value(4 * column + of, 4 + part, half);
        }
        sums[k] = static_cast<float>(sum);
    }
    __syncwarp();
}
#endif
