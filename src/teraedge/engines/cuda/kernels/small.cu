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

// The head of a piece, as plan/small.py writes it.
struct Piece {
    int slices, inverse; // 65536 / slices, rounded up
    int neurons;         // outputs of the layer
    int ends;            // it is the last of its layer
    int equal, curve;
    float value, lower, upper;
    int unused[3];
    int2 lists[WARPS]; // where each slice begins, in 16 bytes, and its pairs of edges
};
constexpr int TARGETS = 16, INDICES = 8; // of a slice, in 16 bytes: for 32 neurons; for a pair of edges

// Where a piece lies in global memory.
struct Place {
    const uint4 *from;
    i64 units; // of 16 bytes
};

// What is counted of a layer.
struct Counts {
    unsigned ran, live, clocks;
};

extern __shared__ uint4 shared[]; // ring [STAGES][stage], rows [2][groups][row_count], bits, Place [pieces], Counts [layers]

// Sizes, and where the parts of shared memory are.
struct Areas {
    uint4 *ring;
    float4 *rows;
    unsigned short *bits; // of each neuron, one a sample
    Place *places;
    Counts *counts;
    int stage, groups, row_count, layers, pieces;

    __device__ __forceinline__ float4 *rows_of(int layer, int group) const {
        return rows + ((layer & 1) * groups + group) * row_count;
    }
};

// What the threads of a block tell each other.
struct Now {
    unsigned ticket, base;
    unsigned nonzero[3]; // samples with a nonzero output, of layers in turn
    int awake;           // layers up to the last after which a zero row may come to life
};

// Find the pieces of all layers; by all threads. `counts` is used for sums before it begins to count.
__device__ __forceinline__ void find_pieces(const Layer *layers, const Areas &areas, Now &now) {
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        areas.counts[k].ran = static_cast<unsigned>(layers[k].single.count);
        if (!layers[k].droppable)
            atomicMax(&now.awake, k + 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) { // sums of pieces up to each layer
        const int lane = threadIdx.x;
        unsigned before = 0;
        for (int first = 0; first < areas.layers; first += 32) {
            const unsigned own = first + lane < areas.layers ? areas.counts[first + lane].ran : 0;
            unsigned sum = own;
            for (int step = 1; step < 32; step *= 2) {
                const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (first + lane < areas.layers)
                areas.counts[first + lane].live = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Panels &panels = layers[k].single;
        const Counts found = areas.counts[k];
        for (unsigned piece = 0; piece < found.ran; piece++) {
            const List list = panels.lists[piece];
            areas.places[found.live + piece] = {static_cast<const uint4 *>(panels.indices) + list.begin, list.length};
        }
        areas.counts[k] = {0, 0, 0};
    }
}

// Have a piece come into its place of the ring, if there is one.
__device__ __forceinline__ void request(const Areas &areas, int piece, int stage) {
    if (piece < areas.pieces) {
        const Place place = areas.places[piece];
        for (int k = threadIdx.x; k < place.units; k += THREADS)
            copy_async(areas.ring + stage * areas.stage + k, place.from + k);
    }
    end_group();
}

// Rows in shared memory, with rows of zeros behind the last.
struct FromShared {
    enum { PAIRS = 8 }; // of edges that are loaded together
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const { return rows[neuron]; }
};

// Rows in global memory; what is beyond the last is zero.
struct FromRows {
    enum { PAIRS = 4 };
    const float4 *rows;
    unsigned n;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        return neuron < n ? __ldg(rows + static_cast<i64>(neuron) * (COLUMNS / 4)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
};

// Packed features, turned, with zeros behind the last.
struct FromBits {
    enum { PAIRS = 4 };
    const unsigned short *bits;
    int shift; // to the group
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        const unsigned four = bits[neuron] >> shift;
        return make_float4(four & 1 ? 1.0f : 0.0f, four & 2 ? 1.0f : 0.0f, four & 4 ? 1.0f : 0.0f, four & 8 ? 1.0f : 0.0f);
    }
};

// Add the inputs of some pairs of edges; rows are all read before the first is added.
template <bool EQUAL, int COUNT, class From>
__device__ __forceinline__ void add_pairs(const From &from, float value, const unsigned *indices, const float2 *weights,
                                          float *totals) {
    unsigned both[COUNT];
    float2 weight[COUNT];
    float4 x[2 * COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        both[k] = indices[k * 32];
        weight[k] = EQUAL ? make_float2(value, value) : weights[k * 32];
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        x[2 * k] = from(both[k] & 0xffff), x[2 * k + 1] = from(both[k] >> 16);
#pragma unroll
    for (int k = 0; k < 2 * COUNT; k++) {
        const float w = k % 2 ? weight[k / 2].y : weight[k / 2].x;
        totals[0] = fmaf(x[k].x, w, totals[0]);
        totals[1] = fmaf(x[k].y, w, totals[1]);
        totals[2] = fmaf(x[k].z, w, totals[2]);
        totals[3] = fmaf(x[k].w, w, totals[3]);
    }
}

// Sum the inputs of a lane's neuron.
template <bool EQUAL, class From>
__device__ __forceinline__ void sum(const From &from, float value, const unsigned *indices, const float2 *weights,
                                    int pairs, float *totals) {
    constexpr int MOST = From::PAIRS;
    int done = 0;
#pragma unroll 1
    for (; done + MOST <= pairs; done += MOST)
        add_pairs<EQUAL, MOST>(from, value, indices + done * 32, weights + done * 32, totals);
    if (MOST > 4 && pairs & 4) {
        add_pairs<EQUAL, 4>(from, value, indices + done * 32, weights + done * 32, totals);
        done += 4;
    }
    if (pairs & 2) {
        add_pairs<EQUAL, 2>(from, value, indices + done * 32, weights + done * 32, totals);
        done += 2;
    }
    if (pairs & 1)
        add_pairs<EQUAL, 1>(from, value, indices + done * 32, weights + done * 32, totals);
}

// Where the outputs of a group go: into shared memory, or to slots of global memory.
struct Into {
    float4 *rows;   // or none
    float *global;  // the rows after the segment
    i64 base;       // slot of the first sample of the tile that goes there
    unsigned goes;  // samples of the tile that do
    unsigned takes; // samples of the tile that have a slot

    __device__ __forceinline__ void write(int group, int neuron, int neurons, const float *y) const {
        if (rows) {
            rows[neuron] = make_float4(y[0], y[1], y[2], y[3]);
            return;
        }
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            if (goes >> (group * GROUP + k) & 1)
                global[place(base + __popc(takes & first_bits(group * GROUP + k)), neuron, neurons)] = y[k];
    }
};

// Run a slice of a piece on a group; returns the samples with a nonzero output.
template <class From>
__device__ __forceinline__ unsigned run_slice(const uint4 *packet, int slice, const From &from, const Into &into,
                                              int group, int lane) {
    const Piece &piece = *reinterpret_cast<const Piece *>(packet);
    const int2 list = piece.lists[slice];
    packet += list.x;
    const int2 both = reinterpret_cast<const int2 *>(packet)[lane];
    const Target target = {both.x, __int_as_float(both.y)};
    const unsigned *indices = reinterpret_cast<const unsigned *>(packet + TARGETS) + lane;
    const float2 *weights = reinterpret_cast<const float2 *>(packet + TARGETS + list.y * INDICES) + lane;
    float totals[GROUP] = {};
    if (piece.equal)
        sum<true>(from, piece.value, indices, weights, list.y, totals);
    else
        sum<false>(from, piece.value, indices, weights, list.y, totals);
    unsigned some = 0;
    if (target.output >= 0) {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            totals[k] = activate(piece, totals[k], target.bias);
            some |= (totals[k] != 0.0f ? 1u : 0u) << k;
        }
        into.write(group, target.output, piece.neurons, totals);
    }
    return __reduce_or_sync(ALL_LANES, some);
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
                areas.bits[neuron] = static_cast<unsigned short>(x >> k * samples & first_bits(samples));
        }
    }
    if (threadIdx.x < ZERO_ROWS)
        areas.bits[n + threadIdx.x] = 0;
}

// The live ones of a tile, and what they read and write.
struct Taken {
    i64 slot;
    unsigned running;
    bool bits;
};

// Run a piece of layer `done` on the tile; returns the samples with a nonzero output.
__device__ __forceinline__ void run_piece(const Areas &areas, const State &state, i64 segment, const uint4 *packet,
                                          int done, i64 inputs, const Taken &tile, Into into, unsigned *nonzero) {
    const Piece &piece = *reinterpret_cast<const Piece *>(packet);
    const int slices = piece.slices, lane = threadIdx.x % 32;
    const bool last = done + 1 == areas.layers;
    for (int item = threadIdx.x / 32; item < slices * areas.groups; item += WARPS) {
        const int group = static_cast<int>(static_cast<unsigned>(item) * piece.inverse >> 16), slice = item - group * slices;
        if ((tile.running >> group * GROUP & first_bits(GROUP)) == 0)
            continue;
        into.rows = last ? nullptr : areas.rows_of(done + 1, group);
        unsigned some;
        if (done) {
            some = run_slice(packet, slice, FromShared{areas.rows_of(done, group)}, into, group, lane);
        } else if (tile.bits) {
            some = run_slice(packet, slice, FromBits{areas.bits, group * GROUP}, into, group, lane);
        } else {
            const float *rows = state.rows[state.buffer[segment]] + place(tile.slot + group * GROUP, 0, inputs);
            const FromRows from = {reinterpret_cast<const float4 *>(rows), static_cast<unsigned>(inputs)};
            some = run_slice(packet, slice, from, into, group, lane);
        }
        if (lane == 0 && some)
            atomicOr(nonzero, some << group * GROUP);
    }
    if (piece.ends && !last && threadIdx.x < areas.groups * ZERO_ROWS)
        areas.rows_of(done + 1, threadIdx.x / ZERO_ROWS)[piece.neurons + threadIdx.x % ZERO_ROWS] =
            make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Take a tile through all layers, and those that live to their slots.
__device__ __forceinline__ void run_tile(const Areas &areas, const State &state, i64 segment, bool moves, i64 inputs,
                                         Taken tile, Now &now) {
    Into into = {nullptr, state.rows[1 - state.buffer[segment]], tile.slot, 0, first_bits(32)};
    u64 began = clocks();
    int stage = 0, free = STAGES - 1, done = 0;
    bool begins = true;
#pragma unroll 1
    for (int piece = 0;; piece++) {
        wait_for_groups<STAGES - 2>();
        __syncthreads(); // the piece is there, and the one before it is done
        if (begins && done) {
            const unsigned ran = tile.running;
            if (done > now.awake)
                tile.running &= now.nonzero[(done - 1) % 3];
            if (threadIdx.x == 0) {
                const u64 end = clocks();
                Counts &counts = areas.counts[done - 1];
                atomicAdd(&counts.ran, __popc(ran));
                atomicAdd(&counts.live, __popc(tile.running));
                atomicAdd(&counts.clocks, static_cast<unsigned>(end - began));
                began = end;
                now.nonzero[(done + 1) % 3] = 0;
            }
            if (tile.running == 0 || done == areas.layers)
                break;
        }
        request(areas, piece + STAGES - 1, free);
        if (begins && done + 1 == areas.layers) {
            into.goes = tile.running;
            if (moves) { // those that die in this layer have a slot, too
                if (threadIdx.x == 0)
                    now.base = atomicAdd(state.slots + segment + 1, __popc(tile.running));
                __syncthreads();
                into.base = now.base, into.takes = tile.running;
            }
        }
        const uint4 *packet = areas.ring + stage * areas.stage;
        run_piece(areas, state, segment, packet, done, inputs, tile, into, now.nonzero + done % 3);
        begins = reinterpret_cast<const Piece *>(packet)->ends != 0;
        done += begins;
        free = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    const int lane = threadIdx.x;
    if (lane < areas.groups * GROUP && into.goes >> lane & 1) {
        const int order = state.order[segment];
        const i64 to = into.base + (moves ? __popc(into.takes & first_bits(lane)) : lane);
        if (moves)
            state.ids[1 - order][to] = state.ids[order][tile.slot + lane];
        if (tile.running >> lane & 1)
            atomicOr(state.masks + (segment + 1) * state.words + to / WORD, 1u << to % WORD);
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `bit_count`: of the features
// that may be packed. Then sizes: pieces of all layers, 16 bytes of the largest, groups, and rows of a group.
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
    Areas areas;
    areas.ring = shared;
    areas.rows = reinterpret_cast<float4 *>(shared + STAGES * stage);
    areas.places = reinterpret_cast<Place *>(areas.rows + 2 * groups * row_count);
    areas.bits = reinterpret_cast<unsigned short *>(areas.places + piece_count);
    areas.counts = reinterpret_cast<Counts *>(areas.bits + (bit_count + 7) / 8 * 8);
    areas.stage = static_cast<int>(stage), areas.groups = static_cast<int>(groups);
    areas.row_count = static_cast<int>(row_count);
    areas.layers = static_cast<int>(layer_count), areas.pieces = static_cast<int>(piece_count);
    const u64 began = clocks(), began_nanos = nanoseconds(); // which take long to read
    if (threadIdx.x == 0)
        now.awake = 0;
    __syncthreads();
    find_pieces(layers, areas, now);
    const i64 inputs = layers[0].n_in;
    const int *ids = state.ids[state.order[segment]];
    Taken tile = {0, 0, bit_count && state.bits};
    // The first tile of each block is given out over all multiprocessors, the others as blocks come free.
    for (unsigned ticket = blockIdx.x;; ticket = now.ticket) {
        wait_for_copies(); // for pieces that nobody needs any more
        __syncthreads();   // and all are done with the tile before, and have read its ticket
        tile.slot = static_cast<i64>(ticket) * samples;
        if (tile.slot >= total)
            break;
        tile.running = state.masks[segment * state.words + tile.slot / WORD] >> tile.slot % WORD & first_bits(samples);
        if (threadIdx.x == 0) {
            now.ticket = gridDim.x + atomicAdd(state.tickets + segment, 1);
            now.nonzero[0] = now.nonzero[1] = now.nonzero[2] = 0;
        }
        if (tile.running == 0) {
            __syncthreads();
            continue;
        }
        for (int k = 0; k < STAGES - 1; k++)
            request(areas, k, k);
        if (tile.bits)
            turn_tile(areas, state, ids, tile.slot, tile.running, inputs);
        run_tile(areas, state, segment, moves, inputs, tile, now);
    }
    const float nanos_a_clock = static_cast<float>(nanoseconds() - began_nanos) / (clocks() - began + 1);
    for (int k = threadIdx.x; k < areas.layers; k += THREADS) {
        const Counts counts = areas.counts[k];
        if (counts.ran) {
            atomicAdd(state.ran + first + k, static_cast<u64>(counts.ran));
            atomicAdd(state.live + first + k, static_cast<u64>(counts.live));
            atomicAdd(state.nanos + first + k, static_cast<u64>(counts.clocks * nanos_a_clock));
        }
    }
}
