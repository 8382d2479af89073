// The tile of samples of the block kernel (block.cu): where rows lie in shared memory, and how they come
// there and go.
#pragma once

#include "mma.cuh"

constexpr int LAYERS_AHEAD = 4;
#include "tiles.cuh"

constexpr int WARPS = 16; // that compute
constexpr int PANEL = 16, STEP = 16;
constexpr int ZERO_ROWS = 4; // behind the last neuron: padding
constexpr int TILE_COUNT = HELD ? 1 : 2;
constexpr int RING_PLACES = RING > 0 ? RING : 1;
constexpr int FRAGMENT_BYTES = (TERMS ? TERMS : 1) * 512;
constexpr unsigned NO_OUTPUT = 0xffff;

extern __shared__ __align__(128) float4 shared[]; // tiles [places][WIDTH / 4], heads of layers, rings of all warps

// What shared memory is for, in bytes; the same for all layers of a segment.
struct Areas {
    int tile_bytes, head_bytes;

    // The rows that a layer reads, of that number in the segment; those it writes are of the next.
    __device__ __forceinline__ int rows_offset(int number) const { return number % TILE_COUNT * tile_bytes; }
    __device__ __forceinline__ char *rows(int number) const {
        return reinterpret_cast<char *>(shared) + rows_offset(number);
    }
    __device__ __forceinline__ int head_offset(int number) const {
        return TILE_COUNT * tile_bytes + number % HEADS * head_bytes;
    }
    __device__ __forceinline__ char *head(int number) const {
        return reinterpret_cast<char *>(shared) + head_offset(number);
    }
    __device__ __forceinline__ char *ring(int warp) const { return head(0) + HEADS * head_bytes + warp * RING * FRAGMENT_BYTES; }
};

// The first byte of a row, and what of its units is swapped, from its address.
template <int WIDTH> __device__ __forceinline__ unsigned row_bytes(unsigned address) {
    return WIDTH == 16 ? address << 4 & 0xffff0u : address << 3 & 0x7ffe0u;
}

// The same of an address in the upper half of a word.
template <int WIDTH> __device__ __forceinline__ unsigned upper_row_bytes(unsigned address) {
    return WIDTH == 16 ? address >> 12 & 0xffff0u : address >> 13 & 0x7ffe0u;
}

// Where a sample of the row at a place lies, in bytes.
template <int WIDTH> __device__ __forceinline__ unsigned bytes_at(unsigned place, int sample) {
    return row_bytes<WIDTH>(place * 4 + (place >> 1 & 1) * 2) ^ sample * 4;
}

// By a warp.
template <int WIDTH> __device__ __forceinline__ void clear_zero_rows(char *rows, i64 neurons) {
    const unsigned first = static_cast<unsigned>(neurons + 3) & ~3u;
    float4 *zeros = reinterpret_cast<float4 *>(rows) + first * (WIDTH / 4);
    for (int k = threadIdx.x % 32; k < ZERO_ROWS * WIDTH / 4; k += 32)
        zeros[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Copy the rows of WIDTH slots from `slot` on into the tile, each to its place.
template <int WIDTH>
__device__ __forceinline__ void load_rows(const float *rows, char *into, i64 slot, i64 neurons,
                                          const unsigned short *places) {
    constexpr int CHUNKS = WIDTH / 4;
    const float4 *source = reinterpret_cast<const float4 *>(rows + place(slot, 0, neurons));
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS) {
        const int neuron = k / CHUNKS, chunk = k % CHUNKS;
        copy_async(into + bytes_at<WIDTH>(places[neuron], chunk * 4), source + neuron * (COLUMNS / 4) + chunk);
    }
}

// Spread packed 0/1 features of the samples from `slot` on into the tile.
template <int WIDTH>
__device__ __forceinline__ void load_bits(const State &state, char *into, i64 slot, i64 neurons,
                                          const unsigned short *places) {
    const int sample = threadIdx.x % WIDTH;
    const bool there = slot + sample < state.slots[0];
    const i64 number = there ? state.ids[0][slot + sample] - state.first : 0;
    const unsigned char *bits = state.bits + number * state.bits_stride;
    const int bytes = static_cast<int>(neurons + 7) / 8;
    constexpr int AHEAD = HELD ? 1 : 2; // bytes that are read before the first is spread
    for (int first = threadIdx.x / WIDTH; first < bytes; first += AHEAD * (THREADS / WIDTH)) {
        unsigned eights[AHEAD] = {};
        uint4 at[AHEAD] = {}; // places have room for whole eights
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int byte = first + k * (THREADS / WIDTH);
            if (byte < bytes) {
                eights[k] = there ? bits[byte] : 0;
                at[k] = __ldg(reinterpret_cast<const uint4 *>(places) + byte);
            }
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int neuron = (first + k * (THREADS / WIDTH)) * 8;
            const unsigned pairs[4] = {at[k].x, at[k].y, at[k].z, at[k].w};
#pragma unroll
            for (int bit = 0; bit < 8; bit++)
                if (neuron + bit < neurons)
                    *reinterpret_cast<float *>(into + bytes_at<WIDTH>(pairs[bit / 2] >> bit % 2 * 16 & 0xffff, sample)) =
                        eights[k] >> (7 - bit) & 1 ? 1.0f : 0.0f;
        }
    }
}

// Write the rows of samples with a slot of 0 or more to their slots; every neuron lies at its number.
template <int WIDTH>
__device__ __forceinline__ void store_rows(float *rows, const char *from, const int *slots, i64 neurons) {
    const int sample = threadIdx.x % WIDTH, slot = slots[sample];
    if (slot < 0)
        return;
    float *target = rows + place(slot, 0, neurons);
    for (int neuron = threadIdx.x / WIDTH; neuron < neurons; neuron += THREADS / WIDTH)
        target[static_cast<i64>(neuron) * COLUMNS] =
            *reinterpret_cast<const float *>(from + bytes_at<WIDTH>(neuron, sample));
}
