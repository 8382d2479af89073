// Packed features of a tile of samples, turned inside a block: of each neuron, a bit a sample.
#pragma once

#include "common.cuh"

// Turn 32 words of 32 bits over, four times at once: bit k of lane j goes to bit j of lane k.
__device__ __forceinline__ void turn_words(unsigned (&x)[4], int lane) {
    unsigned mask = 0x0000ffff;
#pragma unroll
    for (int step = 16; step; step >>= 1, mask ^= mask << step)
#pragma unroll
        for (int q = 0; q < 4; q++) {
            const unsigned other = __shfl_xor_sync(ALL_LANES, x[q], step);
            x[q] = lane & step ? (x[q] & ~mask) | (other >> step & mask) : (x[q] & mask) | (other & mask) << step;
        }
}

// Call `store` with each neuron and its bits, for a power of two of `samples` from `slot` on; by all of `warps` warps.
// AHEAD reads of a lane are under way together.
template <int AHEAD = 1, class Store>
__device__ __forceinline__ void turn_samples(const State &state, const int *ids, i64 slot, unsigned running, i64 n,
                                             int samples, int warps, const Store &store) {
    const int parts = 32 / samples; // times 16 bytes that a warp takes at a time
    const int lane = threadIdx.x % 32, sample = lane % samples, part = lane / samples;
    const int there = running >> sample & 1 ? sample : __ffs(running) - 1; // those that are not: any
    const unsigned char *from = state.bits + (ids[slot + there] - state.first) * state.bits_stride;
    const i64 bytes = (n + 7) / 8, words = (bytes + 3) / 4, apart = static_cast<i64>(warps) * parts;
    const bool aligned = ((reinterpret_cast<u64>(state.bits) | static_cast<u64>(state.bits_stride)) & 15) == 0;
#pragma unroll 1
    for (i64 begin = threadIdx.x / 32 * parts; begin * 4 < words; begin += apart * AHEAD) {
        unsigned x[AHEAD][4] = {}; // words of a lane, which lie one after the other
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const i64 byte = (begin + a * apart + part) * 16;
            if (aligned && byte + 16 <= bytes) {
                const uint4 four = __ldg(reinterpret_cast<const uint4 *>(from + byte));
                x[a][0] = four.x, x[a][1] = four.y, x[a][2] = four.z, x[a][3] = four.w;
            } else {
#pragma unroll
                for (int k = 0; k < 16; k++)
                    x[a][k / 4] |= byte + k < bytes ? static_cast<unsigned>(__ldg(from + byte + k)) << k % 4 * 8 : 0;
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            turn_words(x[a], lane);
#pragma unroll 1
            for (int k = 0; k < parts; k++)
#pragma unroll
                for (int q = 0; q < 4; q++) { // the first neuron is in the highest bit of its byte
                    const i64 neuron = ((begin + a * apart + k) * 4 + q) * 32 + (lane ^ 7);
                    if (neuron < n)
                        store(neuron, x[a][q] >> k * samples & first_bits(samples));
                }
        }
    }
}
