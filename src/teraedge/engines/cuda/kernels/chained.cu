// One layer over tiles in global memory whose neurons share inputs, for layers too wide for shared memory.
//
// A *panel* is HEIGHT neurons that read the same inputs. Panels are in an order in which each shares inputs
// with the next (plan/chained.py), and a warp takes a run of neighbouring panels for one tile of 64
// samples: an input that two of them share is read once and multiplied into both. So most rows come from
// device memory once a layer; read twice, by warps that drift apart, they would come twice.
//
// How rows are multiplied: chained_fma.cuh for fp32, chained_mma.cuh for what is stored in half of that. Rows are
// copied into a ring in shared memory, STAGES pieces of EDGES edges before they are used, from one panel
// on to the next. A *note* with each piece says what to do with it. How many panels a warp takes in a run
// follows from how many tiles there are.
//
// After samples have died, the layer takes the live ones from wherever they lie (`sources`), so nothing
// has to be moved before it; not where values take two bytes, of which no copy in the background is made. The first layer may take packed features, turned so that 64 samples' bits
// of a neuron lie side by side.
//
// Specialised by: HEIGHT (8, 16), STAGES, MOST (panels of a run), STORAGE, EQUAL_ONLY
// (without room for weights), THREADS.
#if STORAGE
#include "chained_mma.cuh"
#else
#include "chained_fma.cuh"
#endif

// Make rows of the bits of a piece, in place.
__device__ __forceinline__ void spread(uint4 *stage, int lane) {
    constexpr unsigned ONE = STORAGE == 0 ? 0x3f800000 : STORAGE == 1 ? 0x3c00 : 0x3f80;
    constexpr int VALUES = 16 / sizeof(Stored), COPIES = EDGES / APART;
    const int begin = lane % ROW * VALUES; // the first sample that this lane spreads
    unsigned bits[COPIES];
#pragma unroll
    for (int k = 0; k < COPIES; k++)
        bits[k] = reinterpret_cast<const unsigned *>(stage)[(APART * k + lane / ROW) * 2 + begin / 32] >> begin % 32;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < COPIES; k++) {
        unsigned words[4];
#pragma unroll
        for (int w = 0; w < 4; w++)
            words[w] = STORAGE ? (bits[k] >> 2 * w & 1 ? ONE : 0) | (bits[k] >> 2 * w & 2 ? ONE << 16 : 0)
                               : bits[k] >> w & 1 ? ONE : 0;
        stage[place_of(APART * k + lane / ROW, lane % ROW)] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    __syncwarp();
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
    Sums now = {}, next = {};
    Seen some = {};
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
            add_piece<EQUAL, true>(job, piece, note.x % BOTH, lane, now, next);
        else
            add_piece<EQUAL, false>(job, piece, note.x % BOTH, lane, now, next);
        if (note.x & FINISH) {
            finish<EQUAL>(job, piece, note.y, lane, now, some);
            now = next, next = {};
        }
        __syncwarp(); // all have read it
        bring<EQUAL, KIND>(job, warps, ahead, address + stage * STAGE * 16, notes + stage, lane);
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        if (note.x & END) {
            if (job.layer.droppable)
                mark(job, note.y, lane, some);
            some = {};
        }
    }
}

template <bool EQUAL> __device__ __forceinline__ void run(Rows kind) {
    if (kind == BITS)
        run<EQUAL, BITS>();
    else if (STORAGE == 0 && kind == SCATTERED)
        run<EQUAL, STORAGE == 0 ? SCATTERED : IN_SLOTS>();
    else
        run<EQUAL, IN_SLOTS>();
}

// Not inlined either.
__device__ __noinline__ void end_layer(const Layer &layer, i64 number, const State &state, i64 segment, bool leaves) {
    take_census<THREADS>(layer, number, state, segment, leaves);
}

// Run a layer that has tall panels only, number `segment` of the segments, over all tiles with a live sample.
// `takes_bits`: the inputs may be packed features. The last block takes the census of the layer, number
// `number` of the network; `leaves` is for that.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    chained(const Layer *shared_layer, const State *shared_state, i64 segment, i64 takes_bits, i64 number, i64 leaves) {
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
    if (EQUAL_ONLY || layer.equal)
        run<true>(shared_job.kind);
    else
        run<EQUAL_ONLY>(shared_job.kind);
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // what the block marked comes before its ticket
        last = atomicAdd(state.tickets + segment, 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (last)
        end_layer(layer, number, state, segment, leaves);
}
