// Several layers at a time over a tile of samples that never leaves shared memory.
//
// A block holds SAMPLES samples of all neurons in shared memory, a row of SAMPLES floats a neuron,
// and takes them through layer after layer; only weights and indices stream in from L2. What a lane
// gathers: see gather.cuh. Between layers, values are rounded as storage would.
//
// Results overwrite the tile once every lane has read its last input. Those of the last HELD tasks of each
// warp wait in registers, those of the tasks before them in shared memory behind the tile (*aside*).
//
// Specialised by: SAMPLES (4, 8, 16, 32), TALL (4, or 0 for layers without tall panels), STORAGE, THREADS.
#include "gather.cuh"

constexpr int LAYERS_AHEAD = 1;
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int TOTALS = SAMPLES < 8 ? 16 : 32; // sums a lane keeps for a task
constexpr int LISTS = TOTALS / SAMPLES; // single neurons of a lane in a task
constexpr int OUTPUTS = TALL ? TALL : LISTS == 2 ? 4 : LISTS; // room for the neurons of a lane in a task
constexpr int FOURS = (TOTALS + OUTPUTS + 3) / 4;    // what is put aside of a task
// Other GPUs have too few registers for the results of two tasks, and so have panels and lists side by side.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
constexpr int HELD = TALL == 0 && LISTS == 1 && !CURVES ? 2 : 1;
#else
constexpr int HELD = 1;
#endif
constexpr int TALL_CHUNKS = CHUNKS < 2 ? 1 : 2;
constexpr int TALL_SPLITS = CHUNKS / TALL_CHUNKS; // tasks a slice of tall panels makes
static_assert(SAMPLES % 4 == 0 && TOTALS % SAMPLES == 0, "a row is whole chunks, a task whole rows");

extern __shared__ float4 tile[]; // [n + ZERO_ROWS][CHUNKS], then aside [task][FOURS][32]

__device__ __forceinline__ int tall_tasks(const Layer &layer) {
    return TALL ? static_cast<int>(layer.tall.count) * TALL_SPLITS : 0;
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

// Compute the values of one task, and which neurons they are of; returns its nonzero samples. `after` is
// the warp's next task, or past the last.
template <bool EQUAL>
__device__ __forceinline__ unsigned run_task(const Layer &layer, int task, int after, int lane, float *totals,
                                             int *outputs) {
    unsigned live = 0;
#pragma unroll
    for (int k = 0; k < TOTALS; k++)
        totals[k] = 0.0f;
#pragma unroll
    for (int k = 0; k < OUTPUTS; k++)
        outputs[k] = -1;
    const int talls = tall_tasks(layer);
    if (TALL && task < talls) {
        const int first = task % TALL_SPLITS * TALL_CHUNKS;
        const int slice = task / TALL_SPLITS;
        const Target *targets = layer.tall.targets + (slice * 32 + lane) * TALL;
        touch(targets);
        gather<1, TALL ? TALL : 1, TALL_CHUNKS, EQUAL>(tile, layer.tall, slice, lane, first, layer.value, totals);
        touch_task(layer, after, lane);
#pragma unroll
        for (int h = 0; h < TALL; h++) {
            outputs[h] = targets[h].output;
            const int swizzle = (lane & (CHUNKS - 1)) ^ first;
            const unsigned some = finish<TALL_CHUNKS>(layer, targets[h].bias, swizzle, layer.droppable,
                                                      totals + h * TALL_CHUNKS * 4);
            live |= outputs[h] >= 0 ? some : 0;
        }
        return live;
    }
    const int slice = task - talls;
    const Target *targets = layer.single.targets + slice * LISTS * 32 + lane;
#pragma unroll
    for (int list = 0; list < LISTS; list++)
        touch(targets + list * 32);
    gather<LISTS, 1, CHUNKS, EQUAL>(tile, layer.single, slice, lane, 0, layer.value, totals);
    touch_task(layer, after, lane);
#pragma unroll
    for (int list = 0; list < LISTS; list++) {
        const Target target = targets[list * 32];
        outputs[list] = target.output;
        const unsigned some =
            finish<CHUNKS>(layer, target.bias, lane & (CHUNKS - 1), layer.droppable, totals + list * SAMPLES);
        live |= outputs[list] >= 0 ? some : 0;
    }
    return live;
}

// Write the rows of one task.
__device__ __forceinline__ void write_task(int task, int talls, int lane, const float *totals, const int *outputs) {
    const int own = lane & (CHUNKS - 1);
    if (TALL && task < talls) {
        const int first = task % TALL_SPLITS * TALL_CHUNKS;
#pragma unroll
        for (int h = 0; h < TALL; h++)
            if (outputs[h] >= 0)
#pragma unroll
                for (int j = 0; j < TALL_CHUNKS; j++) {
                    const float *y = totals + (h * TALL_CHUNKS + j) * 4;
                    tile[outputs[h] * CHUNKS + (own ^ first ^ j)] = make_float4(y[0], y[1], y[2], y[3]);
                }
        return;
    }
#pragma unroll
    for (int list = 0; list < LISTS; list++)
        if (outputs[list] >= 0)
#pragma unroll
            for (int j = 0; j < CHUNKS; j++) {
                const float *y = totals + list * SAMPLES + j * 4;
                tile[outputs[list] * CHUNKS + (own ^ j)] = make_float4(y[0], y[1], y[2], y[3]);
            }
}

__device__ __forceinline__ void put_aside(float4 *place, const float *totals, const int *outputs) {
#pragma unroll
    for (int k = 0; k < TOTALS / 4; k++)
        place[k * 32] = make_float4(totals[4 * k], totals[4 * k + 1], totals[4 * k + 2], totals[4 * k + 3]);
    int4 *more = reinterpret_cast<int4 *>(place + TOTALS / 4 * 32);
    if (OUTPUTS < 4)
        more->x = outputs[0];
#pragma unroll
    for (int k = 0; k < OUTPUTS / 4; k++)
        more[k * 32] = make_int4(outputs[4 * k], outputs[4 * k + 1], outputs[4 * k + 2], outputs[4 * k + 3]);
}

__device__ __forceinline__ void take_back(const float4 *place, float *totals, int *outputs) {
#pragma unroll
    for (int k = 0; k < TOTALS / 4; k++) {
        const float4 four = place[k * 32];
        totals[4 * k] = four.x, totals[4 * k + 1] = four.y, totals[4 * k + 2] = four.z, totals[4 * k + 3] = four.w;
    }
    const int4 *more = reinterpret_cast<const int4 *>(place + TOTALS / 4 * 32);
    if (OUTPUTS < 4)
        outputs[0] = more->x;
#pragma unroll
    for (int k = 0; k < OUTPUTS / 4; k++) {
        const int4 four = more[k * 32];
        outputs[4 * k] = four.x, outputs[4 * k + 1] = four.y, outputs[4 * k + 2] = four.z, outputs[4 * k + 3] = four.w;
    }
}

// Take the tile through one layer; ors into `live` the samples with a nonzero output. `following` is
// the next layer, if there is one; it is there once every input has been read.
template <bool EQUAL>
__device__ __forceinline__ void run_layer(const Layer &layer, const Layer *following, unsigned *live) {
    constexpr int SIZE = FOURS * 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tasks = task_count(layer), talls = tall_tasks(layer);
    const int rows = static_cast<int>(layer.n_in > layer.n_out ? layer.n_in : layer.n_out);
    float4 *aside = tile + (rows + ZERO_ROWS) * CHUNKS + lane;
    float totals[HELD][TOTALS];
    int outputs[HELD][OUTPUTS];
    unsigned some = 0;
    int round = 0; // in the end, the first of those that are held, or the one after the only one
    for (; task_of(round, warp) < tasks; round++) {
        const int after = task_of(round + HELD, warp); // will be held instead
        some |= run_task<EQUAL>(layer, task_of(round, warp), task_of(round + 1, warp), lane, totals[0], outputs[0]);
        if (!TALL && after >= tasks)
            break;
        if (after < tasks)
            put_aside(aside + (after - HELD * WARPS) * SIZE, totals[0], outputs[0]);
    }
    if (HELD > 1 && task_of(round + 1, warp) < tasks)
        some |= run_task<EQUAL>(layer, task_of(round + 1, warp), tasks, lane, totals[HELD - 1], outputs[HELD - 1]);
    if (layer.droppable) {
        some = or_over_warp(some);
        if (lane == 0 && some)
            atomicOr(live, some);
    }
    wait_for_copies();
    __syncthreads(); // every input has been read
    if (following)
        touch_task(*following, warp, lane);
    if (!TALL) {
#pragma unroll
        for (int h = HELD - 1; h >= 0; h--)
            if (task_of(round + h, warp) < tasks)
                write_task(task_of(round + h, warp), talls, lane, totals[h], outputs[h]);
        while (round > 0) {
            round--;
            take_back(aside + (task_of(round + HELD, warp) - HELD * WARPS) * SIZE, totals[0], outputs[0]);
            write_task(task_of(round, warp), talls, lane, totals[0], outputs[0]);
        }
        return;
    }
    while (round > 0) { // the same for one task that is held, in a way that takes fewer registers
        const int task = task_of(--round, warp);
        write_task(task, talls, lane, totals[0], outputs[0]);
        if (round > 0)
            take_back(aside + (task - WARPS) * SIZE, totals[0], outputs[0]);
    }
}

__device__ __forceinline__ void clear_zero_rows(i64 neurons) {
    for (int k = threadIdx.x; k < ZERO_ROWS * CHUNKS; k += THREADS)
        tile[neurons * CHUNKS + k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Copy the rows of SAMPLES slots from `slot` on into the tile.
__device__ __forceinline__ void load_tile(const Stored *rows, i64 slot, i64 neurons) {
    const Four *source = reinterpret_cast<const Four *>(rows + place(slot, 0, neurons));
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS) {
        const Four *from = source + k / CHUNKS * (COLUMNS / 4) + k % CHUNKS;
        if constexpr (STORAGE)
            tile[k] = loaded(*from);
        else
            copy_async(tile + k, from);
    }
    clear_zero_rows(neurons);
}

// Write the rows of samples with a slot of 0 or more to their slots.
__device__ __forceinline__ void store_tile(Stored *rows, const int *slots, i64 neurons) {
    const float *values = reinterpret_cast<const float *>(tile);
    const int slot = slots[threadIdx.x % SAMPLES];
    if (slot < 0)
        return;
    Stored *target = rows + place(slot, 0, neurons);
    for (int k = threadIdx.x; k < neurons * SAMPLES; k += THREADS) // SAMPLES divides THREADS
        target[k / SAMPLES * COLUMNS] = stored(values[k]);
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    resident(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves) {
    __shared__ Tile now;
    const State &state = *shared_state;
    if (runs_elsewhere(state, segment))
        return;
    const int layers_in_all = static_cast<int>(layer_count);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    while (claim_tile(state, segment, layers, layers_in_all, SAMPLES, now)) {
        load_tile(state.rows[state.buffer[segment]], now.slot, layers[0].n_in);
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
