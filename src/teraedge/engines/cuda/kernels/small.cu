// Many small layers in one launch, each warp on its own.
//
// A warp takes four samples through all layers of a segment, a neuron a lane and a row of four floats a
// neuron, in two pieces of shared memory by turns. It waits for no other warp, so a layer costs what its
// loads cost. The first layer gathers from global memory, from rows or from packed features, and the last
// one writes there: only what lies between two layers of the segment takes shared memory.
//
// Specialised by: SAMPLES (4), THREADS.
#include "gather.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"

static_assert(SAMPLES == 4, "a row is one load");

constexpr int TOUCHED = 3; // layers ahead that are brought near

// What a warp needs of a layer.
struct Small {
    const unsigned *indices;
    const float *weights; // none where all are `value`
    const Target *targets;
    int n_in, n_out, first_list, slices;
    float value, lower, upper;
    short droppable, curve;
};

extern __shared__ float4 shared[]; // Small [layers], clocks [layers], lists, counts [layers][2], rows [warp][2][rows]

// Where the parts of shared memory are.
struct Areas {
    Small *layers;
    u64 *clocks;
    int2 *lists;      // begin and length, in pairs
    unsigned *counts; // samples that ran, and that lived on, a layer
    float4 *rows;

    __device__ __forceinline__ Areas(int layer_count, int list_count) {
        layers = reinterpret_cast<Small *>(shared);
        clocks = reinterpret_cast<u64 *>(layers + layer_count);
        lists = reinterpret_cast<int2 *>(clocks + layer_count);
        counts = reinterpret_cast<unsigned *>(lists + list_count);
        const i64 bytes = (sizeof(Small) + 16) * static_cast<i64>(layer_count) + 8 * static_cast<i64>(list_count);
        rows = shared + (bytes + 15) / 16;
    }
};

// Have a layer's arrays brought near, as far as 32 lanes reach in one go.
__device__ __forceinline__ void touch_layer(const Areas &areas, const Small &layer, int lane) {
    const int2 list = areas.lists[layer.first_list + layer.slices - 1];
    const int pairs = list.x + list.y;
    if (lane < pairs) {
        touch(layer.indices + lane * 32);
        if (layer.weights)
            touch(layer.weights + lane * 64), touch(layer.weights + lane * 64 + 32);
    }
    if (lane < layer.slices * 2)
        touch(layer.targets + lane * 16);
}

// Bring sizes, addresses and lists of all layers into shared memory; by all threads. Each block has the
// arrays of some layers brought into L2.
__device__ __forceinline__ void load_layers(const Layer *layers, int layer_count, const Areas &areas) {
    for (int k = threadIdx.x; k < layer_count; k += THREADS) {
        const Layer &from = layers[k];
        Small &small = areas.layers[k];
        small.indices = static_cast<const unsigned *>(from.single.indices);
        small.weights = from.equal ? nullptr : from.single.weights;
        small.targets = from.single.targets;
        small.n_in = static_cast<int>(from.n_in), small.n_out = static_cast<int>(from.n_out);
        small.slices = static_cast<int>(from.single.count);
        small.value = from.value, small.lower = from.lower, small.upper = from.upper;
        small.droppable = from.droppable != 0, small.curve = from.curve;
        areas.clocks[k] = 0;
        areas.counts[2 * k] = areas.counts[2 * k + 1] = 0;
    }
    __syncthreads();
    if (threadIdx.x < 32) { // sums of slices up to each layer
        const int lane = threadIdx.x;
        int before = 0;
        for (int first = 0; first < layer_count; first += 32) {
            const int own = first + lane < layer_count ? areas.layers[first + lane].slices : 0;
            int sum = own;
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(ALL_LANES, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (first + lane < layer_count)
                areas.layers[first + lane].first_list = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    __syncthreads();
    for (int k = threadIdx.x; k < layer_count; k += THREADS) {
        const Small &small = areas.layers[k];
        for (int slice = 0; slice < small.slices; slice++) {
            const List list = layers[k].single.lists[slice];
            areas.lists[small.first_list + slice] = make_int2(static_cast<int>(list.begin), list.length);
        }
    }
    __syncthreads();
    for (int k = blockIdx.x + threadIdx.x / 32 * gridDim.x; k < layer_count; k += gridDim.x * (THREADS / 32))
        touch_layer(areas, areas.layers[k], threadIdx.x % 32);
}

// Rows in shared memory, with rows of zeros behind the last.
struct FromShared {
    enum { PAIRS = 2 }; // of edges that are loaded together
    const float4 *rows;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const { return rows[neuron]; }
};

// Rows in global memory; what is beyond the last is zero.
struct FromRows {
    enum { PAIRS = 2 };
    const float4 *rows;
    unsigned n;
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        return neuron < n ? __ldg(rows + static_cast<i64>(neuron) * (COLUMNS / 4)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
};

// Packed 0/1 features of four samples; what is beyond the last is zero.
struct FromBits {
    enum { PAIRS = 2 };
    const unsigned char *bits[4];
    unsigned n;
    __device__ __forceinline__ float bit(int sample, unsigned neuron) const {
        return __ldg(bits[sample] + neuron / 8) >> (7 - neuron % 8) & 1 ? 1.0f : 0.0f;
    }
    __device__ __forceinline__ float4 operator()(unsigned neuron) const {
        if (neuron >= n)
            return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        return make_float4(bit(0, neuron), bit(1, neuron), bit(2, neuron), bit(3, neuron));
    }
};

__device__ __forceinline__ void add(float4 x, float weight, float *totals) {
    totals[0] = fmaf(x.x, weight, totals[0]);
    totals[1] = fmaf(x.y, weight, totals[1]);
    totals[2] = fmaf(x.z, weight, totals[2]);
    totals[3] = fmaf(x.w, weight, totals[3]);
}

// Add the inputs of some pairs of edges; rows are all read before the first is added.
template <bool EQUAL, int COUNT, class From>
__device__ __forceinline__ void add_pairs(const From &from, float value, const Pair<1> *pairs, float *totals) {
    float4 x[2 * COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        x[2 * k] = from(pairs[k].indices & 0xffff), x[2 * k + 1] = from(pairs[k].indices >> 16);
#pragma unroll
    for (int k = 0; k < 2 * COUNT; k++)
        add(x[k], EQUAL ? value : pairs[k / 2].weights[k % 2][0], totals);
}

// Sum the inputs of a lane's neuron of a slice: PAIRS pairs at a time, the next of which are on their way, and
// what is left over one by one.
template <bool EQUAL, class From>
__device__ __forceinline__ void sum(const From &from, const Small &layer, int2 list, int lane, float *totals) {
    constexpr int PAIRS = From::PAIRS;
    const unsigned *indices = layer.indices + list.x * 32 + lane;
    const float *weights = EQUAL ? nullptr : layer.weights + list.x * 64 + lane * 2;
    const int whole = list.y / PAIRS * PAIRS, left = list.y - whole;
    Pair<1> now[PAIRS], next[PAIRS], last[PAIRS - 1];
#pragma unroll
    for (int k = 0; k < PAIRS - 1; k++)
        if (k < left)
            last[k].template load<EQUAL>(indices, weights, whole + k);
    if (whole)
#pragma unroll
        for (int k = 0; k < PAIRS; k++)
            now[k].template load<EQUAL>(indices, weights, k);
#pragma unroll 1
    for (int first = 0; first < whole; first += PAIRS) {
        if (first + PAIRS < whole)
#pragma unroll
            for (int k = 0; k < PAIRS; k++)
                next[k].template load<EQUAL>(indices, weights, first + PAIRS + k);
        add_pairs<EQUAL, PAIRS>(from, layer.value, now, totals);
#pragma unroll
        for (int k = 0; k < PAIRS; k++)
            now[k] = next[k];
    }
#pragma unroll
    for (int k = 0; k < PAIRS - 1; k++)
        if (k < left)
            add_pairs<EQUAL, 1>(from, layer.value, last + k, totals);
}

// Where the outputs of a layer go: into shared memory, or to slots of global memory.
struct Into {
    float4 *rows;  // or none
    float *global; // the rows after the segment
    i64 base;      // slot of the first sample that goes there
    unsigned goes;  // samples that do
    unsigned takes; // samples that have a slot

    __device__ __forceinline__ void write(int neuron, int neurons, const float *y) const {
        if (rows) {
            rows[neuron] = make_float4(y[0], y[1], y[2], y[3]);
            return;
        }
#pragma unroll
        for (int k = 0; k < SAMPLES; k++)
            if (goes >> k & 1)
                global[place(base + __popc(takes & first_bits(k)), neuron, neurons)] = y[k];
    }
};

// Run a layer; returns the samples with a nonzero output.
template <class From>
__device__ __forceinline__ unsigned run_layer(const Areas &areas, const Small &layer, const From &from, const Into &into,
                                              int lane) {
    unsigned some = 0;
#pragma unroll 1
    for (int slice = 0; slice < layer.slices; slice++) {
        const int2 list = areas.lists[layer.first_list + slice];
        const int2 both = __ldg(reinterpret_cast<const int2 *>(layer.targets) + slice * 32 + lane);
        const Target target = {both.x, __int_as_float(both.y)};
        float totals[SAMPLES] = {};
        if (layer.weights)
            sum<false>(from, layer, list, lane, totals);
        else
            sum<true>(from, layer, list, lane, totals);
        if (target.output < 0)
            continue;
#pragma unroll
        for (int k = 0; k < SAMPLES; k++) {
            totals[k] = activate(layer, totals[k], target.bias);
            some |= (totals[k] != 0.0f ? 1u : 0u) << k;
        }
        into.write(target.output, layer.n_out, totals);
    }
    if (into.rows && lane < ZERO_ROWS)
        into.rows[layer.n_out + lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return __reduce_or_sync(ALL_LANES, some);
}

// Run the first layer of a segment on the samples from `slot` on.
__device__ __forceinline__ unsigned run_first(const Areas &areas, const State &state, i64 segment, bool bits, i64 slot,
                                              unsigned running, const Into &into, int lane) {
    const Small &layer = areas.layers[0];
    const unsigned n = static_cast<unsigned>(layer.n_in);
    if (bits) {
        FromBits from = {{}, n};
#pragma unroll
        for (int k = 0; k < SAMPLES; k++) // those that are not there read what one that is does
            from.bits[k] = state.bits + (state.ids[0][slot + (running >> k & 1 ? k : __ffs(running) - 1)] - state.first) *
                                            state.bits_stride;
        return run_layer(areas, layer, from, into, lane);
    }
    const float *rows = state.rows[state.buffer[segment]] + place(slot, 0, layer.n_in);
    return run_layer(areas, layer, FromRows{reinterpret_cast<const float4 *>(rows), n}, into, lane);
}

// Take the live ones of four samples through all layers.
__device__ __forceinline__ void run_samples(const Areas &areas, const State &state, int layer_count, i64 segment,
                                            bool moves, bool bits, i64 slot, unsigned running, float4 *rows,
                                            int row_count) {
    const int lane = threadIdx.x % 32;
    u64 began = clocks();
    Into into = {rows, state.rows[1 - state.buffer[segment]], slot, 0, first_bits(SAMPLES)};
#pragma unroll 1
    for (int done = 0; done < layer_count; done++) {
        const Small &layer = areas.layers[done];
        const float4 *from = rows + (done % 2 ? 0 : row_count);
        into.rows = rows + (done % 2 ? row_count : 0);
        if (done + TOUCHED < layer_count)
            touch_layer(areas, areas.layers[done + TOUCHED], lane);
        if (done + 1 == layer_count) {
            into.rows = nullptr;
            into.goes = running;
            if (moves) { // those that die in this layer have a slot, too
                unsigned base = 0;
                if (lane == 0)
                    base = atomicAdd(state.slots + segment + 1, __popc(running));
                into.base = __shfl_sync(ALL_LANES, base, 0);
                into.takes = running;
            }
        }
        const unsigned some = done ? run_layer(areas, layer, FromShared{from}, into, lane)
                                   : run_first(areas, state, segment, bits, slot, running, into, lane);
        __syncwarp(); // outputs are there, and inputs have been read
        const unsigned ran = running;
        if (layer.droppable)
            running &= some;
        if (lane == 0) {
            const u64 end = clocks();
            atomicAdd(areas.counts + 2 * done, __popc(ran));
            atomicAdd(areas.counts + 2 * done + 1, __popc(running));
            atomicAdd(areas.clocks + done, end - began);
            began = end;
        }
        if (running == 0 && done + 1 < layer_count)
            return;
    }
    if (lane < SAMPLES && into.goes >> lane & 1) {
        const int order = state.order[segment];
        const i64 to = into.base + __popc(into.takes & first_bits(lane));
        if (moves)
            state.ids[1 - order][to] = state.ids[order][slot + lane];
        if (running >> lane & 1)
            atomicOr(state.masks + (segment + 1) * state.words + to / WORD, 1u << to % WORD);
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `takes_bits`: the inputs
// may be packed features. Then the slices of all layers, and rows that the widest border inside takes.
extern "C" __global__ void __launch_bounds__(THREADS)
    small(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 takes_bits, i64 list_count, i64 row_count) {
    const State &state = *shared_state;
    const int count = static_cast<int>(layer_count), lane = threadIdx.x % 32;
    const Areas areas(count, static_cast<int>(list_count));
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    const u64 began = clocks(), began_nanos = nanoseconds(); // which take long to read
    load_layers(layers, count, areas);
    float4 *rows = areas.rows + threadIdx.x / 32 * 2 * row_count;
    const unsigned total = state.slots[segment];
    // The first samples of each warp are given out over all multiprocessors, the others as warps come free.
    unsigned ticket = blockIdx.x + threadIdx.x / 32 * gridDim.x;
    for (;; ticket = __shfl_sync(ALL_LANES, ticket, 0)) {
        const i64 slot = static_cast<i64>(ticket) * SAMPLES;
        if (slot >= total)
            break;
        const unsigned running =
            state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(SAMPLES);
        if (running)
            run_samples(areas, state, count, segment, moves, takes_bits && state.bits, slot, running, rows,
                        static_cast<int>(row_count));
        if (lane == 0)
            ticket = gridDim.x * (THREADS / 32) + atomicAdd(state.tickets + segment, 1);
    }
    __syncthreads();
    const float nanos_a_clock = static_cast<float>(nanoseconds() - began_nanos) / (clocks() - began + 1);
    for (int k = threadIdx.x; k < count; k += THREADS)
        if (areas.counts[2 * k]) {
            atomicAdd(state.ran + first + k, static_cast<u64>(areas.counts[2 * k]));
            atomicAdd(state.live + first + k, static_cast<u64>(areas.counts[2 * k + 1]));
            atomicAdd(state.nanos + first + k, static_cast<u64>(areas.clocks[k] * nanos_a_clock));
        }
}
