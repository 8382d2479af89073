// One layer of all (or nearly all) edges as a product of matrices on tensor cores.
//
// A block takes 96 or 128 neurons, a warp all of them for 32 samples, half of a tile: 6 x 4 or 8 x 4 fragments of
// 16 neurons by 8 samples, whose fp32 sums stay in registers. Weights, split into terms by the host and in the
// order in which lanes read them, come into shared memory through a ring, for all warps. Activations go from
// global memory to registers, one or four steps of 16 inputs ahead, and are split there, or, if they are stored in
// less than fp32, taken as they are; no other warp of the block needs them. Which of its samples a column stands
// for is free: a lane's four columns, one of each fragment, are four neighbours, one load.
//
// Tensor cores cut sums off where fp32 rounds, so of fp32 they only sum the products of a step; that is added to the
// sums as fp32 adds, in the order of the steps: warps that shared the inputs of a few samples would fill the GPU
// sooner, but a sample's last bits would depend on how many there are. What is stored in less is summed by
// tensor cores from beginning to end.
//
// Specialised by: FRAGMENTS, TERMS (of a weight), STAGES, STORAGE.
#include "mma.cuh"

constexpr int WARPS = 8, THREADS = WARPS * 32;
constexpr int HEIGHT = FRAGMENTS * 16;               // neurons of a block
constexpr int STEP = 16;                             // inputs of a product
constexpr int ROUND = 4;                             // steps that come together
constexpr int SLAB = FRAGMENTS * TERMS * 32;         // weights of a step, in 16 bytes
constexpr int STAGE = ROUND * SLAB;
constexpr int PARTS = 4;                             // fragments of 8 samples

// Steps that inputs are loaded ahead: as registers allow, for which code for older GPUs has none.
#if STORAGE
constexpr int AHEAD = ROUND;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int AHEAD = 0;
#else
constexpr int AHEAD = 1;
#endif

extern __shared__ uint4 ring[]; // [STAGES][STAGE]

// The sums of a warp; of a lane: neurons g and g + 8 of each fragment, samples 2 q and 2 q + 1 of each part.
typedef float Sums[FRAGMENTS][PARTS][4];

// Four neighbouring samples of the inputs 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of a step; beyond the last input its
// values once more, for weights that are zero.
struct Inputs {
    Four x[4];
};

__device__ __forceinline__ Inputs load_inputs(const Stored *rows, int step, int n_in, int quarter) {
    Inputs in;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int row = step * STEP + 2 * quarter + k % 2 + k / 2 * 8;
        in.x[k] = *reinterpret_cast<const Four *>(rows + static_cast<i64>(row < n_in ? row : n_in - 1) * COLUMNS);
    }
    return in;
}

// Terms of inputs as tensor cores read them.
struct Terms {
    unsigned low[PLANES][PARTS], high[PLANES][PARTS];
};

__device__ __forceinline__ Terms terms_of(const Inputs &in) {
    Terms b;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#if STORAGE
        const unsigned halves = part % 2 ? 0x7632 : 0x5410; // the upper ones of two words, or the lower ones
        auto word = [&](int k) { return part < 2 ? in.x[k].x : in.x[k].y; };
        auto both = [&](int k) { return __byte_perm(word(k), word(k + 1), halves); };
        b.low[0][part] = both(0), b.high[0][part] = both(2);
#else
        auto at = [&](int k) {
            return part == 0 ? in.x[k].x : part == 1 ? in.x[k].y : part == 2 ? in.x[k].z : in.x[k].w;
        };
        unsigned low[PLANES], high[PLANES];
        split(at(0), at(1), low);
        split(at(2), at(3), high);
#pragma unroll
        for (int term = 0; term < PLANES; term++)
            b.low[term][part] = low[term], b.high[term][part] = high[term];
#endif
    }
    return b;
}

// Add the products of one step; the small ones are summed first.
__device__ __forceinline__ void multiply(unsigned weights, const Terms &b, Sums &sums) {
    constexpr int PRODUCTS = 6, WEIGHT[PRODUCTS] = {2, 1, 0, 1, 0, 0}, INPUT[PRODUCTS] = {0, 1, 2, 0, 1, 0};
    uint4 following[TERMS];
#pragma unroll
    for (int t = 0; t < TERMS; t++)
        following[t] = load_shared<uint4>(ring, weights + t * 512);
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
        uint4 a[TERMS];
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            a[t] = following[t];
            if (f + 1 < FRAGMENTS)
                following[t] = load_shared<uint4>(ring, weights + ((f + 1) * TERMS + t) * 512);
        }
        float now[PARTS][4] = {};
#pragma unroll
        for (int p = 0; p < PRODUCTS; p++)
            if (WEIGHT[p] < TERMS && INPUT[p] < PLANES)
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    multiply_add(STORAGE ? sums[f][part] : now[part], a[WEIGHT[p]], b.low[INPUT[p]][part],
                                 b.high[INPUT[p]][part]);
        if (!STORAGE)
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sums[f][part][k] += now[part][k];
    }
}

// Bias, activation, and out. `out` is where the lane's eight samples of neuron 0 are; returns which of
// these have a nonzero output.
__device__ __forceinline__ unsigned finish(const Layer &layer, const Target *targets, Stored *out,
                                           const Sums &sums) {
    unsigned nonzero = 0;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
        for (int below = 0; below < 2; below++) {
            const Target target = targets[f * 16 + below * 8];
            if (target.output < 0)
                continue;
            float y[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float sum = sums[f][k % 4][below * 2 + k / 4]; // of scaled weights, where those are of fp16
                y[k] = rounded(activate(layer, STORAGE == 1 ? sum * layer.value : sum, target.bias));
                nonzero |= (y[k] != 0.0f ? 1u : 0u) << k;
            }
            Four *to = reinterpret_cast<Four *>(out + static_cast<i64>(target.output) * COLUMNS);
            to[0] = stored(make_float4(y[0], y[1], y[2], y[3]));
            to[1] = stored(make_float4(y[4], y[5], y[6], y[7]));
        }
    return nonzero;
}

// Every second of eight bits.
__device__ __forceinline__ unsigned every_second(unsigned bits) {
    return (bits & 1) | (bits >> 1 & 2) | (bits >> 2 & 4) | (bits >> 3 & 8);
}

// Add to the samples with a nonzero output, as the wide kernel does: of each tile, a word of even columns and
// one of odd ones.
__device__ __forceinline__ void mark(unsigned *words, unsigned half, int lane, unsigned nonzero) {
    const int shift = half * 16 + lane % 4 * 4;
    const unsigned even = or_over_warp(every_second(nonzero) << shift);
    const unsigned odd = or_over_warp(every_second(nonzero >> 1) << shift);
    if (lane == 0 && (even & ~words[0]))
        atomicOr(words, even);
    if (lane == 0 && (odd & ~words[1]))
        atomicOr(words + 1, odd);
}

// Queue the copy of a round's weights.
__device__ __forceinline__ void bring(const uint4 *weights, int round, int rounds) {
    if (round < rounds)
#pragma unroll
        for (int k = 0; k < STAGE / THREADS; k++)
            copy_async(ring + round % STAGES * STAGE + k * THREADS + threadIdx.x,
                       weights + static_cast<i64>(round) * STAGE + k * THREADS + threadIdx.x);
    end_group(); // also where there is nothing: groups are counted
}

// The sums of a warp.
__device__ __forceinline__ void add_up(const uint4 *weights, int rounds, const Stored *rows, int n_in, bool live,
                                       int lane, Sums &sums) {
    for (int k = 0; k < STAGES - 1; k++)
        bring(weights, k, rounds);
    Inputs next[AHEAD ? AHEAD : 1] = {};
    if (live)
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            next[k] = load_inputs(rows, k, n_in, lane % 4);
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        wait_for_groups<STAGES - 2>();
        __syncthreads(); // what others copied is there, and all have read what the next copy replaces
        bring(weights, round + STAGES - 1, rounds);
        if (live)
#pragma unroll AHEAD > 1 ? AHEAD : 1
            for (int k = 0; k < ROUND; k++) { // weights beyond the last input are zero
                const int step = round * ROUND + k, turn = AHEAD > 1 ? k : 0;
                if (!AHEAD)
                    next[turn] = load_inputs(rows, step, n_in, lane % 4);
                const Terms b = terms_of(next[turn]);
                if (AHEAD)
                    next[turn] = load_inputs(rows, step + AHEAD, n_in, lane % 4);
                multiply(shared_address(ring, (round % STAGES * STAGE + k * SLAB + lane) * 16), b, sums);
            }
    }
}

// What a block works on; in shared memory, since all registers hold sums.
struct Job {
    i64 item, panel, word; // the first word of samples: each warp has one
    bool more;             // whether there is an item
};

// Turn to the next item with a live sample.
__device__ __forceinline__ void advance(Job &job, const unsigned *masks, i64 words, i64 panels) {
    const i64 items = (words + WARPS - 1) / WARPS * panels;
    unsigned live = 0;
    while (live == 0 && (job.item += gridDim.x) < items) {
        job.panel = job.item % panels, job.word = job.item / panels * WARPS;
        for (i64 word = job.word; word < job.word + WARPS && word < words; word++)
            live |= masks[word];
    }
    job.more = live != 0;
}

// Run a layer, number `segment` of the segments, over all tiles with a live sample.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dense(const Layer *shared_layer, const State *shared_state, i64 segment) {
    __shared__ Job job;
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0)
        job.item = static_cast<i64>(blockIdx.x) - gridDim.x;
    note_begin(state, segment);
#pragma unroll 1
    for (;;) {
        __syncthreads(); // all are done with the shared memory
        if (threadIdx.x == 0)
            advance(job, state.masks + segment * state.words, words_of(state.slots[segment]), layer.tall.count);
        __syncthreads();
        if (!job.more)
            break;
        Sums sums = {};
        bool live;
        {
            const i64 word = job.word + warp;
            const int rounds = layer.tall.lists[0].length; // of every panel
            const i64 column = word % 2 * WORD + lane / 4 * 4;
            live = word < words_of(state.slots[segment]) && state.masks[segment * state.words + word] != 0;
            add_up(reinterpret_cast<const uint4 *>(layer.tall.weights) + job.panel * rounds * STAGE, rounds,
                   state.rows[state.buffer[segment]] + word / 2 * layer.n_in * COLUMNS + column,
                   static_cast<int>(layer.n_in), live, lane, sums);
        }
        if (!live)
            continue;
        const i64 word = job.word + warp;
        Stored *out = state.rows[1 - state.buffer[segment]] + word / 2 * layer.n_out * COLUMNS;
        const unsigned nonzero = finish(layer, layer.tall.targets + job.panel * HEIGHT + lane / 4,
                                        out + word % 2 * WORD + lane % 4 * 8, sums);
        if (layer.droppable)
            mark(state.nonzero + segment * state.words + word / 2 * 2, word % 2, lane, nonzero);
    }
}
