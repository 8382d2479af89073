// What all kernels share: layers and the state of a run, as the host lays them out.
//
// Activations lie in *tiles* of 32 samples: rows[tile][neuron][32], fp32, so that a neuron's values
// for 32 samples are one 128-byte line. A sample's place is its *slot*: tile = slot / 32, column =
// slot % 32. A network runs as a row of *segments*, each one launch or a few; what is between two
// segments s - 1 and s is described by slots[s], buffer[s] and masks[s].
//
// Every kernel argument is 64 bits wide: an address or a long long.
#pragma once

typedef long long i64;
typedef unsigned long long u64;

constexpr int LINE = 32; // samples of a tile, and threads of a warp
constexpr unsigned ALL_LANES = 0xffffffffu;

// Panels of one height: neurons of a panel read the same inputs.
struct Panels {
    i64 count;            // slices of 32 panels (resident kernel), or panels (wide kernel)
    const i64 *starts;    // device, count: where the edges of each begin; in pairs, or in edges
    const int *lengths;   // device, count: its pairs, or edges
    const void *indices;  // device: the inputs, 2 or 4 bytes each
    const float *weights; // device, `height` an edge; absent where all weights of the layer are equal
    const int *outputs;   // device, `height` a panel: output neurons, -1 where there is none
};

struct Layer {
    i64 n_in, n_out;
    Panels tall, single;
    const float *bias; // device, n_out
    float value;       // the weight, where all are equal
    float lower, upper;
    int equal;     // all weights are `value`
    int droppable; // a row that is zero after this layer is zero for good
    int wide;      // indices take 4 bytes
};

// What a run keeps on the device. The arrays over segments have one entry more than segments.
struct State {
    float *rows[2];     // activations, before and after a segment in turn
    int *ids[2];        // the sample in each slot, before and after samples are moved in turn
    unsigned *slots;    // [segment] slots in use before it
    int *buffer;        // [segment] which of rows holds the activations before it
    int *order;         // [segment] which of ids holds the samples before it
    unsigned *masks;    // [segment][tiles] live samples before it, a bit a column
    unsigned *nonzero;  // [segment][tiles] samples with a nonzero in the rows it wrote
    unsigned *starts;   // [tiles] where compacting puts the first live sample of each tile
    int *compacts;      // [segment] whether the samples after it are moved together
    unsigned *tickets;  // [segment] tiles taken so far
    u64 *live, *ran;    // [layer] samples live after it, and that went into it
    u64 *nanos;         // [layer] time spent in it; by the resident kernel, that of all blocks
    u64 *began;         // [segment] when the wide kernel began
    int *invalid;       // set where a feature is not finite
    i64 tiles;          // the most tiles a run may have
};

__device__ __forceinline__ unsigned first_bits(int count) {
    return count >= 32 ? ALL_LANES : (1u << count) - 1;
}

__device__ __forceinline__ float activate(const Layer &layer, float sum, float bias) {
    return fminf(fmaxf(sum + bias, layer.lower), layer.upper);
}

__device__ __forceinline__ unsigned or_over_warp(unsigned bits) {
    for (int step = 16; step; step >>= 1)
        bits |= __shfl_xor_sync(ALL_LANES, bits, step);
    return bits;
}

// Which of 32 values are nonzero where each lane holds one (-0 is zero).
__device__ __forceinline__ unsigned nonzero_lanes(float value) {
    return __ballot_sync(ALL_LANES, value != 0.0f);
}

__device__ __forceinline__ u64 nanoseconds() {
#ifdef TERAEDGE_EMULATED
    return 0;
#else
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
#endif
}
