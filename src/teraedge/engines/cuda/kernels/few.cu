// Many layers over a handful of samples, at the latency of shared memory.
//
// A block takes one or four of the distinct samples that merge.cu found through all layers of a segment. A warp
// reads what it has to do as one *stream* of packets, from beginning to end, whatever the layers are: no address has
// to be waited for, so packets are there before they are needed, and a layer takes what it takes to gather from shared
// memory, and a barrier. Each lane copies what it will read itself into a ring: so warps need not meet for it. (In
// registers, a load that has come cannot be told from the next one that has not: each took all of L2's latency.)
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
    int curve, droppable;
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

// Finish a neuron of each lane; ors the samples with a nonzero output into `some`.
template <int GROUP>
__device__ __forceinline__ void write_row(Row<GROUP> *out, const Packet &now, const Bounds &bounds, float (&sums)[GROUP],
                                          unsigned &some) {
    const bool somebody = (now.head.x >> 16 & NOBODY) == 0;
    Row<GROUP> y;
#pragma unroll
    for (int c = 0; c < GROUP; c++) {
        y.x[c] = activate(bounds, sums[c], __uint_as_float(now.head.y));
        some |= somebody && y.x[c] != 0.0f ? 1u << c : 0u;
        sums[c] = 0.0f;
    }
    out[now.head.x & 0xffff] = y;
}

// Meet all warps at the end of a layer, and note which samples have a nonzero output; returns whether any.
template <int GROUP> __device__ __forceinline__ bool end_layer(unsigned *seen, unsigned some) {
    if constexpr (GROUP == 1) {
        const bool any = __syncthreads_or(some != 0);
        if (threadIdx.x == 0)
            *seen = any;
        return any;
    }
    some = __reduce_or_sync(ALL_LANES, some);
    if (threadIdx.x % 32 == 0 && some)
        atomicOr(seen, some);
    return __syncthreads_or(some != 0);
}

// A tile on its way through the layers.
template <int GROUP> struct Walk {
    const Areas &areas;
    Ring ring;
    Row<GROUP> *in, *out;
    Bounds bounds;
    float sums[GROUP];
    unsigned some; // samples with a nonzero output of this warp
    int layer;

    __device__ __forceinline__ Walk(const Areas &areas, const uint4 *stream, int stride)
        : areas(areas), ring(stream, stride), in(areas.rows<GROUP>(0)), out(areas.rows<GROUP>(1)), bounds(areas.bounds(0)),
          sums{}, some(0), layer(0) {}

    // Do what a packet says, while the next one arrives; returns whether no layer is left to run.
    __device__ __forceinline__ bool step(const Packet &now, Packet &next) {
        const Gathered<GROUP> gathered(in, now);
        next = ring.take();
        gathered.add_to(sums, now.weights);
        if (now.head.x >> 16 & ENDS_SLICE)
            write_row<GROUP>(out, now, bounds, sums, some);
        if ((now.head.x >> 16 & ENDS_LAYER) == 0)
            return false;
        const bool droppable = bounds.droppable;
        bounds = areas.bounds(layer + 1);
        const bool any = end_layer<GROUP>(areas.seen() + layer, some);
        layer++;
        if (threadIdx.x == 0)
            areas.stamps()[layer] = static_cast<unsigned>(clocks());
        Row<GROUP> *free = in;
        in = out, out = free, some = 0;
        return layer == areas.layers || (droppable && !any);
    }
};

// Take what is in the first rows through all layers; returns the layers that ran, after which no sample lives.
template <int GROUP>
__device__ __forceinline__ int run_layers(const Areas &areas, const uint4 *stream, int stride) {
    Walk<GROUP> walk(areas, stream, stride);
    Packet packets[2]; // by turns
    packets[0] = walk.ring.take();
#pragma unroll 1
    while (!walk.step(packets[0], packets[1]) && !walk.step(packets[1], packets[0])) {
    }
    wait_for_copies(); // that nobody needs
    return walk.layer;
}

// What a launch runs.
struct Segment {
    const Layer *layers;
    i64 first, number; // of its layers in the network, and its own
    const uint4 *stream;
    int awake;   // layers up to the last after which a zero row may come to life
    float share; // of the time that a block takes for a layer, in what is counted
};

// When a tile began, and the nanoseconds of a clock. Clocks take less time to read.
struct Began {
    u64 clocks, nanos;
    float ratio;
};

// Count what a tile did, of which so many `columns` ran; by all threads. `stands`: the samples of each column.
template <int GROUP>
__device__ __forceinline__ void count_tile(const Areas &areas, const State &state, const Segment &segment, unsigned columns,
                                           int ran_layers, const int *stands, float nanos_a_clock) {
    for (int k = threadIdx.x; k < ran_layers; k += blockDim.x) {
        const unsigned ran = k > segment.awake ? columns & areas.seen()[k - 1] : columns;
        const unsigned live = k >= segment.awake ? columns & areas.seen()[k] : columns;
        u64 samples = 0;
        for (int c = 0; c < GROUP; c++)
            samples += live >> c & 1 ? stands[c] : 0;
        atomicAdd(state.ran + segment.first + k, static_cast<u64>(__popc(ran)));
        atomicAdd(state.live + segment.first + k, samples);
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
    float *in = reinterpret_cast<float *>(areas.rows<GROUP>(0) + ZERO_ROWS);
    __shared__ int stands[GROUP];
    __shared__ Began began;
    for (int first = static_cast<int>(blockIdx.x) * GROUP; first < distinct; first += static_cast<int>(gridDim.x) * GROUP) {
        for (int k = threadIdx.x; k < n_in * GROUP; k += blockDim.x) {
            const int column = first + k % GROUP;
            in[k] = column < distinct ? state.rows[buffer][place(state.equal.leads[column], k / GROUP, n_in)] : 0.0f;
        }
        for (int k = threadIdx.x; k < 2 * ZERO_ROWS * GROUP; k += blockDim.x)
            reinterpret_cast<float *>(areas.rows<GROUP>(k % 2))[k / 2] = 0.0f;
        for (int k = threadIdx.x; k < areas.layers; k += blockDim.x)
            areas.seen()[k] = 0;
        if (threadIdx.x < GROUP)
            stands[threadIdx.x] = first + threadIdx.x < distinct ? state.equal.stands[first + threadIdx.x] : 0;
        if (threadIdx.x == 0) {
            began.clocks = clocks(), began.nanos = nanoseconds();
            areas.stamps()[0] = static_cast<unsigned>(began.clocks);
        }
        __syncthreads();
        const int ran = run_layers<GROUP>(areas, stream, static_cast<int>(blockDim.x) / 32 * PACKET);
        if (threadIdx.x == 0)
            began.ratio = segment.share * (nanoseconds() - began.nanos) / (clocks() - began.clocks + 1);
        __syncthreads(); // the last stamp, too
        const unsigned columns = first_bits(distinct - first < GROUP ? distinct - first : GROUP);
        count_tile<GROUP>(areas, state, segment, columns, ran, stands, began.ratio);
        const unsigned left = segment.awake < areas.layers ? ran == areas.layers ? areas.seen()[ran - 1] : 0 : ALL_LANES;
        const float *out = reinterpret_cast<const float *>(areas.rows<GROUP>(areas.layers % 2) + ZERO_ROWS);
        if (threadIdx.x < GROUP && first + threadIdx.x < distinct)
            state.equal.flags[first + threadIdx.x] = left >> threadIdx.x & 1;
        for (int k = threadIdx.x; k < n_out * GROUP; k += blockDim.x)
            if (first + k % GROUP < distinct)
                state.rows[1 - buffer][place(first + k % GROUP, k / GROUP, n_out)] = out[k];
        __syncthreads();
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`, if equal samples
// have been found to run once in it. `row_count`: rows of a side. `sharing`: blocks that the time of layers will be
// divided by.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    few(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 number, const uint4 *stream,
        i64 row_count, i64 sharing) {
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
        areas.bounds(k) = {layer.lower, layer.upper, layer.curve, layer.droppable};
        if (!layer.droppable)
            atomicMax(&awake, k + 1);
    }
    __syncthreads();
    const int tiles = (distinct + group - 1) / group, active = tiles < static_cast<int>(gridDim.x) ? tiles : static_cast<int>(gridDim.x);
    const Segment segment = {layers, first, number, stream, awake, static_cast<float>(sharing) / active};
    if (group == 1)
        run_tiles<1>(areas, state, segment, distinct);
    else
        run_tiles<4>(areas, state, segment, distinct);
}
