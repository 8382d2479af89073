// Many small layers in one launch, at the latency of shared memory.
//
// A block takes a tile of `groups` times four samples through all layers of a segment; a row is four floats a
// neuron and group, in two pieces of shared memory by turns. All that there is to know of a layer comes as
// *pieces* of up to a slice of 32 neurons a warp, which a warp of its own copies into a ring in shared memory
// several pieces ahead: nothing waits for global memory between two layers, and there is one barrier a piece.
// The first layer gathers from global memory, or from packed features, turned.
//
// With two warps a scheduler, instructions that wait for one another are what a layer takes: there must be few
// of them from barrier to barrier.
//
// Specialised by: THREADS, STAGES.
#include "small_slices.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"
#include "turning.cuh"

// Turn the packed features of a tile from `slot` on: of each neuron, a bit a sample.
__device__ __forceinline__ void turn_tile(const Areas &areas, const State &state, const int *ids, i64 slot,
                                          unsigned running, i64 n) {
    turn_samples(state, ids, slot, running, n, areas.groups * GROUP, THREADS / 32, [&](i64 neuron, unsigned bits) {
        *areas.bits_of(ZERO_ROWS + neuron) = static_cast<unsigned short>(bits);
    });
    if (threadIdx.x < ZERO_ROWS)
        *areas.bits_of(threadIdx.x) = 0;
}

// How far a tile has come.
struct Walk {
    unsigned running, live; // those that a layer runs, and those that it leaves, as is known a layer later
    int done, flags, piece, unit;
    Counts *counts; // of the layer that runs

    __device__ __forceinline__ Walk(const Areas &areas, unsigned samples)
        : running(samples), live(samples), done(0), flags(areas.place_of(0).flags), piece(0), unit(0),
          counts(&areas.counts_of(0)) {}
    // Look at the samples that the layer before left; returns whether no layer is left to run.
    __device__ __forceinline__ bool ended(const Areas &areas, int awake) {
        if (done > awake)
            live = counts[-1].nonzero & running;
        return running == 0 || done == areas.layers;
    }
    // The place in the ring of the piece before this one, which is free.
    __device__ __forceinline__ int before(const Areas &areas) const {
        return (unit == 0 ? STAGES * areas.stage : unit) - areas.stage;
    }
    // Go to the next piece, whose flags have been read; returns whether the layer ends.
    __device__ __forceinline__ bool next(const Areas &areas, int next_flags) {
        const int ends = flags >> 8 & 1;
        running = live;
        done += ends, counts += ends, piece++;
        flags = next_flags;
        unit = unit == (STAGES - 1) * areas.stage ? 0 : unit + areas.stage;
        return ends;
    }
};

// Take a tile through pieces: the last warp copies them ahead, the others compute. All warps meet between two pieces,
// at the same place. With FIRST these are the pieces of the first layer of a segment, from `inputs`, else all that are
// left, from shared memory.
template <bool FIRST, class Inputs>
__device__ __forceinline__ void run_pieces(const Areas &areas, Walk &walk, const Inputs &inputs, int awake, int warp,
                                           int lane) {
    const bool copies = warp == WARPS;
    float4 *in = areas.rows_of(walk.done), *out = areas.rows_of(walk.done + 1);
    const int stride = static_cast<int>(kept(areas.row_count)); // of a group
    bool begins = true;                                         // a layer
#pragma unroll 1
    for (;;) {
        if (copies)
            wait_for_groups<STAGES - 2>();
        __syncthreads(); // the piece is there, and the one before it is done
        const int next = areas.place_of(walk.piece + 1).flags;
        const bool over = walk.ended(areas, awake);
        if (copies && (begins || over) && lane == 0) // clocks of another branch may be read before the barrier
            walk.counts->stamp = static_cast<unsigned>(clocks());
        if (over)
            return;
        if (copies)
            request(areas, walk.piece + STAGES - 1, walk.before(areas), lane);
        else if constexpr (FIRST)
            run_piece(areas, space + walk.unit, walk.flags, walk.running, inputs, out, &walk.counts->nonzero, warp, lane);
        else
            run_piece(areas, space + walk.unit, walk.flags, walk.running,
                      [&](int group) { return FromShared{in + group * stride}; }, out, &walk.counts->nonzero, warp, lane);
        begins = walk.next(areas, next);
        if (FIRST && begins)
            return;
        float4 *swap = in;
        in = begins ? out : in, out = begins ? swap : out;
    }
}

// Take a tile through all layers; returns the samples that are live at the end.
__device__ __forceinline__ unsigned run_tile(const Areas &areas, const State &state, i64 segment, i64 slot,
                                             unsigned running, bool bits, i64 inputs, int awake) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Walk walk(areas, running);
    wait_for_copies(); // all of the first pieces; costs nothing, and racecheck does not follow a wait for a few of them
    if (bits) {
        run_pieces<true>(areas, walk, [&](int group) { return FromBits{areas.bits_of(0), group * GROUP}; }, awake, warp, lane);
    } else {
        const float4 *rows = reinterpret_cast<const float4 *>(state.rows[state.buffer[segment]] + place(slot, 0, inputs));
        run_pieces<true>(areas, walk, [&](int group) { return FromRows{rows + group}; }, awake, warp, lane);
    }
    run_pieces<false>(areas, walk, 0, awake, warp, lane);
    return walk.live;
}

// Count what a tile of samples did; by all threads. Those that `began` live until a zero row stays zero.
__device__ __forceinline__ void count_tile(const Areas &areas, unsigned began, int awake) {
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        Counts &counts = areas.counts_of(k);
        const unsigned ran = k > awake ? began & areas.counts_of(k - 1).nonzero : began;
        if (ran == 0)
            continue; // it ended before
        counts.ran += __popc(ran);
        counts.live += __popc(k >= awake ? began & counts.nonzero : began);
        counts.clocks += areas.counts_of(k + 1).stamp - counts.stamp;
    }
}

// Give the live samples of a tile their slots, and write their rows there.
__device__ __forceinline__ void store_tile(const Areas &areas, const State &state, i64 segment, bool moves, i64 slot,
                                           unsigned running, int neurons, Now &now) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, order = state.order[segment];
        unsigned base = static_cast<unsigned>(slot);
        if (moves && lane == 0)
            base = atomicAdd(state.slots + segment + 1, __popc(running));
        base = __shfl_sync(ALL_LANES, base, 0);
        const unsigned to = base + (moves ? __popc(running & first_bits(lane)) : lane);
        const bool stays = (running >> lane & 1) != 0;
        now.slots[lane] = stays ? static_cast<int>(to) : -1;
        if (stays) {
            if (moves)
                state.ids[1 - order][to] = state.ids[order][slot + lane];
            atomicOr(state.masks + (segment + 1) * state.words + to / WORD, 1u << to % WORD);
        }
    }
    __syncthreads();
    const int samples = areas.groups * GROUP, column = threadIdx.x % samples, to = now.slots[column];
    if (to < 0)
        return;
    float *rows = state.rows[1 - state.buffer[segment]] + place(to, 0, neurons);
    const float *from = reinterpret_cast<const float *>(areas.rows_of(areas.layers) + column / GROUP * areas.row_count + ZERO_ROWS) + column % GROUP;
#pragma unroll 4
    for (int neuron = threadIdx.x / samples; neuron < neurons; neuron += THREADS / samples)
        rows[static_cast<i64>(neuron) * COLUMNS] = from[neuron * GROUP];
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `bit_count`: of the features
// that may be packed. Then sizes: pieces of all layers, units of the largest, groups, and rows of a group.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    small(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 bit_count, i64 piece_count, i64 stage, i64 groups, i64 row_count) {
    __shared__ Now now;
    const State &state = *shared_state;
    if (runs_elsewhere(state, segment))
        return;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    const int samples = static_cast<int>(groups) * GROUP;
    const unsigned total = state.slots[segment];
    if (static_cast<i64>(blockIdx.x) * samples >= total)
        return;
    const Areas areas(static_cast<int>(stage), static_cast<int>(groups), static_cast<int>(row_count), static_cast<int>(layer_count), static_cast<int>(piece_count), static_cast<int>(bit_count));
    if (threadIdx.x == 0) { // nanoseconds take long to read
        now.awake = 0;
        now.began = clocks(), now.began_nanos = nanoseconds();
    }
    if (threadIdx.x < 2 * areas.groups * ZERO_ROWS) // rows of both sides follow one another
        areas.rows_of(0)[threadIdx.x / ZERO_ROWS * areas.row_count + threadIdx.x % ZERO_ROWS] =
            make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncthreads();
    find_pieces(layers, areas, now);
    const bool bits = bit_count && state.bits;
    // The first tile of each block is given out over all multiprocessors, the others as blocks come free.
    for (unsigned ticket = blockIdx.x;; ticket = now.ticket) {
        wait_for_copies(); // for pieces that nobody needs any more
        __syncthreads();   // and all are done with the tile before, and have read its ticket
        const i64 slot = static_cast<i64>(ticket) * samples;
        if (slot >= total)
            break;
        const unsigned running =
            state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(samples);
        if (threadIdx.x == 0)
            now.ticket = gridDim.x + atomicAdd(state.tickets + segment, 1);
        if (running) {
            if (threadIdx.x >= WARPS * 32)
#pragma unroll 1
                for (int k = 0; k < STAGES - 1; k++)
                    request(areas, k, k * areas.stage, threadIdx.x % 32);
            for (int k = threadIdx.x; k < areas.layers; k += THREADS)
                areas.counts_of(k).nonzero = 0;
            if (bits)
                turn_tile(areas, state, state.ids[state.order[segment]], slot, running, layers[0].n_in);
            const unsigned left = run_tile(areas, state, segment, slot, running, bits, layers[0].n_in, now.awake);
            if (threadIdx.x == 0)
                now.left = left;
            __syncthreads(); // and the last stamp
            count_tile(areas, running, now.awake);
            if (now.left)
                store_tile(areas, state, segment, moves, slot, now.left,
                           static_cast<int>(layers[layer_count - 1].n_out), now);
        }
        __syncthreads();
    }
    const float nanos_a_clock = static_cast<float>(nanoseconds() - now.began_nanos) / (clocks() - now.began + 1);
#pragma unroll 1
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Counts &counts = areas.counts_of(k);
        if (counts.ran) {
            atomicAdd(state.ran + first + k, static_cast<u64>(counts.ran));
            atomicAdd(state.live + first + k, static_cast<u64>(counts.live));
            atomicAdd(state.nanos + first + k, static_cast<u64>(counts.clocks * nanos_a_clock));
        }
    }
}
