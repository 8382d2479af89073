// One layer over tiles in global memory, whose inputs come into shared memory part after part.
//
// For layers too wide for the resident kernel whose neurons share no inputs. A block takes SAMPLES
// samples and one *output block* of neurons: SLICES slices of LISTS * 32 neurons a warp. It brings some
// rows of these samples into shared memory, a *part* of the inputs; every warp sums its edges from that
// part (see gather.cuh), and so part after part, while the sums stay in registers. A row that is
// brought once serves all neurons of the output block, so that L2 gives out less than the wide kernel
// asks of it by their edges from that row. That is why a lane keeps as many sums as there are
// registers for.
//
// Each part has lists of its own, [part][slice], with indices from the start of the part. With two
// BUFFERS, the next part comes in while one is summed; but parts of half the rows are more of them,
// which means shorter lists and more padding.
//
// Between two layers of this kernel rows lie in tiles of SAMPLES samples (`takes_own`, `gives_own`): a part
// is then one piece of memory, and one copy (from sm_90 on). Of rows in tiles of 64 samples it is many pieces of
// 32 bytes, and each takes the load unit as long as a whole line.
//
// Samples die, and are moved together, as after the wide kernel.
//
// Specialised by: SAMPLES (8), LISTS, SLICES, BUFFERS (1, 2), THREADS.
#include "gather.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int TOTALS = LISTS * SAMPLES;   // sums of a lane for a slice
constexpr int GROUPS = COLUMNS / SAMPLES; // groups of samples of a tile
constexpr int STEP = THREADS / CHUNKS;    // rows that a block copies at a time
static_assert(SAMPLES == STAGED_COLUMNS && CHUNKS == 2, "see write_slice");

extern __shared__ float4 tile[]; // [BUFFERS][part_rows + ZERO_ROWS][CHUNKS]

// A piece of work, and a part of its inputs. The blocks that run at the same time take the
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
    bool takes_own, gives_own; // rows and out lie in tiles of SAMPLES samples
    Arrival arrivals[BUFFERS]; // of parts in each
    Place places[2]; // what is summed in even turns and in odd ones; set in the turn before
};

__device__ __forceinline__ unsigned slot_of(const Job &job, unsigned item) {
    return item / (job.blocks * GROUPS) * COLUMNS + item % GROUPS * SAMPLES;
}

// The first slice of a warp; some may not exist.
__device__ __forceinline__ int slice_of(const Job &job, unsigned item, int warp) {
    return (static_cast<int>(item / GROUPS % job.blocks) * WARPS + warp) * SLICES;
}

// Where a value lies, and the chunks from one row to the next, in tiles of SAMPLES or COLUMNS samples.
__device__ __forceinline__ i64 place_in(bool own_tiles, unsigned slot, i64 neuron, i64 n) {
    return own_tiles ? place<SAMPLES>(slot, neuron, n) : place(slot, neuron, n);
}
__device__ __forceinline__ int row_chunks(bool own_tiles) { return own_tiles ? CHUNKS : COLUMNS / 4; }

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

// Begin to copy a part of the rows of an item, if there is one, for this turn.
__device__ __forceinline__ void bring(Job &job, const Place &at, int turn) {
    if (at.item >= job.items)
        return;
    const i64 n_in = job.layer.n_in;
    const int first = at.part * job.layer.part_rows;
    const int left = static_cast<int>(n_in - first < job.layer.part_rows ? n_in - first : job.layer.part_rows);
    const float *rows = job.rows + place_in(job.takes_own, slot_of(job, at.item), first, n_in);
    float4 *into = tile + turn % BUFFERS * buffer_size(job);
    if (BULK && job.takes_own) {
        if (threadIdx.x == 0)
            copy_bulk(into, rows, left * SAMPLES * sizeof(float), job.arrivals + turn % BUFFERS);
        return;
    }
    const int row = static_cast<int>(threadIdx.x) / CHUNKS, stride = row_chunks(job.takes_own);
    const float4 *from = reinterpret_cast<const float4 *>(rows) + row * stride + threadIdx.x % CHUNKS;
    into += threadIdx.x;
#pragma unroll 4
    for (int k = row; k < left; k += STEP) {
        copy_async(into, from);
        into += THREADS;
        from += STEP * stride;
    }
}

// Wait until the part of this turn is there, and all are done with the one before.
__device__ __forceinline__ void wait_for_part(Job &job, int turn) {
    if (BULK && job.takes_own)
        wait_for_bulk(job.arrivals + turn % BUFFERS, turn / BUFFERS % 2);
    else
        wait_for_copies();
    __syncthreads();
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

// The second chunk of the neuron of the other lane of a pair, which is the first of this one's.
__device__ __forceinline__ float4 of_partner(const float *second) {
    return make_float4(__shfl_xor_sync(ALL_LANES, second[0], 1), __shfl_xor_sync(ALL_LANES, second[1], 1),
                       __shfl_xor_sync(ALL_LANES, second[2], 1), __shfl_xor_sync(ALL_LANES, second[3], 1));
}

// Bias, activation, and out; returns the samples with a nonzero output. Lanes 2 k and 2 k + 1 write the two
// chunks of one neuron together, and then those of the other: half as many lines at a time.
__device__ __forceinline__ unsigned write_slice(const Job &job, unsigned slot, int slice, int lane, float *totals) {
    const Layer &layer = job.layer;
    const Target *targets = layer.single.targets + slice * LISTS * 32 + lane;
    const int own = lane & 1, step = row_chunks(job.gives_own);
    float4 *out = reinterpret_cast<float4 *>(job.out + place_in(job.gives_own, slot, 0, layer.n_out)) + own;
    unsigned live = 0;
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const Target target = targets[list * 32];
        float *y = totals + list * SAMPLES;
        const unsigned some = finish<CHUNKS>(layer, target.bias, own, layer.droppable, y);
        live |= target.output < 0 ? 0 : some;
        const int other = __shfl_xor_sync(ALL_LANES, target.output, 1);
        const float4 mine = make_float4(y[0], y[1], y[2], y[3]), theirs = of_partner(y + 4);
        const int even = own ? other : target.output, odd = own ? target.output : other;
        if (even >= 0)
            out[static_cast<i64>(even) * step] = own ? theirs : mine;
        if (odd >= 0)
            out[static_cast<i64>(odd) * step] = own ? mine : theirs;
    }
    return live;
}

// Mark the samples of a group with a nonzero output: of each tile, a word of even columns and one of
// odd ones.
__device__ __forceinline__ void mark(const Job &job, unsigned slot, int lane, unsigned live) {
    live = or_over_warp(live);
    unsigned *seen = job.nonzero + slot / COLUMNS * 2;
    if (lane < 2) {
        const unsigned bits = even_bits(live >> lane) << slot % COLUMNS / 2;
        if (bits & ~seen[lane]) // most slices tell nothing new
            atomicOr(seen + lane, bits);
    }
}

template <bool EQUAL> __device__ __forceinline__ void run(Job &job) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bring(job, job.places[0], 0);
    int turn = 0; // parts so far
#pragma unroll 1
    for (;;) {
        const unsigned item = job.places[turn % 2].item;
        if (item >= job.items)
            return;
        float totals[SLICES][TOTALS];
#pragma unroll
        for (int s = 0; s < SLICES; s++)
#pragma unroll
            for (int k = 0; k < TOTALS; k++)
                totals[s][k] = 0.0f;
        const int slice = slice_of(job, item, warp);
#pragma unroll 1
        for (int part = 0; part < job.layer.parts; part++) {
            const int list = part * job.slices + slice;
            if (slice < job.slices)
                touch_list(job, list, lane);
            if (threadIdx.x == 0) {
                Place next = job.places[turn % 2];
                advance(job, next);
                job.places[(turn + 1) % 2] = next;
            }
            wait_for_part(job, turn);
            const float4 *const rows = tile + turn % BUFFERS * buffer_size(job);
            turn++;
            if (BUFFERS > 1)
                bring(job, job.places[turn % 2], turn);
#pragma unroll
            for (int s = 0; s < SLICES; s++)
                if (slice + s < job.slices)
                    gather<LISTS, 1, CHUNKS, EQUAL>(rows, job.layer.single, list + s, lane, 0, job.layer.value,
                                                    totals[s]);
            if (BUFFERS == 1) {
                __syncthreads(); // all have read the part
                bring(job, job.places[turn % 2], turn);
            }
        }
        const unsigned slot = slot_of(job, item);
        unsigned live = 0;
#pragma unroll
        for (int s = 0; s < SLICES; s++)
            if (slice + s < job.slices)
                live |= write_slice(job, slot, slice + s, lane, totals[s]);
        if (job.layer.droppable)
            mark(job, slot, lane, live);
    }
}

// Run a layer as `segment` of the segments, over all groups of samples with a live one.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    staged(const Layer *layer, const State *shared_state, i64 segment, i64 takes_own, i64 gives_own) {
    __shared__ Job job;
    const State &state = *shared_state;
    load_layer(&job.layer, layer, threadIdx.x);
    wait_for_copies();
    __syncthreads();
    if (threadIdx.x == 0) {
        const int from = state.buffer[segment];
        const i64 offset = segment * state.words;
        job.rows = state.rows[from];
        job.out = state.rows[1 - from];
        job.masks = state.masks + offset;
        job.nonzero = state.nonzero + offset;
        job.takes_own = takes_own;
        job.gives_own = gives_own;
        job.slices = static_cast<int>(job.layer.single.count) / job.layer.parts;
        job.blocks = (job.slices + WARPS * SLICES - 1) / (WARPS * SLICES);
        job.items = (state.slots[segment] + COLUMNS - 1) / COLUMNS * GROUPS * job.blocks;
        job.places[0] = {blockIdx.x, 0};
        skip_dead(job, job.places[0]);
        for (int buffer = 0; buffer < BUFFERS; buffer++)
            begin_arrivals(job.arrivals + buffer);
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
