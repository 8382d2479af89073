// Products on tensor cores: of fp32 values, as sums of bf16 terms, or of activations stored as fp16 or bf16.
//
// An fp32 value has 24 significant bits and a bf16 one 8, with the same range, so x = x0 + x1 + x2
// exactly, each term what is left, cut off after 8 bits. Weights are split by the host, rounded to
// nearest, into as many of three terms as it takes to hold them exactly. Of the products of terms
// those are kept that reach 2^-24 of the whole. Tensor cores cut sums off at the last bit of the largest summand,
// so small terms are summed apart, and first. Activations that are stored as fp16 or bf16 are multiplied as they are,
// weights split into terms of the same type; against their rounding what is cut off is nothing.
#pragma once

#include "common.cuh"

constexpr int PLANES = STORAGE ? 1 : 3;                             // terms of an activation
constexpr unsigned ONES = STORAGE == 1 ? 0x3c003c00u : 0x3f803f80u; // two, of what is multiplied

// The upper halves of two words, a's below: two values cut off to bf16.
__device__ __forceinline__ unsigned upper_halves(float a, float b) {
    return __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}

// The first terms of two values, a's in the lower halves. What is left of a value beyond a term is exact.
template <int COUNT> __device__ __forceinline__ void split(float a, float b, unsigned (&terms)[COUNT]) {
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        terms[k] = upper_halves(a, b);
        a -= __uint_as_float(terms[k] << 16), b -= __uint_as_float(terms[k] & 0xffff0000u);
    }
}

// The value that is the sum of terms, each as the bits of an fp32 value; exact.
template <int COUNT> __device__ __forceinline__ float joined(const unsigned (&terms)[COUNT]) {
    float sum = __uint_as_float(terms[COUNT - 1]);
#pragma unroll
    for (int k = COUNT - 2; k >= 0; k--)
        sum = __uint_as_float(terms[k]) + sum;
    return sum;
}

// sums[16][8] += a[16][16] * b[16][8] by a warp, of fp16 if activations are stored so, else of bf16.
// Lane 4 g + q holds sums of rows g and g + 8, columns 2 q
// and 2 q + 1; of a, row g (x, z) and g + 8 (y, w), columns 2 q, 2 q + 1 (x, y) and those + 8 (z, w); and of
// b, column g, rows 2 q, 2 q + 1 (low) and those + 8 (high).
#ifndef TERAEDGE_EMULATED
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint4 &a, unsigned low, unsigned high) {
#if STORAGE == 1
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
#endif
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
        const unsigned bits = mine[from][word] >> 16 * half & 0xffff;
        return STORAGE == 1 ? half_value(static_cast<unsigned short>(bits)) : __uint_as_float(bits << 16);
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

// Matrices of 8 rows of 8 values, 16 bits each, between shared memory and registers, two or four by a warp.
// Lane 8 m + r says where row r of matrix m lies, 16 bytes. Turned over, lane 4 g + q has of each matrix rows
// 2 q and 2 q + 1 (upper half) of column g; else columns 2 q and 2 q + 1 of row g. `of` is as in `load_shared`.
#ifndef TERAEDGE_EMULATED
__device__ __forceinline__ void load_turned(const void *, unsigned address, unsigned (&words)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
}
__device__ __forceinline__ void load_turned(const void *, unsigned address, unsigned (&words)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address));
}
#else
template <int COUNT> inline void load_turned(const void *of, unsigned address, unsigned (&words)[COUNT]) {
    const int lane = threadIdx.x % 32, column = lane / 4;
    for (int m = 0; m < COUNT; m++) {
        unsigned word = 0;
        for (int half = 0; half < 2; half++) {
            const unsigned row = __shfl_sync(ALL_LANES, address, m * 8 + lane % 4 * 2 + half);
            word |= load_shared<unsigned short>(of, row + column * 2) << 16 * half;
        }
        words[m] = word;
    }
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void store_matrices(void *, unsigned address, const unsigned (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}
__device__ __forceinline__ void store_matrices(void *, unsigned address, const unsigned (&words)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(words[0]), "r"(words[1])
                 : "memory");
}
__device__ __forceinline__ void store_turned(void *, unsigned address, const unsigned (&words)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}
#else
template <int COUNT>
__device__ __forceinline__ void store_matrices(void *of, unsigned address, const unsigned (&words)[COUNT]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < COUNT; m++)
        store_shared(of, __shfl_sync(ALL_LANES, address, m * 8 + lane / 4) + lane % 4 * 4, words[m]);
}
__device__ __forceinline__ void store_turned(void *of, unsigned address, const unsigned (&words)[4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned row = __shfl_sync(ALL_LANES, address, m * 8 + lane % 4 * 2 + half);
            store_shared(of, row + lane / 4 * 2, static_cast<unsigned short>(words[m] >> 16 * half));
        }
}
#endif
