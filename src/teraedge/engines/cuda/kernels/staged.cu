// One layer over tiles in global memory, whose inputs come into shared memory part after part.
//
// For layers too wide for the resident kernel whose neurons share no inputs. A block takes SAMPLES
// samples and one *output block* of neurons: a slice of LISTS * 32 neurons a warp. It brings some rows
// of these samples into shared memory, a *part* of the inputs; every warp sums its edges from that
// part (see gather.cuh), and so part after part, while the sums stay in registers. A row that is
// brought once serves all neurons of the output block, so that L2 gives out less than the wide kernel
// asks of it by their edges from that row. That is why a lane keeps as many sums as there are
// registers for.
//
// Each part has lists of its own, [part][slice], with indices from the start of the part. With two
// BUFFERS, the next part comes in while one is summed; but parts of half the rows are more of them,
// which means shorter lists and more padding.
//
// Samples die, and are moved together, as after the wide kernel.
//
// Specialised by: SAMPLES (4, 8), TOTALS, BUFFERS (1, 2), THREADS.
#include "gather.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int LISTS = TOTALS / SAMPLES;     // neurons of a lane
constexpr int GROUPS = COLUMNS / SAMPLES;   // groups of samples of a tile
constexpr int STEP = THREADS / CHUNKS;      // rows that a block copies at a time
static_assert(TOTALS % SAMPLES == 0 && SAMPLES < WORD, "a lane has whole rows, a word whole groups");

extern __shared__ float4 tile[]; // [BUFFERS][part_rows + ZERO_ROWS][CHUNKS]

// A piece of work, and the part of it that is meant. The blocks that run at the same time take the
// groups of one tile, and then its output blocks, so that rows come from L2 and weights too.
struct Place {
    unsigned item;
    int part;
};

// What all threads of a block need to know; in shared memory, because sums need the registers.
struct Job {
    Layer layer;
    const float *rows;
    float *out;
    const unsigned *masks; // live samples before the layer
    unsigned *nonzero;     // of each tile, a word of even columns and one of odd ones
    unsigned items, blocks;
    int slices;
};

__device__ __forceinline__ unsigned slot_of(const Job &job, unsigned item) {
    return item / (job.blocks * GROUPS) * COLUMNS + item % GROUPS * SAMPLES;
}

__device__ __forceinline__ int slice_of(const Job &job, unsigned item, int warp) {
    return static_cast<int>(item / GROUPS % job.blocks) * WARPS + warp;
}

// Go on to the next item with a live sample, `at` itself if it has one.
__device__ __forceinline__ void skip_dead(const Job &job, Place &at) {
    for (; at.item < job.items; at.item += gridDim.x) {
        const unsigned slot = slot_of(job, at.item);
        if (job.masks[slot / WORD] >> slot % WORD & first_bits(SAMPLES))
            break;
    }
}

__device__ __forceinline__ void advance(const Job &job, Place &at) {
    if (++at.part < job.layer.parts)
        return;
    at.part = 0;
    at.item += gridDim.x;
    skip_dead(job, at);
}

__device__ __forceinline__ int buffer_size(const Job &job) { return (job.layer.part_rows + ZERO_ROWS) * CHUNKS; }

// Begin to copy a part of the rows of an item, if there is one.
__device__ __forceinline__ void bring(const Job &job, const Place &at, float4 *into) {
    if (at.item >= job.items)
        return;
    const i64 n_in = job.layer.n_in;
    const int first = at.part * job.layer.part_rows, row = static_cast<int>(threadIdx.x) / CHUNKS;
    const int left = static_cast<int>(n_in - first < job.layer.part_rows ? n_in - first : job.layer.part_rows);
    const float4 *from = reinterpret_cast<const float4 *>(job.rows + place(slot_of(job, at.item), first + row, n_in)) +
                         threadIdx.x % CHUNKS;
    into += threadIdx.x;
#pragma unroll 4
    for (int k = row; k < left; k += STEP) {
        copy_async(into, from);
        into += THREADS;
        from += STEP * (COLUMNS / 4);
    }
}

// Have what a warp reads first of a slice brought near.
__device__ __forceinline__ void touch_list(const Job &job, int list, int lane) {
    const Panels &panels = job.layer.single;
    const i64 pair = panels.lists[list].begin * LISTS;
    if (lane < 4) // lines of 128 bytes: indices and weights of 4 pairs
        touch(static_cast<const unsigned *>(panels.indices) + pair * 32 + lane * 32);
    if (!job.layer.equal && lane < 8)
        touch(panels.weights + pair * 64 + lane * 32);
}

// The even bits of a group of samples, side by side.
__device__ __forceinline__ unsigned even_bits(unsigned bits) {
    return (bits & 1) | (bits >> 1 & 2) | (bits >> 2 & 4) | (bits >> 3 & 8);
}

// Bias, activation, and out; marks the samples with a nonzero output.
__device__ __forceinline__ void write_slice(const Job &job, unsigned item, int slice, int lane, float *totals) {
    const Layer &layer = job.layer;
    const Target *targets = layer.single.targets + slice * LISTS * 32 + lane;
    const unsigned slot = slot_of(job, item);
    const int own = lane & (CHUNKS - 1);
    float4 *out = reinterpret_cast<float4 *>(job.out + place(slot, 0, layer.n_out));
    unsigned live = 0;
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const Target target = targets[list * 32];
        float *y = totals + list * SAMPLES;
        const unsigned some = finish<CHUNKS>(layer, target.bias, own, layer.droppable, y);
        if (target.output < 0)
            continue;
        live |= some;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            out[static_cast<i64>(target.output) * (COLUMNS / 4) + (own ^ j)] =
                make_float4(y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    }
    if (!layer.droppable)
        return;
    live = or_over_warp(live);
    unsigned *seen = job.nonzero + slot / COLUMNS * 2;
    if (lane < 2) { // even columns, odd columns
        const unsigned bits = even_bits(live >> lane) << slot % COLUMNS / 2;
        if (bits & ~seen[lane]) // most slices tell nothing new
            atomicOr(seen + lane, bits);
    }
}

template <bool EQUAL> __device__ __forceinline__ void run(const Job &job) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Place now = {blockIdx.x, 0};
    skip_dead(job, now);
    Place ahead = now;
    float4 *rows = tile, *other = tile + (BUFFERS - 1) * buffer_size(job);
    bring(job, ahead, rows);
#pragma unroll 1
    while (now.item < job.items) {
        const int slice = slice_of(job, now.item, warp);
        float totals[TOTALS];
#pragma unroll
        for (int k = 0; k < TOTALS; k++)
            totals[k] = 0.0f;
#pragma unroll 1
        for (now.part = 0; now.part < job.layer.parts; now.part++) {
            const int list = now.part * job.slices + slice;
            if (slice < job.slices)
                touch_list(job, list, lane);
            wait_for_copies();
            __syncthreads(); // the part is there, and all are done with the one before
            if (BUFFERS > 1) {
                advance(job, ahead);
                bring(job, ahead, other);
            }
            if (slice < job.slices)
                gather<LISTS, 1, CHUNKS, EQUAL>(rows, job.layer.single, list, lane, 0, job.layer.value, totals);
            if (BUFFERS == 1) {
                __syncthreads(); // all have read the part
                advance(job, ahead);
                bring(job, ahead, rows);
            }
            float4 *const read = rows;
            rows = other;
            other = read;
        }
        if (slice < job.slices)
            write_slice(job, now.item, slice, lane, totals);
        now.item = ahead.item;
    }
}

// Run a layer as `segment` of the segments, over all groups of samples with a live one.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    staged(const Layer *layer, const State *shared_state, i64 segment) {
    __shared__ Job job;
    const State &state = *shared_state;
    load_layer(&job.layer, layer);
    wait_for_copies();
    __syncthreads();
    if (threadIdx.x == 0) {
        const int from = state.buffer[segment];
        const i64 offset = segment * state.words;
        job.rows = state.rows[from];
        job.out = state.rows[1 - from];
        job.masks = state.masks + offset;
        job.nonzero = state.nonzero + offset;
        job.slices = static_cast<int>(job.layer.single.count) / job.layer.parts;
        job.blocks = (job.slices + WARPS - 1) / WARPS;
        job.items = (state.slots[segment] + COLUMNS - 1) / COLUMNS * GROUPS * job.blocks;
    }
    note_begin(state, segment);
    __syncthreads();
    for (int buffer = 0; buffer < BUFFERS; buffer++) // behind the rows of a part
        for (int k = threadIdx.x; k < ZERO_ROWS * CHUNKS; k += THREADS)
            tile[buffer * buffer_size(job) + job.layer.part_rows * CHUNKS + k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (job.layer.equal)
        run<true>(job);
    else
        run<false>(job);
}
