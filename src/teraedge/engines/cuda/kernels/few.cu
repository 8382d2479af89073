// Many layers over a handful of samples, at the latency of shared memory.
//
// A block takes one or four of the distinct samples that merge.cu found through all layers of a segment. A warp
// reads what it has to do as one *stream* of packets, from beginning to end, whatever the layers are: no address has
// to be waited for, so packets are there before they are needed, and a layer takes what it takes to gather from shared
// memory, and a barrier. Each lane copies what it will read itself into a ring: so warps need not meet for it. (In
// registers, a load that has come cannot be told from the next one that has not: each took all of L2's latency.)
//
// Samples all of whose neurons are at the upper bound are *saturated*: where it is known what becomes of them
// (plan/saturation.py), a tile of such has come to its end.
//
// Specialised by: THREADS (of a block, at most), AHEAD (packets of a warp in its ring, a power of two).
#include "common.cuh"

constexpr int PACKET = 64;     // uint4 of a packet
constexpr int ZERO_ROWS = 8;   // rows of zeros before the first neuron: padding
constexpr unsigned ENDS_SLICE = 1, ENDS_LAYER = 2, NOBODY = 4; // flags of a packet; the last of a lane

// Up to four edges of a lane's neuron. head: its row and, from bit 16 on, flags; its bias; the rows of the inputs.
struct Packet {
    uint4 head;
    float4 weights;
};

struct alignas(16) Bounds {
    float lower, upper;
    short curve, droppable;
    short threads; // that have neurons, if it is known what becomes of saturated samples; else 0
};

// What becomes of saturated samples, as the host says; behind it `threads` of Bounds, of each layer.
struct Saturation {
    const float *row; // at the end of the segment
    float before;     // the bound that inputs are at; NaN where it is not known what becomes of those
    int unused;

    __device__ __forceinline__ int threads(int layer) const { return reinterpret_cast<const int *>(this + 1)[layer]; }
};

template <int GROUP> struct alignas(GROUP * 4) Row {
    float x[GROUP];
};

extern __shared__ float4 space[]; // rings [warp][AHEAD], Bounds [layers + 1], rows [2][row_count] of four floats, seen [layers], stamps [layers + 1]

struct Areas {
    int layers, row_count, tables; // tables: where they begin, behind the rings

    __device__ __forceinline__ Bounds &bounds(int layer) const { return reinterpret_cast<Bounds *>(space + tables)[layer]; }
    template <int GROUP> __device__ __forceinline__ Row<GROUP> *rows(int side) const {
        return reinterpret_cast<Row<GROUP> *>(space + tables + layers + 1) + side * row_count;
    }
    // The samples with a nonzero output of each layer, and when each began.
    __device__ __forceinline__ unsigned *seen() const {
        return reinterpret_cast<unsigned *>(space + tables + layers + 1 + 2 * row_count);
    }
    __device__ __forceinline__ unsigned *stamps() const { return seen() + layers; }
};

template <int GROUP>
__device__ __forceinline__ void add(const Row<GROUP> &x, float weight, float (&sums)[GROUP]) {
#pragma unroll
    for (int c = 0; c < GROUP; c++)
        sums[c] = fmaf(x.x[c], weight, sums[c]);
}

// The packets of a lane on their way.
struct Ring {
    const uint4 *next; // to copy
    float4 *own;       // of the lane
    int stride, at;    // between two packets of a warp; the number of the next to take

    __device__ __forceinline__ Ring(const uint4 *stream, int stride)
        : next(stream), own(space + (threadIdx.x / 32 * AHEAD * PACKET + threadIdx.x % 32)), stride(stride), at(0) {
#pragma unroll
        for (int k = 0; k < AHEAD - 1; k++)
            copy(k);
    }
    __device__ __forceinline__ void copy(int number) {
        float4 *to = own + number % AHEAD * PACKET;
        copy_async(to, next), copy_async(to + 32, next + 32);
        end_group();
        next += stride;
    }
    __device__ __forceinline__ Packet take() {
        wait_for_groups<AHEAD - 2>();
        const float4 *from = own + at % AHEAD * PACKET;
        const Packet found = {reinterpret_cast<const uint4 &>(*from), from[32]};
        copy(at + AHEAD - 1);
        at++;
        return found;
    }
};

// What the edges of a packet read; those that are none have weights and inputs of zero.
template <int GROUP> struct Gathered {
    Row<GROUP> x[4];

    __device__ __forceinline__ Gathered(const Row<GROUP> *in, const Packet &now)
        : x{in[now.head.z & 0xffff], in[now.head.z >> 16], in[now.head.w & 0xffff], in[now.head.w >> 16]} {}
    __device__ __forceinline__ void add_to(float (&sums)[GROUP], const float4 &weights) const {
        add(x[0], weights.x, sums), add(x[1], weights.y, sums);
        add(x[2], weights.z, sums), add(x[3], weights.w, sums);
    }
};

// What a thread has seen of the outputs of a layer, a bit a sample.
struct Seen {
    unsigned nonzero, below; // samples with a nonzero output, and with one that is not at the upper bound
    bool somebody;           // whether it has a neuron at all

    __device__ __forceinline__ void clear() { nonzero = below = 0, somebody = false; }
};

// Finish a neuron of each lane.
template <int GROUP>
__device__ __forceinline__ void write_row(Row<GROUP> *out, const Packet &now, const Bounds &bounds, float (&sums)[GROUP],
                                          Seen &seen) {
    const bool somebody = (now.head.x >> 16 & NOBODY) == 0;
    Row<GROUP> y;
#pragma unroll
    for (int c = 0; c < GROUP; c++) {
        y.x[c] = activate(bounds, sums[c], __uint_as_float(now.head.y));
        seen.nonzero |= somebody && y.x[c] != 0.0f ? 1u << c : 0u;
        seen.below |= somebody && y.x[c] != bounds.upper ? 1u << c : 0u;
        sums[c] = 0.0f;
    }
    seen.somebody |= somebody;
    out[now.head.x & 0xffff] = y;
}

// Whether samples of a tile still have to run.
enum Way { RUNNING, DEAD, SATURATED };

// Meet all warps at the end of a layer, and note which samples have a nonzero output; returns whether none has, or
// all that are of the tile are saturated.
template <int GROUP>
__device__ __forceinline__ Way end_layer(unsigned *into, const Seen &seen, unsigned tile, int threads) {
    if constexpr (GROUP == 1) {
        // An upper bound is not zero: with a thread at it, somebody lives, and mostly one barrier tells all.
        const int full = threads ? __syncthreads_count(seen.somebody && seen.below == 0) : 0;
        const bool any = full || __syncthreads_or(seen.nonzero != 0);
        if (threadIdx.x == 0)
            *into = any;
        return full && full == threads ? SATURATED : any ? RUNNING : DEAD;
    }
    const unsigned some = __reduce_or_sync(ALL_LANES, seen.nonzero);
    if (threadIdx.x % 32 == 0 && some)
        atomicOr(into, some);
    const bool full = threads && __syncthreads_count(seen.somebody && (seen.below & tile) == 0) == threads;
    return full ? SATURATED : __syncthreads_or(some != 0) ? RUNNING : DEAD;
}

// A tile on its way through the layers.
template <int GROUP> struct Walk {
    const Areas &areas;
    Ring ring;
    Row<GROUP> *in, *out;
    Bounds bounds;
    float sums[GROUP];
    Seen seen; // of the layer that runs
    unsigned tile; // the samples that there are, a bit each
    int layer;
    Way way;

    __device__ __forceinline__ Walk(const Areas &areas, const uint4 *stream, int stride, unsigned tile)
        : areas(areas), ring(stream, stride), in(areas.rows<GROUP>(0)), out(areas.rows<GROUP>(1)), bounds(areas.bounds(0)),
          sums{}, seen{}, tile(tile), layer(0), way(RUNNING) {}

    // Do what a packet says, while the next one arrives; returns whether no layer is left to run.
    __device__ __forceinline__ bool step(const Packet &now, Packet &next) {
        const Gathered<GROUP> gathered(in, now);
        next = ring.take();
        gathered.add_to(sums, now.weights);
        if (now.head.x >> 16 & ENDS_SLICE)
            write_row<GROUP>(out, now, bounds, sums, seen);
        if ((now.head.x >> 16 & ENDS_LAYER) == 0)
            return false;
        const bool droppable = bounds.droppable;
        const int threads = bounds.threads;
        bounds = areas.bounds(layer + 1);
        way = end_layer<GROUP>(areas.seen() + layer, seen, tile, threads);
        layer++;
        if (threadIdx.x == 0)
            areas.stamps()[layer] = static_cast<unsigned>(clocks());
        Row<GROUP> *free = in;
        in = out, out = free, seen.clear();
        return layer == areas.layers || way == SATURATED || (droppable && way == DEAD);
    }
};

// Where a tile has come to.
struct End {
    int layers; // that ran
    bool saturated;
};

// Take what is in the first rows through all layers, as long as a sample lives and there is one of `tile` that is not
// saturated.
template <int GROUP>
__device__ __forceinline__ End run_layers(const Areas &areas, const uint4 *stream, int stride, unsigned tile) {
    Walk<GROUP> walk(areas, stream, stride, tile);
    Packet packets[2]; // by turns
    packets[0] = walk.ring.take();
#pragma unroll 1
    while (!walk.step(packets[0], packets[1]) && !walk.step(packets[1], packets[0])) {
    }
    wait_for_copies(); // that nobody needs
    return {walk.layer, walk.way == SATURATED};
}

// What a launch runs.
struct Segment {
    const Layer *layers;
    i64 first, number; // of its layers in the network, and its own
    const uint4 *stream;
    const Saturation *saturation;
    int awake;   // layers up to the last after which a zero row may come to life
    float share; // of the time that a block takes for a layer, in what is counted
};

// When a tile began, and the nanoseconds of a clock. Clocks take less time to read.
struct Began {
    u64 clocks, nanos;
    float ratio;
};

// Count what a tile did, of which so many `columns` ran; by all threads. `stands`: the samples of each column. They
// live on in layers that need not run, if they are saturated.
template <int GROUP>
__device__ __forceinline__ void count_tile(const Areas &areas, const State &state, const Segment &segment, unsigned columns,
                                           const End &end, const int *stands, float nanos_a_clock) {
    for (int k = threadIdx.x; k < (end.saturated ? areas.layers : end.layers); k += blockDim.x) {
        const bool runs = k < end.layers;
        const unsigned ran = k > segment.awake && runs ? columns & areas.seen()[k - 1] : columns;
        const unsigned live = k >= segment.awake && runs ? columns & areas.seen()[k] : columns;
        u64 samples = 0;
        for (int c = 0; c < GROUP; c++)
            samples += live >> c & 1 ? stands[c] : 0;
        atomicAdd(state.live + segment.first + k, samples);
        if (!runs)
            continue;
        atomicAdd(state.ran + segment.first + k, static_cast<u64>(__popc(ran)));
        const unsigned took = areas.stamps()[k + 1] - areas.stamps()[k];
        atomicAdd(state.nanos + segment.first + k, static_cast<u64>(took * nanos_a_clock));
    }
}

// Take GROUP distinct samples at a time through the segment; those of the result lie in the order in which they were
// found.
template <int GROUP>
__device__ __forceinline__ void run_tiles(const Areas &areas, const State &state, const Segment &segment, int distinct) {
    const Layer &last = segment.layers[areas.layers - 1];
    const int n_in = static_cast<int>(segment.layers[0].n_in), n_out = static_cast<int>(last.n_out);
    const int buffer = state.buffer[segment.number];
    const uint4 *stream = segment.stream + threadIdx.x / 32 * PACKET + threadIdx.x % 32;
    const Saturation &saturation = *segment.saturation;
    float *in = reinterpret_cast<float *>(areas.rows<GROUP>(0) + ZERO_ROWS);
    __shared__ int stands[GROUP];
    __shared__ Began began;
    for (int first = static_cast<int>(blockIdx.x) * GROUP; first < distinct; first += static_cast<int>(gridDim.x) * GROUP) {
        const unsigned tile = first_bits(distinct - first < GROUP ? distinct - first : GROUP);
        bool below = false; // some input, the upper bound
        for (int k = threadIdx.x; k < n_in * GROUP; k += blockDim.x) {
            const bool there = tile >> k % GROUP & 1;
            in[k] = there ? state.rows[buffer][place(state.equal.leads[first + k % GROUP], k / GROUP, n_in)] : 0.0f;
            below |= there && in[k] != saturation.before;
        }
        for (int k = threadIdx.x; k < 2 * ZERO_ROWS * GROUP; k += blockDim.x)
            reinterpret_cast<float *>(areas.rows<GROUP>(k % 2))[k / 2] = 0.0f;
        for (int k = threadIdx.x; k < areas.layers; k += blockDim.x)
            areas.seen()[k] = 0;
        if (threadIdx.x < GROUP)
            stands[threadIdx.x] = tile >> threadIdx.x & 1 ? state.equal.stands[first + threadIdx.x] : 0;
        if (threadIdx.x == 0) {
            began.clocks = clocks(), began.nanos = nanoseconds();
            areas.stamps()[0] = static_cast<unsigned>(began.clocks);
        }
        End end = {0, true};
        if (__syncthreads_or(below))
            end = run_layers<GROUP>(areas, stream, static_cast<int>(blockDim.x) / 32 * PACKET, tile);
        if (threadIdx.x == 0)
            began.ratio = segment.share * (nanoseconds() - began.nanos) / (clocks() - began.clocks + 1);
        __syncthreads(); // the last stamp, too
        count_tile<GROUP>(areas, state, segment, tile, end, stands, began.ratio);
        unsigned left = ALL_LANES; // who lives on
        if (!end.saturated && segment.awake < areas.layers)
            left = end.layers == areas.layers ? areas.seen()[end.layers - 1] : 0;
        if (threadIdx.x < GROUP && tile >> threadIdx.x & 1)
            state.equal.flags[first + threadIdx.x] = left >> threadIdx.x & 1;
        const float *out = reinterpret_cast<const float *>(areas.rows<GROUP>(areas.layers % 2) + ZERO_ROWS);
        for (int k = threadIdx.x; k < n_out * GROUP; k += blockDim.x)
            if (tile >> k % GROUP & 1)
                state.rows[1 - buffer][place(first + k % GROUP, k / GROUP, n_out)] =
                    end.saturated ? saturation.row[k / GROUP] : out[k];
        __syncthreads();
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`, if equal samples
// have been found to run once in it. `row_count`: rows of a side. `sharing`: blocks that the time of layers will be
// divided by.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    few(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 number, const uint4 *stream,
        i64 row_count, i64 sharing, const Saturation *saturation) {
    const State &state = *shared_state;
    const int distinct = static_cast<int>(state.distinct[number]);
    const int group = distinct <= static_cast<int>(gridDim.x) ? 1 : 4;
    if (static_cast<int>(blockIdx.x) * group >= distinct)
        return;
    __shared__ int awake;
    const Areas areas = {static_cast<int>(layer_count), static_cast<int>(row_count), static_cast<int>(blockDim.x) / 32 * AHEAD * PACKET};
    if (threadIdx.x == 0)
        awake = 0;
    __syncthreads();
    for (int k = threadIdx.x; k < areas.layers; k += blockDim.x) {
        const Layer &layer = layers[k];
        areas.bounds(k) = {layer.lower, layer.upper, layer.curve, static_cast<short>(layer.droppable),
                           static_cast<short>(saturation->threads(k))};
        if (!layer.droppable)
            atomicMax(&awake, k + 1);
    }
    __syncthreads();
    const int tiles = (distinct + group - 1) / group, active = tiles < static_cast<int>(gridDim.x) ? tiles : static_cast<int>(gridDim.x);
    const Segment segment = {layers, first, number, stream, saturation, awake, static_cast<float>(sharing) / active};
    if (group == 1)
        run_tiles<1>(areas, state, segment, distinct);
    else
        run_tiles<4>(areas, state, segment, distinct);
}
