// Several layers at a time over a tile of samples that never leaves shared memory.
//
// A block holds SAMPLES samples of all neurons in shared memory, a row of SAMPLES floats a neuron,
// and takes them through layer after layer; only weights and indices stream in from L2. A lane works
// on one neuron (or one panel of TALL neurons that read the same inputs): for each edge it reads the
// input's row as 16-byte chunks into registers. Lanes read *different* rows, and shared memory
// serves eight 16-byte reads at once if they fall into different bank groups. Lane k therefore starts
// with chunk k % CHUNKS, and of the lanes that are at the same chunk the plan has ordered the
// edges so that their rows differ modulo 8 / CHUNKS: no two reads ever meet in a bank.
//
// Results overwrite the tile once every lane has read its last input. Those of the last task of each
// warp wait in registers, those of the tasks before it in shared memory behind the tile (*aside*).
//
// Specialised by: SAMPLES (4, 8, 16, 32), THREADS.
#include "common.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int CHUNKS = SAMPLES / 4;
constexpr int TALL = 4;
constexpr int TOTALS = 32;              // sums a lane keeps for a task
constexpr int LISTS = TOTALS / SAMPLES; // slices of single neurons in a task
constexpr int TALL_CHUNKS = CHUNKS < 2 ? 1 : 2;
constexpr int TALL_SPLITS = CHUNKS / TALL_CHUNKS; // tasks a slice of tall panels makes
constexpr int ZERO_ROWS = 8;                      // rows of zeros behind the last neuron: padding
static_assert(SAMPLES % 4 == 0 && TOTALS % SAMPLES == 0, "a row is whole chunks, a task whole rows");

extern __shared__ float4 tile[]; // [n + ZERO_ROWS][CHUNKS], then aside [task][TOTALS / 4][32]

// What a lane needs for a pair of edges: two indices in one word, and a weight a neuron for each.
template <int HEIGHT> struct Pair;
template <> struct Pair<1> {
    unsigned indices;
    float w[2][1];
    __device__ __forceinline__ void load_weights(const float *weights, i64 pair, int lane) {
        const float2 both = __ldg(reinterpret_cast<const float2 *>(weights) + pair * 32 + lane);
        w[0][0] = both.x, w[1][0] = both.y;
    }
};
template <> struct Pair<TALL> {
    unsigned indices;
    float w[2][TALL];
    __device__ __forceinline__ void load_weights(const float *weights, i64 pair, int lane) {
#pragma unroll
        for (int edge = 0; edge < 2; edge++) {
            const float4 all = __ldg(reinterpret_cast<const float4 *>(weights) + (pair * 2 + edge) * 32 + lane);
            w[edge][0] = all.x, w[edge][1] = all.y, w[edge][2] = all.z, w[edge][3] = all.w;
        }
    }
};

template <int HEIGHT, bool EQUAL>
__device__ __forceinline__ void load_pair(const Panels &panels, i64 pair, int lane, Pair<HEIGHT> &into) {
    into.indices = __ldg(static_cast<const unsigned *>(panels.indices) + pair * 32 + lane);
    if (!EQUAL)
        into.load_weights(panels.weights, pair, lane);
}

// Multiply one input's chunks into totals[HEIGHT][CHUNK_COUNT * 4]. An index counts chunks, so it is
// the address of a row.
template <int HEIGHT, int CHUNK_COUNT, bool EQUAL>
__device__ __forceinline__ void add_edge(unsigned row, float value, const float *weights, float *totals) {
#pragma unroll
    for (int j = 0; j < CHUNK_COUNT; j++) {
        const float4 x = tile[row ^ j];
#pragma unroll
        for (int h = 0; h < HEIGHT; h++) {
            const float w = EQUAL ? value : weights[h];
            float *sum = totals + (h * CHUNK_COUNT + j) * 4;
            sum[0] = fmaf(x.x, w, sum[0]);
            sum[1] = fmaf(x.y, w, sum[1]);
            sum[2] = fmaf(x.z, w, sum[2]);
            sum[3] = fmaf(x.w, w, sum[3]);
        }
    }
}

// Sum the inputs of the lane's panel of a slice: CHUNK_COUNT chunks from `first` on, each xor-ed with
// the lane's own.
template <int HEIGHT, int CHUNK_COUNT, bool EQUAL>
__device__ __forceinline__ void gather(const Panels &panels, i64 slice, int lane, int first, float value,
                                       float *totals) {
    // Pairs of edges whose indices and weights are under way while those before are summed: the less
    // each reads from shared memory, the more must be in flight to hide the way to L2.
    constexpr int AHEAD = HEIGHT * CHUNK_COUNT >= 8 ? 1 : HEIGHT * CHUNK_COUNT >= 4 ? 2 : 3;
    const i64 begin = panels.starts[slice];
    const int pairs = panels.lengths[slice];
    const unsigned swizzle = (lane & (CHUNKS - 1)) ^ first;
    Pair<HEIGHT> now[AHEAD], next[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        if (k < pairs)
            load_pair<HEIGHT, EQUAL>(panels, begin + k, lane, now[k]);
    for (int pair = 0; pair < pairs; pair += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (pair + AHEAD + k < pairs)
                load_pair<HEIGHT, EQUAL>(panels, begin + pair + AHEAD + k, lane, next[k]);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (pair + k < pairs) {
                const unsigned two = now[k].indices;
                add_edge<HEIGHT, CHUNK_COUNT, EQUAL>((two & 0xffff) ^ swizzle, value, now[k].w[0], totals);
                add_edge<HEIGHT, CHUNK_COUNT, EQUAL>((two >> 16) ^ swizzle, value, now[k].w[1], totals);
            }
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            now[k] = next[k];
    }
}

__device__ __forceinline__ i64 tall_tasks(const Layer &layer) { return layer.tall.count * TALL_SPLITS; }

__device__ __forceinline__ i64 task_count(const Layer &layer) {
    return tall_tasks(layer) + (layer.single.count + LISTS - 1) / LISTS;
}

template <bool EQUAL>
__device__ __forceinline__ void sum_task(const Layer &layer, i64 task, int lane, float *totals) {
#pragma unroll
    for (int k = 0; k < TOTALS; k++)
        totals[k] = 0.0f;
    const i64 talls = tall_tasks(layer);
    if (task < talls) {
        const int first = static_cast<int>(task % TALL_SPLITS) * TALL_CHUNKS;
        gather<TALL, TALL_CHUNKS, EQUAL>(layer.tall, task / TALL_SPLITS, lane, first, layer.value, totals);
        return;
    }
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const i64 slice = (task - talls) * LISTS + list;
        if (slice < layer.single.count)
            gather<1, CHUNKS, EQUAL>(layer.single, slice, lane, 0, layer.value, totals + list * SAMPLES);
    }
}

// Add the bias, apply the activation, write the rows of one panel; returns its nonzero samples.
template <int HEIGHT, int CHUNK_COUNT>
__device__ __forceinline__ unsigned finish(const Layer &layer, const Panels &panels, i64 slice, int lane,
                                           int first, const float *totals) {
    const int swizzle = (lane & (CHUNKS - 1)) ^ first;
    unsigned live = 0;
#pragma unroll
    for (int h = 0; h < HEIGHT; h++) {
        const int output = panels.outputs[(slice * 32 + lane) * HEIGHT + h];
        if (output >= 0) {
            const float bias = layer.bias[output];
#pragma unroll
            for (int j = 0; j < CHUNK_COUNT; j++) {
                const float *sum = totals + (h * CHUNK_COUNT + j) * 4;
                float4 y;
                y.x = activate(layer, sum[0], bias);
                y.y = activate(layer, sum[1], bias);
                y.z = activate(layer, sum[2], bias);
                y.w = activate(layer, sum[3], bias);
                const int chunk = swizzle ^ j;
                tile[output * CHUNKS + chunk] = y;
                const unsigned some = (y.x != 0.0f) | (y.y != 0.0f) << 1 | (y.z != 0.0f) << 2 | (y.w != 0.0f) << 3;
                live |= some << (chunk * 4);
            }
        }
    }
    return live;
}

__device__ __forceinline__ unsigned finish_task(const Layer &layer, i64 task, int lane, const float *totals) {
    const i64 talls = tall_tasks(layer);
    if (task < talls) {
        const int first = static_cast<int>(task % TALL_SPLITS) * TALL_CHUNKS;
        return finish<TALL, TALL_CHUNKS>(layer, layer.tall, task / TALL_SPLITS, lane, first, totals);
    }
    unsigned live = 0;
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const i64 slice = (task - talls) * LISTS + list;
        if (slice < layer.single.count)
            live |= finish<1, CHUNKS>(layer, layer.single, slice, lane, 0, totals + list * SAMPLES);
    }
    return live;
}

__device__ __forceinline__ void put_aside(float4 *place, const float *totals) {
#pragma unroll
    for (int k = 0; k < TOTALS / 4; k++)
        place[k * 32] = make_float4(totals[4 * k], totals[4 * k + 1], totals[4 * k + 2], totals[4 * k + 3]);
}

__device__ __forceinline__ void take_back(const float4 *place, float *totals) {
#pragma unroll
    for (int k = 0; k < TOTALS / 4; k++) {
        const float4 four = place[k * 32];
        totals[4 * k] = four.x, totals[4 * k + 1] = four.y, totals[4 * k + 2] = four.z, totals[4 * k + 3] = four.w;
    }
}

// Take the tile through one layer; ors into `live` the samples with a nonzero output.
template <bool EQUAL> __device__ __forceinline__ void run_layer(const Layer &layer, unsigned *live) {
    const int lane = threadIdx.x % 32;
    const i64 warp = threadIdx.x / 32, tasks = task_count(layer);
    const i64 rows = layer.n_in > layer.n_out ? layer.n_in : layer.n_out;
    float4 *aside = tile + (rows + ZERO_ROWS) * CHUNKS + lane;
    constexpr int SIZE = TOTALS / 4 * 32;
    float totals[TOTALS];
    for (i64 task = warp; task < tasks; task += WARPS) {
        sum_task<EQUAL>(layer, task, lane, totals);
        if (task + WARPS < tasks)
            put_aside(aside + task * SIZE, totals);
    }
    __syncthreads(); // every input has been read
    if (warp >= tasks)
        return;
    unsigned some = 0;
    for (i64 task = warp + (tasks - 1 - warp) / WARPS * WARPS;;) {
        some |= finish_task(layer, task, lane, totals);
        task -= WARPS;
        if (task < 0)
            break;
        take_back(aside + task * SIZE, totals);
    }
    some = or_over_warp(some);
    if (lane == 0 && some)
        atomicOr(live, some);
}

__device__ __forceinline__ void clear_zero_rows(i64 neurons) {
    for (int k = threadIdx.x; k < ZERO_ROWS * CHUNKS; k += THREADS)
        tile[neurons * CHUNKS + k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Copy the rows of SAMPLES slots from `slot` on into the tile.
__device__ __forceinline__ void load_tile(const float *rows, i64 slot, i64 neurons) {
    const float4 *source = reinterpret_cast<const float4 *>(rows + slot / LINE * neurons * LINE + slot % LINE);
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS)
        tile[k] = __ldcs(source + k / CHUNKS * (LINE / 4) + k % CHUNKS);
    clear_zero_rows(neurons);
}

// Write the rows of samples with a slot of 0 or more to their slots.
__device__ __forceinline__ void store_tile(float *rows, const int *slots, i64 neurons) {
    const float *values = reinterpret_cast<const float *>(tile);
    const int slot = slots[threadIdx.x % SAMPLES];
    if (slot < 0)
        return;
    float *target = rows + slot / LINE * neurons * LINE + slot % LINE;
    for (int k = threadIdx.x; k < neurons * SAMPLES; k += THREADS) // SAMPLES divides THREADS
        target[k / SAMPLES * LINE] = values[k];
}

// Decide where each live sample of the tile goes, and move what belongs to it besides its row.
__device__ __forceinline__ void claim_slots(const State &state, i64 segment, i64 slot, unsigned running,
                                            bool moves, int *slots) {
    const int order = state.order[segment];
    unsigned *masks = state.masks + (segment + 1) * state.tiles;
    if (threadIdx.x >= 32)
        return;
    const int lane = threadIdx.x;
    unsigned base = static_cast<unsigned>(slot);
    if (moves && lane == 0)
        base = atomicAdd(state.slots + segment + 1, __popc(running));
    base = __shfl_sync(ALL_LANES, base, 0);
    if (lane < SAMPLES) {
        const unsigned rank = moves ? __popc(running & first_bits(lane)) : lane;
        const bool stays = (running >> lane & 1) != 0;
        slots[lane] = stays ? static_cast<int>(base + rank) : -1;
        if (stays) {
            if (moves)
                state.ids[1 - order][base + rank] = state.ids[order][slot + lane];
            atomicOr(masks + (base + rank) / LINE, 1u << (base + rank) % LINE);
        }
    }
}

// Run layers[0] to layers[count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    resident(const Layer *layers, i64 first, i64 count, const State *shared_state, i64 segment, i64 moves) {
    __shared__ unsigned ticket, live[2];
    __shared__ int slots[SAMPLES];
    const State &state = *shared_state;
    const unsigned total = state.slots[segment];
    const int from = state.buffer[segment];
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        state.buffer[segment + 1] = 1 - from;
        state.order[segment + 1] = moves ? 1 - state.order[segment] : state.order[segment];
        if (!moves)
            state.slots[segment + 1] = total;
    }
    for (;;) {
        __syncthreads(); // of the tile before
        if (threadIdx.x == 0) {
            ticket = atomicAdd(state.tickets + segment, 1);
            live[0] = live[1] = 0;
        }
        __syncthreads();
        const i64 slot = static_cast<i64>(ticket) * SAMPLES;
        if (slot >= total)
            return;
        const unsigned mask = state.masks[segment * state.tiles + slot / LINE];
        unsigned running = mask >> slot % LINE & first_bits(SAMPLES);
        if (running == 0)
            continue;
        load_tile(state.rows[from], slot, layers[0].n_in);
        __syncthreads();
        i64 done = 0;
        u64 begin = nanoseconds();
        for (; done < count && running; done++) {
            const Layer &layer = layers[done];
            const unsigned before = running;
            unsigned *now = live + done % 2;
            if (layer.equal)
                run_layer<true>(layer, now);
            else
                run_layer<false>(layer, now);
            if (threadIdx.x == 0)
                live[1 - done % 2] = 0; // read by all before this layer's first barrier
            clear_zero_rows(layer.n_out);
            __syncthreads();
            if (layer.droppable)
                running &= *now;
            if (threadIdx.x == 0) {
                const u64 end = nanoseconds();
                atomicAdd(state.ran + first + done, static_cast<u64>(__popc(before)));
                atomicAdd(state.live + first + done, static_cast<u64>(__popc(running)));
                atomicAdd(state.nanos + first + done, end - begin);
                begin = end;
            }
        }
        if (running == 0)
            continue;
        claim_slots(state, segment, slot, running, moves, slots);
        __syncthreads();
        store_tile(state.rows[1 - from], slots, layers[count - 1].n_out);
    }
}
