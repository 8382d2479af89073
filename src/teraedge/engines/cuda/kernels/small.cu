// Many small layers in one launch, at the latency of shared memory.
//
// A block takes a tile of `groups` times four samples through all layers of a segment; a row is four floats a
// neuron and group, in two pieces of shared memory by turns. All that there is to know of a layer comes as
// *pieces* of up to a slice of 32 neurons a warp, which the block copies into a ring in shared memory several
// pieces ahead: nothing waits for global memory between two layers, and there is one barrier a piece. The first
// layer gathers from global memory, or from packed features, turned; the last one writes there.
//
// Specialised by: THREADS, STAGES.
#include "common.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int GROUP = 4; // samples of a row
constexpr int ZERO_ROWS = 8; // rows of zeros behind the last neuron: padding

// The head of a piece, as plan/small.py writes it. Behind it lie two ints a slice: where it begins, in units
// of 16 bytes, and its *quads* of eight edges and, from bit 16 on, pairs of edges that are left over.
struct Piece {
    int slices, inverse; // 65536 / slices, rounded up
    int neurons;         // outputs of the layer
    int ends;            // it is the last of its layer
    float lower, upper;
    int curve, unused;
};
constexpr int HEAD = sizeof(Piece) / 8;  // where those ints begin
constexpr int TARGETS = 16, QUAD = 32, PAIR = 8; // units of indices for a warp; weights take twice as many

// Where a piece lies in global memory.
struct Place {
    const uint4 *from;
    i64 units;
};

extern __shared__ uint4 shared[]; // ring [STAGES][stage], rows [2][groups][row_counts[.]], Place [pieces], bits, counts

// Sizes, and where the parts of shared memory begin, in units of 16 bytes.
struct Areas {
    int stage, groups, layers, pieces;
    int rows[2], row_counts[2]; // of layers in turn
    int places, bits, counts;

    __device__ __forceinline__ Areas(int stages_size, int group_count, int even_rows, int odd_rows, int layer_count,
                                     int piece_count, int bit_count)
        : stage(stages_size), groups(group_count), layers(layer_count), pieces(piece_count) {
        row_counts[0] = even_rows, row_counts[1] = odd_rows;
        rows[0] = STAGES * stage, rows[1] = rows[0] + groups * even_rows;
        places = rows[1] + groups * odd_rows;
        bits = places + pieces;
        counts = bits + (bit_count + 7) / 8;
    }
    // What goes into layer `layer` of the segment, or comes out of the one before it.
    __device__ __forceinline__ int rows_of(int layer, int group) const {
        const int side = layer & 1;
        return (side ? rows[1] : rows[0]) + group * (side ? row_counts[1] : row_counts[0]);
    }
    __device__ __forceinline__ unsigned *counts_of(int layer) const { // samples that ran, and lived on, and clocks
        return reinterpret_cast<unsigned *>(shared + counts) + layer * 3;
    }
    __device__ __forceinline__ Place *place_of(int piece) const {
        return reinterpret_cast<Place *>(shared + places) + piece;
    }
    __device__ __forceinline__ unsigned short *bits_of(i64 neuron) const {
        return reinterpret_cast<unsigned short *>(shared + bits) + neuron;
    }
};

__device__ __forceinline__ float4 &row_at(int unit) { return reinterpret_cast<float4 *>(shared)[unit]; }

// What the threads of a block tell each other.
struct Now {
    unsigned ticket;
    unsigned nonzero[3]; // samples with a nonzero output, of layers in turn
    int awake;           // layers up to the last after which a zero row may come to life
    int slots[WORD];     // where samples go
};

// Find the pieces of all layers; by all threads. Counts are used for sums before they begin to count.
__device__ __forceinline__ void find_pieces(const Layer *layers, const Areas &areas, Now &now) {
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        areas.counts_of(k)[0] = static_cast<unsigned>(layers[k].single.count);
        if (!layers[k].droppable)
            atomicMax(&now.awake, k + 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) { // sums of pieces up to each layer
        const int lane = threadIdx.x;
        unsigned before = 0;
        for (int first = 0; first < areas.layers; first += 32) {
            const unsigned own = first + lane < areas.layers ? areas.counts_of(first + lane)[0] : 0;
            unsigned sum = own;
            for (int step = 1; step < 32; step *= 2) {
                const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (first + lane < areas.layers)
                areas.counts_of(first + lane)[1] = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Panels &panels = layers[k].single;
        unsigned *counts = areas.counts_of(k);
        for (unsigned piece = 0; piece < counts[0]; piece++) {
            const List list = panels.lists[piece];
            *areas.place_of(counts[1] + piece) = {static_cast<const uint4 *>(panels.indices) + list.begin, list.length};
        }
        counts[0] = counts[1] = counts[2] = 0;
    }
}

// Have a piece come into its place of the ring, if there is one.
__device__ __forceinline__ void request(const Areas &areas, int piece, int unit) {
    if (piece < areas.pieces) {
        const Place place = *areas.place_of(piece);
        const int units = static_cast<int>(place.units);
#pragma unroll 1
        for (int k = threadIdx.x; k < units; k += THREADS)
            copy_async(shared + unit + k, place.from + k);
    }
    end_group();
}

// Rows in shared memory from a unit on, with rows of zeros behind the last.
struct FromShared {
    int unit;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const { return row_at(unit + neuron); }
};

// Rows in global memory; what is beyond the last is zero.
struct FromRows {
    const float4 *rows;
    unsigned n;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        return neuron < n ? __ldg(rows + static_cast<i64>(neuron) * (COLUMNS / 4)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
};

// Packed features, turned, with zeros behind the last.
struct FromBits {
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

// Sum the inputs of a lane's neuron of a slice, the edges of which begin at `unit`. There is little code, so that
// it stays near: a warp alone would wait for instructions longer than for anything else.
template <class From>
__device__ __forceinline__ void sum(const From &from, int unit, int lengths, int lane, float *totals) {
    const int quads = lengths & 0xffff, pairs = lengths >> 16;
    int index = unit + lane, weight = unit + quads * QUAD + lane;
#pragma unroll 1
    for (int k = 0; k < quads; k++) {
        const uint4 four = shared[index];
        const float4 w[2] = {row_at(weight), row_at(weight + QUAD)};
        float4 x[8] = {from(four.x & 0xffff), from(four.x >> 16), from(four.y & 0xffff), from(four.y >> 16),
                       from(four.z & 0xffff), from(four.z >> 16), from(four.w & 0xffff), from(four.w >> 16)};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            add(x[4 * half], w[half].x, totals), add(x[4 * half + 1], w[half].y, totals);
            add(x[4 * half + 2], w[half].z, totals), add(x[4 * half + 3], w[half].w, totals);
        }
        index += QUAD, weight += 2 * QUAD;
    }
    const int rest = unit + 3 * QUAD * quads;
    const unsigned *indices = reinterpret_cast<const unsigned *>(shared + rest) + lane;
    const float2 *weights = reinterpret_cast<const float2 *>(shared + rest + pairs * PAIR) + lane;
#pragma unroll 1
    for (int k = 0; k < pairs; k++) {
        const unsigned both = indices[k * 32];
        const float2 w = weights[k * 32];
        const float4 x[2] = {from(both & 0xffff), from(both >> 16)};
        add(x[0], w.x, totals), add(x[1], w.y, totals);
    }
}

// Run a slice of the piece at `unit` on a group, into the rows from `to` on; returns the samples with a nonzero
// output.
template <class From>
__device__ __forceinline__ unsigned run_slice(const Piece &piece, int unit, int slice, const From &from, int to, int lane) {
    const int2 list = reinterpret_cast<const int2 *>(shared + unit)[HEAD + slice];
    unit += list.x;
    const int2 target = reinterpret_cast<const int2 *>(shared + unit)[lane];
    float totals[GROUP] = {};
    sum(from, unit + TARGETS, list.y, lane, totals);
    unsigned some = 0;
    if (target.x >= 0) {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            totals[k] = activate(piece, totals[k], __int_as_float(target.y));
            some |= (totals[k] != 0.0f ? 1u : 0u) << k;
        }
        row_at(to + target.x) = make_float4(totals[0], totals[1], totals[2], totals[3]);
    }
    return __reduce_or_sync(ALL_LANES, some);
}

// Run a piece of layer `done`, at `unit`, on all groups with live samples.
template <class Inputs>
__device__ __forceinline__ void run_piece(const Areas &areas, const Piece &piece, int unit, int done, unsigned running,
                                          const Inputs &inputs, unsigned *nonzero) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int item = threadIdx.x / 32; item < piece.slices * areas.groups; item += WARPS) {
        const int group = item * piece.inverse >> 16, slice = item - group * piece.slices;
        if ((running >> group * GROUP & first_bits(GROUP)) == 0)
            continue;
        const unsigned some = run_slice(piece, unit, slice, inputs(group), areas.rows_of(done + 1, group), lane);
        if (lane == 0 && some)
            atomicOr(nonzero, some << group * GROUP);
    }
    if (piece.ends && threadIdx.x < areas.groups * ZERO_ROWS)
        row_at(areas.rows_of(done + 1, threadIdx.x / ZERO_ROWS) + piece.neurons + threadIdx.x % ZERO_ROWS) =
            make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Turn the packed features of a tile from `slot` on: of each neuron, a bit a sample.
__device__ __forceinline__ void turn_tile(const Areas &areas, const State &state, const int *ids, i64 slot,
                                          unsigned running, i64 n) {
    const int samples = areas.groups * GROUP, parts = 32 / samples; // words that a warp takes at a time
    const int lane = threadIdx.x % 32, sample = lane % samples, part = lane / samples;
    const int there = running >> sample & 1 ? sample : __ffs(running) - 1; // those that are not: any
    const unsigned char *from = state.bits + (ids[slot + there] - state.first) * state.bits_stride;
    const i64 bytes = (n + 7) / 8, words = (bytes + 3) / 4;
    const bool aligned = ((reinterpret_cast<u64>(state.bits) | static_cast<u64>(state.bits_stride)) & 3) == 0;
    for (i64 first = threadIdx.x / 32 * parts; first < words; first += WARPS * parts) {
        const i64 word = first + part;
        unsigned x = 0;
        if (aligned && word * 4 + 4 <= bytes)
            x = __ldg(reinterpret_cast<const unsigned *>(from) + word);
        else
            for (int k = 0; k < 4; k++)
                x |= word * 4 + k < bytes ? static_cast<unsigned>(__ldg(from + word * 4 + k)) << 8 * k : 0;
        unsigned mask = 0x0000ffff;
#pragma unroll
        for (int step = 16; step; step >>= 1, mask ^= mask << step) { // bit k of lane j to bit j of lane k
            const unsigned other = __shfl_xor_sync(ALL_LANES, x, step);
            x = lane & step ? (x & ~mask) | (other >> step & mask) : (x & mask) | (other & mask) << step;
        }
        for (int k = 0; k < parts; k++) { // the first neuron is in the highest bit of its byte
            const i64 neuron = (first + k) * 32 + (lane ^ 7);
            if (neuron < n)
                *areas.bits_of(neuron) = static_cast<unsigned short>(x >> k * samples & first_bits(samples));
        }
    }
    if (threadIdx.x < ZERO_ROWS)
        *areas.bits_of(n + threadIdx.x) = 0;
}

// Take a tile through all layers; returns the samples that are live at the end.
__device__ __forceinline__ unsigned run_tile(const Areas &areas, const State &state, i64 segment, i64 slot,
                                             unsigned running, bool bits, i64 inputs, Now &now) {
    const int lane = threadIdx.x % 32;
    unsigned began = static_cast<unsigned>(clocks());
    int unit = 0, free = (STAGES - 1) * areas.stage, done = 0, turn = 0, ends = 0;
#pragma unroll 1
    for (int piece = 0;; piece++) {
        wait_for_groups<STAGES - 2>();
        __syncthreads(); // the piece is there, and the one before it is done
        if (ends) {
            const unsigned ran = running, end = static_cast<unsigned>(clocks());
            if (done > now.awake)
                running &= now.nonzero[turn];
            if (threadIdx.x < 3)
                atomicAdd(areas.counts_of(done - 1) + lane, lane == 0 ? __popc(ran) : lane == 1 ? __popc(running) : end - began);
            began = end;
            turn = turn == 2 ? 0 : turn + 1; // of the layer that follows
            if (threadIdx.x == 0)
                now.nonzero[turn == 2 ? 0 : turn + 1] = 0;
            if (running == 0 || done == areas.layers)
                return running;
        }
        request(areas, piece + STAGES - 1, free);
        const Piece now_runs = *reinterpret_cast<const Piece *>(shared + unit);
        unsigned *nonzero = now.nonzero + turn;
        if (done) {
            const auto from = [&](int group) { return FromShared{areas.rows_of(done, group)}; };
            run_piece(areas, now_runs, unit, done, running, from, nonzero);
        } else if (bits) {
            const auto from = [&](int group) { return FromBits{areas.bits_of(0), group * GROUP}; };
            run_piece(areas, now_runs, unit, done, running, from, nonzero);
        } else {
            const float *rows = state.rows[state.buffer[segment]] + place(slot, 0, inputs);
            const auto from = [&](int group) {
                return FromRows{reinterpret_cast<const float4 *>(rows) + group, static_cast<unsigned>(inputs)};
            };
            run_piece(areas, now_runs, unit, done, running, from, nonzero);
        }
        ends = now_runs.ends;
        done += ends;
        free = unit;
        unit = unit == (STAGES - 1) * areas.stage ? 0 : unit + areas.stage;
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
    const float *from = reinterpret_cast<const float *>(shared + areas.rows_of(areas.layers, sample / GROUP)) + sample % GROUP;
    for (int neuron = threadIdx.x / samples; neuron < neurons; neuron += THREADS / samples)
        rows[static_cast<i64>(neuron) * COLUMNS] = from[neuron * GROUP];
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `bit_count`: of the features
// that may be packed. Then sizes: pieces of all layers, units of the largest, groups, and rows of a group that come
// out of odd layers and of even ones, the first being even.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    small(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 bit_count, i64 piece_count, i64 stage, i64 groups, i64 odd_rows, i64 even_rows) {
    __shared__ Now now;
    const State &state = *shared_state;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    const int samples = static_cast<int>(groups) * GROUP;
    const unsigned total = state.slots[segment];
    if (static_cast<i64>(blockIdx.x) * samples >= total)
        return;
    const Areas areas(static_cast<int>(stage), static_cast<int>(groups), static_cast<int>(odd_rows), static_cast<int>(even_rows),
                      static_cast<int>(layer_count), static_cast<int>(piece_count), static_cast<int>(bit_count));
    const u64 began = clocks(), began_nanos = nanoseconds(); // which take long to read
    if (threadIdx.x == 0)
        now.awake = 0;
    __syncthreads();
    find_pieces(layers, areas, now);
    const i64 inputs = layers[0].n_in;
    const int outputs = static_cast<int>(layers[layer_count - 1].n_out);
    const int *ids = state.ids[state.order[segment]];
    const bool bits = bit_count && state.bits;
    // The first tile of each block is given out over all multiprocessors, the others as blocks come free.
    for (unsigned ticket = blockIdx.x;; ticket = now.ticket) {
        wait_for_copies(); // for pieces that nobody needs any more
        __syncthreads();   // and all are done with the tile before, and have read its ticket
        const i64 slot = static_cast<i64>(ticket) * samples;
        if (slot >= total)
            break;
        unsigned running = state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(samples);
        if (threadIdx.x == 0) {
            now.ticket = gridDim.x + atomicAdd(state.tickets + segment, 1);
            now.nonzero[0] = now.nonzero[1] = now.nonzero[2] = 0;
        }
        if (running) {
            for (int k = 0; k < STAGES - 1; k++)
                request(areas, k, k * areas.stage);
            if (bits)
                turn_tile(areas, state, ids, slot, running, inputs);
            running = run_tile(areas, state, segment, slot, running, bits, inputs, now);
        }
        if (running)
            store_tile(areas, state, segment, moves, slot, running, outputs, now);
        __syncthreads();
    }
    const float nanos_a_clock = static_cast<float>(nanoseconds() - began_nanos) / (clocks() - began + 1);
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const unsigned *counts = areas.counts_of(k);
        if (counts[0]) {
            atomicAdd(state.ran + first + k, static_cast<u64>(counts[0]));
            atomicAdd(state.live + first + k, static_cast<u64>(counts[1]));
            atomicAdd(state.nanos + first + k, static_cast<u64>(counts[2] * nanos_a_clock));
        }
    }
}
