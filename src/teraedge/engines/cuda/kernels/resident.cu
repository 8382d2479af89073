// Several layers at a time over a tile of samples that never leaves shared memory.
//
// A block holds SAMPLES samples of all neurons in shared memory, a row of SAMPLES floats a neuron,
// and takes them through layer after layer; only weights and indices stream in from L2. What a lane
// gathers: see gather.cuh.
//
// Results overwrite the tile once every lane has read its last input. Those of the last HELD tasks of each
// warp wait in registers, those of the tasks before them in shared memory behind the tile (*aside*).
// Tiles of 12 samples are for layers without tall panels: as many samples of some 4000 neurons as fit, so that
// indices and weights are read as seldom as may be.
//
// Specialised by: SAMPLES (4, 8, 12, 16, 32), THREADS.
#include "gather.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int TALL = 4;
constexpr bool HAS_TALL = TALLS;
constexpr int TOTALS = SAMPLES < 8 ? 16 : SAMPLES == 12 ? 12 : 32; // sums a lane keeps for a task
constexpr int LISTS = TOTALS / SAMPLES; // single neurons of a lane in a task
constexpr int TALL_CHUNKS = CHUNKS < 2 ? 1 : 2;
constexpr int TALL_SPLITS = CHUNKS / TALL_CHUNKS; // tasks a slice of tall panels makes
static_assert(SAMPLES % 4 == 0 && TOTALS % SAMPLES == 0, "a row is whole chunks, a task whole rows");

extern __shared__ float4 tile[]; // [n + ZERO_ROWS][CHUNKS], then aside [task][TOTALS / 4][32]

__device__ __forceinline__ int tall_tasks(const Layer &layer) {
    return HAS_TALL ? static_cast<int>(layer.tall.count) * TALL_SPLITS : 0;
}

__device__ __forceinline__ int task_count(const Layer &layer) {
    return tall_tasks(layer) + static_cast<int>(layer.single.count);
}

// The task of a warp in a round. Slices are sorted by length, so every other round goes backwards.
__device__ __forceinline__ int task_of(int round, int warp) {
    return round * WARPS + (round % 2 ? WARPS - 1 - warp : warp);
}

// Have what a task reads first brought near.
__device__ __forceinline__ void touch_task(const Layer &layer, int task, int lane) {
    const int talls = tall_tasks(layer);
    const bool tall = task < talls;
    const Panels &panels = tall ? layer.tall : layer.single;
    const int slice = tall ? task / TALL_SPLITS : task - talls;
    if (slice >= panels.count)
        return;
    const i64 pair = panels.lists[slice].begin * (tall ? 1 : LISTS);
    if (lane < 4) // lines of 128 bytes: indices of 4 pairs, weights of as many or of one tall one
        touch(static_cast<const unsigned *>(panels.indices) + pair * 32 + lane * 32);
    if (!layer.equal && lane < 8)
        touch(panels.weights + pair * 2 * 32 * (tall ? TALL : 1) + lane * 32);
}

// The neurons of a lane in a task of tall panels, and in one of single neurons, 32 apart.
__device__ __forceinline__ const Target *tall_targets(const Layer &layer, int task, int lane) {
    return layer.tall.targets + (task / TALL_SPLITS * 32 + lane) * TALL;
}
__device__ __forceinline__ const Target *single_targets(const Layer &layer, int task, int lane) {
    return layer.single.targets + (task - tall_tasks(layer)) * (LISTS * 32) + lane;
}

// Compute the values of one task; returns its nonzero samples. `after` is the warp's next task, or past
// the last.
template <bool EQUAL>
__device__ __forceinline__ unsigned run_task(const Layer &layer, int task, int after, int lane, float *totals) {
    unsigned live = 0;
#pragma unroll
    for (int k = 0; k < TOTALS; k++)
        totals[k] = 0.0f;
    if (HAS_TALL && task < tall_tasks(layer)) {
        const int first = task % TALL_SPLITS * TALL_CHUNKS;
        touch(tall_targets(layer, task, lane));
        gather<1, TALL, TALL_CHUNKS, EQUAL>(tile, layer.tall, task / TALL_SPLITS, lane, first, layer.value, totals);
        touch_task(layer, after, lane);
        const Target *targets = tall_targets(layer, task, lane);
#pragma unroll
        for (int h = 0; h < TALL; h++) {
            const unsigned some = finish<TALL_CHUNKS>(layer, targets[h].bias, own_chunk(lane) ^ first,
                                                      layer.droppable, totals + h * TALL_CHUNKS * 4);
            live |= targets[h].output >= 0 ? some : 0;
        }
        return live;
    }
#pragma unroll
    for (int list = 0; list < LISTS; list++)
        touch(single_targets(layer, task, lane) + list * 32);
    gather<LISTS, 1, CHUNKS, EQUAL>(tile, layer.single, task - tall_tasks(layer), lane, 0, layer.value, totals);
    touch_task(layer, after, lane);
    const Target *targets = single_targets(layer, task, lane);
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const Target target = targets[list * 32];
        const unsigned some =
            finish<CHUNKS>(layer, target.bias, own_chunk(lane), layer.droppable, totals + list * SAMPLES);
        live |= target.output >= 0 ? some : 0;
    }
    return live;
}

// Write the rows of one task. Which neurons they are of is read once more: there are no registers to keep that.
__device__ __forceinline__ void write_task(const Layer &layer, int task, int lane, const float *totals) {
    const int own = own_chunk(lane);
    if (HAS_TALL && task < tall_tasks(layer)) {
        const int first = task % TALL_SPLITS * TALL_CHUNKS;
        const Target *targets = tall_targets(layer, task, lane);
#pragma unroll
        for (int h = 0; h < TALL; h++) {
            const int output = targets[h].output;
            if (output >= 0)
#pragma unroll
                for (int j = 0; j < TALL_CHUNKS; j++) {
                    const float *y = totals + (h * TALL_CHUNKS + j) * 4;
                    tile[output * CHUNKS + (own ^ first ^ j)] = make_float4(y[0], y[1], y[2], y[3]);
                }
        }
        return;
    }
    const Target *targets = single_targets(layer, task, lane);
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const int output = targets[list * 32].output;
        if (output >= 0)
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) {
                const float *y = totals + list * SAMPLES + j * 4;
                tile[output * CHUNKS + (own ^ j)] = make_float4(y[0], y[1], y[2], y[3]);
            }
    }
}

// Where the results of a round wait that are not held.
__device__ __forceinline__ float4 *aside(const Layer &layer, int round, int warp, int lane) {
    const int rows = static_cast<int>(layer.n_in > layer.n_out ? layer.n_in : layer.n_out);
    const int place = task_of(round + HELD, warp) - HELD * WARPS;
    return tile + (rows + ZERO_ROWS) * CHUNKS + place * (TOTALS / 4 * 32) + lane;
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

// Take the tile through one layer; ors into `live` the samples with a nonzero output. `following` is
// the next layer, if there is one; it is there once every input has been read.
template <bool EQUAL>
__device__ __forceinline__ void run_layer(const Layer &layer, const Layer *following, unsigned *live) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tasks = task_count(layer);
    const int whole = tasks / WARPS, rounds = whole + (task_of(whole, warp) < tasks);
    float totals[HELD][TOTALS];
    unsigned some = 0;
    int round = 0; // the first of those that are held
    for (; round < rounds; round++) {
        some |= run_task<EQUAL>(layer, task_of(round, warp), task_of(round + 1, warp), lane, totals[0]);
        if (rounds - round <= HELD)
            break;
        put_aside(aside(layer, round, warp, lane), totals[0]);
    }
#pragma unroll
    for (int h = 1; h < HELD; h++)
        if (round + h < rounds)
            some |= run_task<EQUAL>(layer, task_of(round + h, warp), task_of(round + h + 1, warp), lane, totals[h]);
    if (layer.droppable) {
        some = or_over_warp(some);
        if (lane == 0 && some)
            atomicOr(live, some);
    }
    wait_for_copies();
    __syncthreads(); // every input has been read
    if (following)
        touch_task(*following, warp, lane);
    // Addresses are computed anew, not kept from before.
    const int same_lane = static_cast<int>(kept(lane)), same_warp = static_cast<int>(kept(warp));
#pragma unroll
    for (int h = 0; h < HELD; h++)
        if (round + h < rounds)
            write_task(layer, task_of(round + h, same_warp), same_lane, totals[h]);
    while (round > 0) {
        round--;
        take_back(aside(layer, round, same_warp, same_lane), totals[0]);
        write_task(layer, task_of(round, same_warp), same_lane, totals[0]);
    }
}

__device__ __forceinline__ void clear_zero_rows(i64 neurons) {
    for (int k = threadIdx.x; k < ZERO_ROWS * CHUNKS; k += THREADS)
        tile[neurons * CHUNKS + k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Copy the rows of SAMPLES slots from `slot` on into the tile; there is room for `slots`.
__device__ __forceinline__ void load_tile(const float *rows, i64 slot, i64 slots, i64 neurons) {
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS)
        if (slot + k % CHUNKS * 4 < slots) // a tile of 12 may go beyond those that there are
            copy_async(tile + k, rows + place(slot + k % CHUNKS * 4, k / CHUNKS, neurons));
    clear_zero_rows(neurons);
}

// Write the rows of samples with a slot of 0 or more to their slots.
__device__ __forceinline__ void store_tile(float *rows, const int *slots, i64 neurons) {
    constexpr int BUSY = THREADS / SAMPLES * SAMPLES; // threads; each keeps to one sample
    const float *values = reinterpret_cast<const float *>(tile);
    const int thread = static_cast<int>(kept(threadIdx.x % 32) + threadIdx.x / 32 * 32);
    const int slot = slots[thread % SAMPLES];
    if (slot < 0 || thread >= BUSY)
        return;
    float *target = rows + place(slot, 0, neurons);
    for (int k = thread; k < neurons * SAMPLES; k += BUSY)
        target[k / SAMPLES * COLUMNS] = values[k];
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    resident(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves) {
    __shared__ Tile now;
    const State &state = *shared_state;
    const int layers_in_all = static_cast<int>(layer_count);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    while (claim_tile(state, segment, layers, layers_in_all, SAMPLES, now)) {
        load_tile(state.rows[state.buffer[segment]], now.slot, state.words * WORD, layers[0].n_in);
        begin_tile(now);
#pragma unroll 1
        for (int done = 0; done < layers_in_all && now.running; done++) {
            const Layer &layer = now.layers[done % (LAYERS_AHEAD + 1)];
            const Layer *following = done + 1 < layers_in_all ? now.layers + (done + 1) % (LAYERS_AHEAD + 1) : nullptr;
            if (done + LAYERS_AHEAD < layers_in_all)
                load_layer(now.layers + (done + LAYERS_AHEAD) % (LAYERS_AHEAD + 1), layers + done + LAYERS_AHEAD, threadIdx.x);
            if (layer.equal)
                run_layer<true>(layer, following, now.nonzero + done % 2);
            else
                run_layer<false>(layer, following, now.nonzero + done % 2);
            clear_zero_rows(layer.n_out);
            if (threadIdx.x == 0) { // all have told their nonzero samples
                const unsigned ran = now.running;
                if (layer.droppable)
                    now.running &= now.nonzero[done % 2];
                now.nonzero[done % 2] = 0;
                count(state, first + done, ran, now.running, now);
            }
            __syncthreads();
        }
        if (now.running == 0)
            continue;
        claim_slots(state, segment, now, SAMPLES, moves);
        __syncthreads();
        store_tile(state.rows[1 - state.buffer[segment]], now.slots, layers[layer_count - 1].n_out);
    }
}
