// One layer over tiles in global memory whose neurons share inputs, for layers too wide for shared memory.
//
// A *panel* is HEIGHT neurons that read the same inputs. Panels are in an order in which each shares inputs
// with the next (plan/chained.py), and a warp takes a run of neighbouring panels for one tile of 64
// samples: an input that two of them share is read once and multiplied into both. So most rows come from
// device memory once a layer; read twice, by warps that drift apart, they would come twice.
//
// A lane is four samples and half of a panel's neurons: half a warp reads a row as 256 bytes. Rows are
// copied into a ring in shared memory, STAGES pieces of EDGES edges before they are used, from one panel
// on to the next. A *note* with each piece says what to do with it. How many panels a warp takes in a run
// follows from how many tiles there are.
//
// After samples have died, the layer takes the live ones from wherever they lie (`sources`), so nothing
// has to be moved before it. The first layer may take packed features, turned so that 64 samples' bits
// of a neuron lie side by side.
//
// Specialised by: HEIGHT (8, 16), STAGES, MOST (panels of a run), THREADS.
#include "chained_walk.cuh"

// Make rows of the bits of a piece, in place.
__device__ __forceinline__ void spread(uint4 *stage, int lane) {
    const int quad = lane % ROW;
    unsigned fours[EDGES / 2];
#pragma unroll
    for (int k = 0; k < EDGES / 2; k++)
        fours[k] = reinterpret_cast<const unsigned *>(stage)[(2 * k + lane / ROW) * 2 + quad / 8] >> quad % 8 * 4;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < EDGES / 2; k++) {
        constexpr unsigned ONE = 0x3f800000;
        const unsigned bits = fours[k];
        stage[k * 2 * ROW + lane] =
            make_uint4(bits & 1 ? ONE : 0, bits & 2 ? ONE : 0, bits & 4 ? ONE : 0, bits & 8 ? ONE : 0);
    }
    __syncwarp();
}

__device__ __forceinline__ void add(float4 &sum, const float4 &x, float weight) {
    sum.x = fmaf(x.x, weight, sum.x);
    sum.y = fmaf(x.y, weight, sum.y);
    sum.z = fmaf(x.z, weight, sum.z);
    sum.w = fmaf(x.w, weight, sum.w);
}

// Multiply an edge into the sums of a panel.
template <bool EQUAL>
__device__ __forceinline__ void add_edge(float value, const float4 &x, const float4 *weights, float4 (&sums)[OWN]) {
#pragma unroll
    for (int four = 0; four < OWN / 4; four++) {
        const float4 w = EQUAL ? make_float4(value, value, value, value) : weights[four];
        add(sums[four * 4 + 0], x, w.x);
        add(sums[four * 4 + 1], x, w.y);
        add(sums[four * 4 + 2], x, w.z);
        add(sums[four * 4 + 3], x, w.w);
    }
}

// Multiply a piece into the sums of a panel, or of two.
template <bool EQUAL, bool TWO>
__device__ __forceinline__ void add_piece(float value, const uint4 *stage, int count, int lane, float4 (&now)[OWN],
                                          float4 (&next)[OWN]) {
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
__device__ __forceinline__ void finish(const Job &job, const uint4 *piece, unsigned tile, int lane,
                                       float4 (&sums)[OWN], unsigned (&some)[4]) {
    const Target *targets = reinterpret_cast<const Target *>(piece + TARGETS) + lane / ROW * OWN;
    float4 *out = reinterpret_cast<float4 *>(job.out) + job.layer.n_out * tile * ROW + lane % ROW;
#pragma unroll
    for (int h = 0; h < OWN; h++) {
        const float bias = targets[h].bias;
        float4 &y = sums[h];
        y.x = activate(job.layer, y.x, bias), y.y = activate(job.layer, y.y, bias);
        y.z = activate(job.layer, y.z, bias), y.w = activate(job.layer, y.w, bias);
        some[0] |= __float_as_uint(y.x), some[1] |= __float_as_uint(y.y);
        some[2] |= __float_as_uint(y.z), some[3] |= __float_as_uint(y.w);
    }
#pragma unroll
    for (int h = 0; h < OWN; h++)
        store_global(out + static_cast<i64>(targets[h].output) * ROW, sums[h]);
}

// Mark the samples with a nonzero output: of a tile, a word of even columns and one of odd ones.
__device__ __forceinline__ void mark(const Job &job, unsigned tile, int lane, const unsigned (&some)[4]) {
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const unsigned two = (some[odd] << 1 ? 1u : 0u) | (some[odd + 2] << 1 ? 2u : 0u); // -0 is zero
        const unsigned all = __reduce_or_sync(ALL_LANES, two << lane % ROW * 2);
        unsigned *seen = job.nonzero + tile * 2 + odd;
        if (lane == 0 && (all & ~*seen)) // most runs tell nothing new
            atomicOr(seen, all);
    }
}

// Not inlined: together with the others it would take more registers than there are.
template <bool EQUAL, Rows KIND> __device__ __noinline__ void run() {
    const Job &job = shared_job;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint4 *ring = rings + warp * SHARE, *notes = ring + STAGES * STAGE;
    const unsigned warps = gridDim.x * WARPS, address = shared_address(rings, warp * SHARE * 16);
    Walk ahead = {};
    ahead.run = reinterpret_cast<Run *>(notes + STAGES);
    ahead.item = blockIdx.x * WARPS + warp;
    start_item<KIND>(job, warps, ahead, lane);
    if (ahead.item < job.items)
        fetch_inputs(job, ahead, lane);
    for (int k = 0; k < STAGES; k++)
        bring<EQUAL, KIND>(job, warps, ahead, address + k * STAGE * 16, notes + k, lane);
    float4 now[OWN], next[OWN];
    unsigned some[4] = {};
#pragma unroll
    for (int h = 0; h < OWN; h++)
        now[h] = next[h] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int stage = 0;
#pragma unroll 1
    for (;;) {
        wait_for_groups<STAGES - 1>();
        __syncwarp(); // what the other lanes copied is there too
        const uint4 note = notes[stage];
        if (note.w == 0)
            return;
        uint4 *piece = ring + stage * STAGE;
        if (KIND == BITS)
            spread(piece, lane);
        if (note.x & BOTH)
            add_piece<EQUAL, true>(job.layer.value, piece, note.x % BOTH, lane, now, next);
        else
            add_piece<EQUAL, false>(job.layer.value, piece, note.x % BOTH, lane, now, next);
        if (note.x & FINISH) {
            finish(job, piece, note.y, lane, now, some);
#pragma unroll
            for (int h = 0; h < OWN; h++)
                now[h] = next[h], next[h] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        __syncwarp(); // all have read it
        bring<EQUAL, KIND>(job, warps, ahead, address + stage * STAGE * 16, notes + stage, lane);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        if (note.x & END) {
            if (job.layer.droppable)
                mark(job, note.y, lane, some);
            some[0] = some[1] = some[2] = some[3] = 0;
        }
    }
}

template <bool EQUAL> __device__ __forceinline__ void run(Rows kind) {
    if (kind == BITS)
        run<EQUAL, BITS>();
    else if (kind == SCATTERED)
        run<EQUAL, SCATTERED>();
    else
        run<EQUAL, IN_SLOTS>();
}

// Not inlined either.
__device__ __noinline__ void end_layer(const Layer &layer, i64 number, const State &state, i64 segment, i64 limit,
                                       bool leaves) {
    take_census<THREADS>(layer, number, state, segment, limit, leaves);
}

// Run a layer that has tall panels only, number `segment` of the segments, over all tiles with a live sample.
// `takes_bits`: the inputs may be packed features. The last block takes the census of the layer, number
// `number` of the network; `limit` and `leaves` are for that.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    chained(const Layer *shared_layer, const State *shared_state, i64 segment, i64 takes_bits, i64 number, i64 limit,
            i64 leaves) {
    __shared__ bool last;
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    if (threadIdx.x == 0) {
        const int from = state.buffer[segment];
        const i64 tiles = (static_cast<i64>(state.slots[segment]) + COLUMNS - 1) / COLUMNS;
        const i64 offset = segment * state.words, count = layer.tall.count;
        const i64 warps = static_cast<i64>(gridDim.x) * WARPS, panels = tiles * count;
        // As long as leaves work for all warps, and the same for each.
        const i64 length = panels > warps * MOST ? MOST : (panels + warps - 1) / warps;
        const i64 runs = length > 0 ? (count + length - 1) / length : 0;
        const bool left = segment > 0 && state.compacts[segment - 1] == LEFT;
        shared_job = {layer,
               layer.tall,
               state.rows[from],
               state.rows[1 - from],
               state.masks + offset,
               state.nonzero + offset,
               state.sources,
               left ? SCATTERED : takes_bits && state.bits ? BITS : IN_SLOTS,
               static_cast<unsigned>(tiles * runs),
               static_cast<int>(length),
               static_cast<int>(runs)};
    }
    note_begin(state, segment);
    __syncthreads();
    if (layer.equal)
        run<true>(shared_job.kind);
    else
        run<false>(shared_job.kind);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // what the block marked comes before its ticket
        last = atomicAdd(state.tickets + segment, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last)
        end_layer(layer, number, state, segment, limit, leaves);
}
