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
#include "common.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32 - 1; // that compute; the last one copies
constexpr int GROUP = 4; // samples of a row
constexpr int ZERO_ROWS = 8; // rows of zeros before the first neuron: padding

// What there is to know of a slice, as plan/small.py writes it: at the beginning of a piece, one for each of a
// power of two of slices.
struct alignas(16) Slice {
    int begin;   // in units of 16 bytes from the beginning of the piece
    int lengths; // *quads* of eight edges and, from bit 16 on, pairs of edges that are left over; -1: no slice
    float lower, upper;
};
constexpr int TARGETS = 16, QUAD = 32, PAIR = 8; // units of indices for a warp; weights take twice as many

// Where a piece lies in global memory.
struct alignas(16) Place {
    const uint4 *from;
    int units;
    int flags; // slices: 1 << bits 0 to 7; bit 8: the last of its layer; enum Curve from bit 16 on
};

// What is counted of a layer: in this tile, and in all of them.
struct Counts {
    unsigned nonzero, stamp; // samples with a nonzero output; when it began
    unsigned ran, live, clocks;
};

// Sizes, and where the parts of shared memory begin, in units.
extern __shared__ uint4 space[]; // ring [STAGES][stage], rows [2][groups][row_count], Place [pieces + 1], bits, Counts [layers + 1]

struct Areas {
    int stage, groups, row_count, layers, pieces;
    int rows, places, bits, counts;

    __device__ __forceinline__ Areas(int stage_size, int group_count, int rows_of_group, int layer_count, int piece_count,
                                     int bit_count)
        : stage(stage_size), groups(group_count), row_count(rows_of_group), layers(layer_count), pieces(piece_count) {
        rows = STAGES * stage;
        places = rows + 2 * groups * row_count;
        bits = places + pieces + 1;
        counts = bits + (bit_count + 7) / 8;
    }
    // What goes into a layer of the segment, or comes out of the one before it; of the first group.
    __device__ __forceinline__ float4 *rows_of(int layer) const {
        return reinterpret_cast<float4 *>(space) + rows + (layer & 1) * groups * row_count;
    }
    __device__ __forceinline__ Counts &counts_of(int layer) const {
        return reinterpret_cast<Counts *>(space + counts)[layer];
    }
    __device__ __forceinline__ Place &place_of(int piece) const { return reinterpret_cast<Place *>(space + places)[piece]; }
    __device__ __forceinline__ unsigned short *bits_of(i64 neuron) const {
        return reinterpret_cast<unsigned short *>(space + bits) + neuron;
    }
};

// What the threads of a block tell each other.
struct Now {
    u64 began, began_nanos;
    unsigned ticket, left;
    int awake;       // layers up to the last after which a zero row may come to life
    int slots[WORD]; // where samples go
};

// Find the pieces of all layers; by all threads. Counts are used for sums before they begin to count.
__device__ __forceinline__ void find_pieces(const Layer *layers, const Areas &areas, Now &now) {
#pragma unroll 1
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        areas.counts_of(k).ran = static_cast<unsigned>(layers[k].single.count);
        if (!layers[k].droppable)
            atomicMax(&now.awake, k + 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) { // sums of pieces up to each layer
        const int lane = threadIdx.x;
        unsigned before = 0;
#pragma unroll 1
        for (int first = 0; first < areas.layers; first += 32) {
            const unsigned own = first + lane < areas.layers ? areas.counts_of(first + lane).ran : 0;
            unsigned sum = own;
            for (int step = 1; step < 32; step *= 2) {
                const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (first + lane < areas.layers)
                areas.counts_of(first + lane).live = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    __syncthreads();
#pragma unroll 1
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Panels &panels = layers[k].single;
        Counts &counts = areas.counts_of(k);
        for (unsigned piece = 0; piece < counts.ran; piece++) {
            const List list = panels.lists[piece];
            areas.place_of(counts.live + piece) = {static_cast<const uint4 *>(panels.indices) + list.begin, list.length,
                                                   list.shared};
        }
        counts.ran = counts.live = counts.clocks = 0;
    }
}

// Have a piece come into its place of the ring, if there is one; by one warp.
__device__ __forceinline__ void request(const Areas &areas, int piece, int unit, int lane) {
    if (piece < areas.pieces) {
        const Place place = areas.place_of(piece);
        uint4 *to = space + unit;
#pragma unroll 4
        for (int k = lane; k < place.units; k += 32)
            copy_async(to + k, place.from + k);
    }
    end_group();
}

// Rows in shared memory, rows of zeros first.
struct FromShared {
    enum { AHEAD = true }; // whether indices and weights are read ahead
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const { return rows[neuron]; }
};

// Rows in global memory; those of zeros, which the first numbers stand for, are not there.
struct FromRows {
    enum { AHEAD = false }; // registers are short
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        return neuron < ZERO_ROWS ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                                  : __ldg(rows + (neuron - ZERO_ROWS) * (COLUMNS / 4));
    }
};

// Packed features, turned, zeros first.
struct FromBits {
    enum { AHEAD = false };
    const unsigned short *bits;
    int shift; // to the group
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        const unsigned four = bits[neuron] >> shift;
        return make_float4(four & 1 ? 1.0f : 0.0f, four & 2 ? 1.0f : 0.0f, four & 4 ? 1.0f : 0.0f, four & 8 ? 1.0f : 0.0f);
    }
};

__device__ __forceinline__ void add(const float4 &x, float weight, float *totals) {
    totals[0] = fmaf(x.x, weight, totals[0]);
    totals[1] = fmaf(x.y, weight, totals[1]);
    totals[2] = fmaf(x.z, weight, totals[2]);
    totals[3] = fmaf(x.w, weight, totals[3]);
}

// Sum the inputs of a lane's neuron of a slice. Indices and weights of the next quad are read before those at
// hand are used, one quad too many.
template <class From>
__device__ __forceinline__ void sum(const From &from, const uint4 *edges, int lengths, int lane, float *totals) {
    const int quads = lengths & 0xffff, pairs = lengths >> 16;
    if (quads) {
        const uint4 *indices = edges + lane;
        const float4 *weights = reinterpret_cast<const float4 *>(edges + quads * QUAD) + lane;
        uint4 four = *indices;
        float4 w[2] = {weights[0], weights[QUAD]};
#pragma unroll 1
        for (int k = 0; k < quads; k++) {
            const float4 x[8] = {from(four.x & 0xffff), from(four.x >> 16), from(four.y & 0xffff), from(four.y >> 16),
                                 from(four.z & 0xffff), from(four.z >> 16), from(four.w & 0xffff), from(four.w >> 16)};
            const float4 now[2] = {w[0], w[1]};
            indices += QUAD, weights += 2 * QUAD;
            if (From::AHEAD)
                four = *indices, w[0] = weights[0], w[1] = weights[QUAD];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                add(x[4 * half], now[half].x, totals), add(x[4 * half + 1], now[half].y, totals);
                add(x[4 * half + 2], now[half].z, totals), add(x[4 * half + 3], now[half].w, totals);
            }
            if (!From::AHEAD)
                four = *indices, w[0] = weights[0], w[1] = weights[QUAD];
        }
    }
    edges += 3 * QUAD * quads;
    const unsigned *indices = reinterpret_cast<const unsigned *>(edges) + lane;
    const float2 *weights = reinterpret_cast<const float2 *>(edges + pairs * PAIR) + lane;
#pragma unroll 1
    for (int k = 0; k < pairs; k++) {
        const unsigned both = indices[k * 32];
        const float2 w = weights[k * 32];
        const float4 x[2] = {from(both & 0xffff), from(both >> 16)};
        add(x[0], w.x, totals), add(x[1], w.y, totals);
    }
}

struct Bounds {
    float lower, upper;
    int curve;
};

// Run a slice of a piece on a group, into `rows`; returns the samples with a nonzero output. Where there are fewer
// than 32 neurons, other lanes write a row for nobody.
template <class From>
__device__ __forceinline__ unsigned run_slice(const uint4 *piece, const Slice &slice, int curve, const From &from,
                                              float4 *rows, int lane) {
    piece += slice.begin;
    float totals[GROUP] = {};
    const int2 target = reinterpret_cast<const int2 *>(piece)[lane];
    sum(from, piece + TARGETS, slice.lengths, lane, totals);
    const Bounds bounds = {slice.lower, slice.upper, curve};
    unsigned some = 0;
#pragma unroll
    for (int k = 0; k < GROUP; k++) {
        totals[k] = activate(bounds, totals[k], __int_as_float(target.y));
        some |= totals[k] != 0.0f ? 1u << k : 0u;
    }
    rows[target.x] = make_float4(totals[0], totals[1], totals[2], totals[3]);
    return __reduce_or_sync(ALL_LANES, some);
}

// Run a piece on all groups with live samples, into `rows`; by the warps that compute.
template <class Inputs>
__device__ __forceinline__ void run_piece(const Areas &areas, const uint4 *piece, int flags, unsigned running,
                                          const Inputs &inputs, float4 *rows, unsigned *nonzero, int warp, int lane) {
    const int shift = flags & 0xff;
#pragma unroll 1
    for (int item = warp; item < areas.groups << shift; item += WARPS) {
        const int group = item >> shift;
        const Slice slice = reinterpret_cast<const Slice *>(piece)[item & ((1 << shift) - 1)];
        if ((running >> group * GROUP & first_bits(GROUP)) == 0 || slice.lengths < 0)
            continue;
        const unsigned some = run_slice(piece, slice, flags >> 16, inputs(group), rows + group * areas.row_count, lane);
        if (lane == 0)
            atomicOr(nonzero, some << group * GROUP);
    }
}

// Turn the packed features of a tile from `slot` on: of each neuron, a bit a sample.
__device__ __forceinline__ void turn_tile(const Areas &areas, const State &state, const int *ids, i64 slot,
                                          unsigned running, i64 n) {
    const int samples = areas.groups * GROUP, parts = 32 / samples; // words that a warp takes at a time
    const int lane = threadIdx.x % 32, sample = lane % samples, part = lane / samples;
    const int there = running >> sample & 1 ? sample : __ffs(running) - 1; // those that are not: any
    const unsigned char *from = state.bits + (ids[slot + there] - state.first) * state.bits_stride;
    const i64 bytes = (n + 7) / 8, words = (bytes + 3) / 4;
    const bool aligned = ((reinterpret_cast<u64>(state.bits) | static_cast<u64>(state.bits_stride)) & 15) == 0;
#pragma unroll 1
    for (i64 first = threadIdx.x / 32 * parts; first * 4 < words; first += THREADS / 32 * parts) {
        const i64 word = (first + part) * 4;
        unsigned x[4] = {}; // words of a lane, which lie one after the other
        if (aligned && word * 4 + 16 <= bytes) {
            const uint4 four = __ldg(reinterpret_cast<const uint4 *>(from) + (first + part));
            x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        } else {
#pragma unroll
            for (int k = 0; k < 16; k++)
                x[k / 4] |= word * 4 + k < bytes ? static_cast<unsigned>(__ldg(from + word * 4 + k)) << k % 4 * 8 : 0;
        }
        unsigned mask = 0x0000ffff;
#pragma unroll
        for (int step = 16; step; step >>= 1, mask ^= mask << step) // bit k of lane j to bit j of lane k
#pragma unroll
            for (int q = 0; q < 4; q++) {
                const unsigned other = __shfl_xor_sync(ALL_LANES, x[q], step);
                x[q] = lane & step ? (x[q] & ~mask) | (other >> step & mask) : (x[q] & mask) | (other & mask) << step;
            }
#pragma unroll 1
        for (int k = 0; k < parts; k++)
#pragma unroll
            for (int q = 0; q < 4; q++) { // the first neuron is in the highest bit of its byte
                const i64 neuron = ((first + k) * 4 + q) * 32 + (lane ^ 7);
                if (neuron < n)
                    *areas.bits_of(ZERO_ROWS + neuron) = static_cast<unsigned short>(x[q] >> k * samples & first_bits(samples));
            }
    }
    if (threadIdx.x < ZERO_ROWS)
        *areas.bits_of(threadIdx.x) = 0;
}

// The barrier between two pieces, for the warp that copies and for those that compute.
__device__ __forceinline__ void meet() { __syncthreads(); }

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

// Copy pieces ahead of those that compute; by one warp.
__device__ __forceinline__ void feed_tile(const Areas &areas, unsigned running, int awake, int lane) {
    Walk walk(areas, running);
    int free = (STAGES - 1) * areas.stage;
    bool begins = true;
#pragma unroll 1
    for (;;) {
        wait_for_groups<STAGES - 2>();
        meet(); // the piece is there, and the one before it is done
        const bool over = walk.ended(areas, awake);
        if (over) {
            if (lane == 0)
                walk.counts->stamp = static_cast<unsigned>(clocks());
            return;
        }
        if (begins && lane == 0) // behind the branch, as clocks may be read before a barrier that comes first
            walk.counts->stamp = static_cast<unsigned>(clocks());
        request(areas, walk.piece + STAGES - 1, free, lane);
        free = walk.unit;
        begins = walk.next(areas, areas.place_of(walk.piece + 1).flags);
    }
}

// Run the first layer of a segment; by the warps that compute.
template <class Inputs>
__device__ __forceinline__ void run_first(const Areas &areas, Walk &walk, const Inputs &inputs, int warp, int lane) {
#pragma unroll 1
    for (bool ends = false; !ends;) {
        meet();
        run_piece(areas, space + walk.unit, walk.flags, walk.running, inputs, areas.rows_of(1), &walk.counts->nonzero, warp,
                  lane);
        ends = walk.next(areas, areas.place_of(walk.piece + 1).flags);
    }
}

// Run the other layers; returns the samples that are live at the end.
__device__ __forceinline__ unsigned run_others(const Areas &areas, Walk &walk, int awake, int warp, int lane) {
    float4 *in = areas.rows_of(1), *out = areas.rows_of(0);
    const int stride = static_cast<int>(kept(areas.row_count)); // of a group
#pragma unroll 1
    for (;;) {
        meet();
        const int next = areas.place_of(walk.piece + 1).flags;
        if (walk.ended(areas, awake))
            return walk.live;
        run_piece(areas, space + walk.unit, walk.flags, walk.running,
                  [&](int group) { return FromShared{in + group * stride}; }, out, &walk.counts->nonzero, warp, lane);
        const bool ends = walk.next(areas, next);
        float4 *swap = in;
        in = ends ? out : in, out = ends ? swap : out;
    }
}

// Take a tile through all layers; returns the samples that are live at the end, to the warps that compute.
__device__ __forceinline__ unsigned run_tile(const Areas &areas, const State &state, i64 segment, i64 slot,
                                             unsigned running, bool bits, i64 inputs, int awake) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (warp == WARPS) {
        feed_tile(areas, running, awake, lane);
        return 0;
    }
    Walk walk(areas, running);
    if (bits) {
        run_first(areas, walk, [&](int group) { return FromBits{areas.bits_of(0), group * GROUP}; }, warp, lane);
    } else {
        const float4 *rows = reinterpret_cast<const float4 *>(state.rows[state.buffer[segment]] + place(slot, 0, inputs));
        run_first(areas, walk, [&](int group) { return FromRows{rows + group}; }, warp, lane);
    }
    return run_others(areas, walk, awake, warp, lane);
}

// Count what a tile did; by all threads. Of `began` samples all live until a zero row stays zero.
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
    const int samples = areas.groups * GROUP, sample = threadIdx.x % samples, to = now.slots[sample];
    if (to < 0)
        return;
    float *rows = state.rows[1 - state.buffer[segment]] + place(to, 0, neurons);
    const float *from = reinterpret_cast<const float *>(areas.rows_of(areas.layers) + sample / GROUP * areas.row_count + ZERO_ROWS) + sample % GROUP;
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
