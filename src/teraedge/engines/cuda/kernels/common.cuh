// What all kernels share: layers and the state of a run, as the host lays them out.
//
// Activations lie in *tiles* of 64 samples: rows[tile][neuron][64], fp32 or less (storage.cuh), so that a neuron's
// values for 64 samples are 256 bytes in one piece: L2 gives out pieces of 128 bytes a fifth more slowly. A
// sample's place is its *slot*: tile = slot / 64, column = slot % 64. Masks have a bit a slot, in
// *words* of 32. A network runs as a row of *segments*, each one launch or a few; what is between two
// segments s - 1 and s is described by slots[s], buffer[s], order[s] and masks[s].
//
// Every kernel argument is 64 bits wide: an address or a long long.
#pragma once

#include "async.cuh"
#include "curves.cuh"
#include "storage.cuh"

typedef long long i64;
typedef unsigned long long u64;

constexpr int COLUMNS = 64; // samples of a tile
constexpr int STAGED_COLUMNS = 8; // the same between two layers of the staged kernel
constexpr int WORD = 32;    // samples of a mask, and threads of a warp
constexpr int BINS = 256;   // of samples by brightness
constexpr unsigned ALL_LANES = 0xffffffffu;

// The edges of a slice or a panel.
struct List {
    i64 begin; // in pairs of edges (resident and staged kernel), or in edges (wide and chained kernel)
    int length;
    int shared; // edges that follow, which the next panel reads too (chained kernel)
};

struct Target {
    int output; // the neuron; -1 where there is none
    float bias;
};

// Panels of one height: neurons of a panel read the same inputs.
struct Panels {
    i64 count;             // slices (resident kernel), [part][slice] (staged kernel), or panels (wide, chained)
    const List *lists;     // device, count
    const void *indices;   // device: the inputs, 2 or 4 bytes each
    const float *weights;  // device, `height` an edge; absent where all weights of the layer are equal
    const Target *targets; // device, `height` a panel
};

struct alignas(16) Layer {
    i64 n_in, n_out;
    Panels tall, single;
    float value; // the weight, where all are equal; else what sums are multiplied by (block and dense kernel)
    float lower, upper;
    int equal;     // all weights are `value`
    int droppable; // a row that is zero after this layer is zero for good
    short wide;    // indices take 4 bytes
    short curve;   // enum Curve
    int parts, part_rows; // of the inputs (staged kernel)
    int rounds, steps, fragments; // panels of a warp, steps of a panel, pieces of weights of a warp, at most (block kernel)
    const unsigned short *places; // device, 2 n_in: where in the tile each input lies, and which lies where (block kernel)
    const unsigned short *ends;   // device, n_out: where each output lies at the end of a segment (block kernel)
    const void *records;          // device, [warp][round]: of each panel what block_ahead.cuh says (block kernel)
};

static_assert(sizeof(Layer) % 16 == 0, "whole copies of 16 bytes");

// How live samples get to their slots after a segment: they stay, `compact` moves their rows, or rows are left
// where they lie, and the next layer looks them up in State.sources.
enum Moves { STAY, MOVED, LEFT };

// What is known of equal samples before a segment that runs them once (merge.cu, few.cu), of up to MERGED slots.
constexpr int MERGED = 8192;
struct Equal {
    u64 *hashes;  // [slot] of its row; zero between two uses
    int *leaders; // [slot] the first slot found that is equal to it, then the column that runs for it
    int *columns; // [slot] of leaders
    int *leads;   // [column] the slot that it came from
    int *stands;  // [column] samples that it stands for
    int *flags;   // [slot] whether it differs from its leader after all, then [column] whether it is live at the end
};

// What a run keeps on the device. The arrays over segments have one entry more than segments.
struct State {
    Stored *rows[2];    // activations, before and after a segment in turn
    int *ids[2];        // the sample in each slot, before and after samples are moved in turn
    unsigned *slots;    // [segment] slots in use before it
    int *buffer;        // [segment] which of rows holds the activations before it
    int *order;         // [segment] which of ids holds the samples before it
    unsigned *masks;    // [segment][words] live samples before it
    unsigned *nonzero;  // [segment][words] samples with a nonzero in the rows it wrote
    unsigned *starts;   // [words] where compacting puts the first live sample of each word
    int *sources;       // [slots] where the sample of each slot lay before samples were put together; -1: none
    int *compacts;      // [segment] enum Moves: whether the samples after it are put together
    unsigned *tickets;  // [segment] pieces of work taken so far
    u64 *live, *ran;    // [layer] samples live after it, and that went into it
    u64 *nanos;         // [layer] time spent in it; by the resident kernel, that of all blocks
    u64 *idle;          // [segment] dead samples that layers ran since samples were last put together
    u64 *began;         // [segment] when the wide or the staged kernel began
    int *invalid;       // set where a feature is not finite
    unsigned *bins;     // [BINS] samples by brightness, then where the next of each goes
    unsigned *alive;    // [words] of samples by their number: those of the last masks, as `mark` found them
    unsigned *distinct; // [segment] columns, where equal samples run once in it; else 0
    unsigned *arrived;  // [segment][2] blocks that have looked for equal samples
    Equal equal;
    const unsigned char *bits; // packed features, or none
    i64 bits_stride;           // bytes a sample
    i64 first, samples;        // the number of the first sample, and how many a run has
    i64 words;          // the most a run may have, an even number
};

__device__ __forceinline__ unsigned first_bits(int count) {
    return count >= 32 ? ALL_LANES : (1u << count) - 1;
}

template <class L> __device__ __forceinline__ float activate(const L &layer, float sum, float bias) {
#if CURVES
    if (layer.curve)
        return STORAGE ? fminf(curved(layer.curve, sum + bias), LARGEST) : curved(layer.curve, sum + bias);
#endif
    return fminf(fmaxf(sum + bias, layer.lower), layer.upper);
}

__device__ __forceinline__ unsigned or_over_warp(unsigned bits) {
    for (int step = 16; step; step >>= 1)
        bits |= __shfl_xor_sync(ALL_LANES, bits, step);
    return bits;
}

// The same value, in a register that the compiler takes for a new one: it would compute some again and again,
// with more instructions than that saves registers.
__device__ __forceinline__ unsigned kept(unsigned value) {
    return __shfl_sync(ALL_LANES, value, threadIdx.x % 32);
}

// Which of 32 values are nonzero, once stored, where each lane holds one (-0 is zero).
__device__ __forceinline__ unsigned nonzero_lanes(float value) {
    return __ballot_sync(ALL_LANES, rounded(value) != 0.0f);
}

// Note when a segment began whose time is taken as a whole.
__device__ __forceinline__ void note_begin(const State &state, i64 segment) {
    if (blockIdx.x == 0 && threadIdx.x == 0 && state.began[segment] == 0)
        state.began[segment] = nanoseconds();
}

__device__ __forceinline__ i64 words_of(unsigned slots) { return (static_cast<i64>(slots) + WORD - 1) / WORD; }

// Where the value of a neuron for a slot lies, n neurons a sample, in tiles of so many samples.
template <int TILE = COLUMNS> __device__ __forceinline__ i64 place(i64 slot, i64 neuron, i64 n) {
    return (slot / TILE * n + neuron) * TILE + slot % TILE;
}

// The inputs of the eight edges from a multiple of eight on (wide kernel).
__device__ __forceinline__ void load_eight_indices(const Layer &layer, const Panels &panels, i64 edge, unsigned (&into)[8]) {
    const uint4 *from = static_cast<const uint4 *>(panels.indices);
    if (layer.wide) {
        const uint4 a = __ldg(from + edge / 4), b = __ldg(from + edge / 4 + 1);
        into[0] = a.x, into[1] = a.y, into[2] = a.z, into[3] = a.w;
        into[4] = b.x, into[5] = b.y, into[6] = b.z, into[7] = b.w;
    } else {
        const uint4 a = __ldg(from + edge / 8);
        const unsigned words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int k = 0; k < 4; k++)
            into[2 * k] = words[k] & 0xffff, into[2 * k + 1] = words[k] >> 16;
    }
}

// Bring a layer's sizes and addresses into shared memory, without waiting, by the threads of these numbers.
__device__ __forceinline__ void load_layer(Layer *into, const Layer *layer, int thread) {
    if (thread < sizeof(Layer) / 16)
        copy_async(reinterpret_cast<uint4 *>(into) + thread, reinterpret_cast<const uint4 *>(layer) + thread);
}
