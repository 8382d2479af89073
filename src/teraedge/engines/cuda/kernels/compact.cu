// Between two layers of the wide kernel: count the live samples, and move them together when that
// pays. Nothing of this goes through the host.
#include "common.cuh"

constexpr int THREADS = 1024;

// The sum of `value` over the threads before this one; `total` gets that over all.
__device__ __forceinline__ unsigned sum_before(unsigned value, unsigned *sums, unsigned *total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step)
            sum += other;
    }
    if (lane == 31)
        sums[warp] = sum;
    __syncthreads();
    unsigned before = 0, all = 0;
    for (int k = 0; k < THREADS / 32; k++) {
        before += k < warp ? sums[k] : 0;
        all += sums[k];
    }
    __syncthreads();
    *total = all;
    return before + sum - value;
}

// The bits of a half word, apart: bit k of the low half goes to bit 2 k.
__device__ __forceinline__ unsigned spread(unsigned half) {
    half = (half | half << 8) & 0x00ff00ff;
    half = (half | half << 4) & 0x0f0f0f0f;
    half = (half | half << 2) & 0x33333333;
    return (half | half << 1) & 0x55555555;
}

// The samples of a word with a nonzero output, as the wide kernel left them: of each tile, a word of
// those in even columns and one of those in odd ones.
__device__ __forceinline__ unsigned nonzero_word(const unsigned *nonzero, i64 word) {
    const int shift = word % 2 * 16;
    const unsigned even = nonzero[word & ~1ll] >> shift & 0xffff, odd = nonzero[word | 1] >> shift & 0xffff;
    return spread(even) | spread(odd) << 1;
}

// Tell where the sample of each new slot lies, and which it is.
__device__ __forceinline__ void find_sources(const State &state, i64 segment, i64 used, u64 live, const unsigned *after) {
    const int order = state.order[segment], lane = threadIdx.x % 32;
    const int *ids = state.ids[order];
    int *moved = state.ids[1 - order];
    for (i64 word = threadIdx.x / 32; word < used; word += THREADS / 32) {
        const unsigned mask = after[word];
        if (mask >> lane & 1) {
            const i64 slot = state.starts[word] + __popc(mask & first_bits(lane));
            state.sources[slot] = static_cast<int>(word * WORD + lane);
            moved[slot] = ids[word * WORD + lane];
        }
    }
    const i64 slot = static_cast<i64>(live) + threadIdx.x; // up to the end of the last tile
    if (slot < (static_cast<i64>(live) + COLUMNS - 1) / COLUMNS * COLUMNS)
        state.sources[slot] = -1;
}

// One block. Samples without a nonzero output are dead where the layer lets them die. The others are put
// together when at most `limit` of 256 columns up to the last live one are live: by the next layer when it
// reads them (`leaves`), or by `compact`.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    census(const Layer *layer, i64 number, const State *shared_state, i64 segment, i64 limit, i64 leaves) {
    __shared__ unsigned sums[THREADS / 32];
    __shared__ unsigned last; // the words up to the last with a live sample
    const State &state = *shared_state;
    if (threadIdx.x == 0)
        last = 0;
    __syncthreads();
    const unsigned slots = state.slots[segment];
    const i64 used = words_of(slots);
    const unsigned *masks = state.masks + segment * state.words;
    unsigned *after = state.masks + (segment + 1) * state.words;
    const unsigned *nonzero = state.nonzero + segment * state.words;
    u64 ran = 0, live = 0;
    unsigned far = 0;
    for (i64 begin = 0; begin < used; begin += THREADS) {
        const i64 word = begin + threadIdx.x;
        unsigned mask = word < used ? masks[word] : 0;
        unsigned total;
        sum_before(__popc(mask), sums, &total);
        ran += total;
        if (layer->droppable && word < used)
            mask &= nonzero_word(nonzero, word);
        const unsigned before = sum_before(__popc(mask), sums, &total);
        if (word < used) {
            after[word] = mask;
            state.starts[word] = static_cast<unsigned>(live) + before;
            far = mask ? static_cast<unsigned>(word) + 1 : far;
        }
        live += total;
    }
    if (far)
        atomicMax(&last, far);
    __syncthreads();
    const unsigned left = last * WORD < slots ? last * WORD : slots; // where the last are dead, without moving any
    const bool moves = live < left && live * 256 <= static_cast<u64>(left) * limit;
    if (moves) {
        find_sources(state, segment, used, live, after);
        __syncthreads();
        for (i64 word = threadIdx.x; word < used; word += THREADS) { // in use from now on: the first columns
            const i64 rest = static_cast<i64>(live) - word * WORD;
            after[word] = rest > 0 ? first_bits(rest < WORD ? static_cast<int>(rest) : WORD) : 0;
        }
    }
    if (threadIdx.x == 0) {
        const int from = state.buffer[segment], order = state.order[segment];
        state.compacts[segment] = !moves ? STAY : leaves ? LEFT : MOVED;
        state.slots[segment + 1] = moves ? static_cast<unsigned>(live) : left;
        state.buffer[segment + 1] = moves && !leaves ? from : 1 - from;
        state.order[segment + 1] = moves ? 1 - order : order;
        state.ran[number] += ran;
        state.live[number] += live;
        state.nanos[number] += nanoseconds() - state.began[segment];
    }
}

// Copy the live samples to their new slots, back into the buffer that the layer read. A warp takes some rows
// of a tile that they go to.
extern "C" __global__ void __launch_bounds__(256)
    compact(const Layer *layer, const State *shared_state, i64 segment) {
    constexpr i64 ROWS = 64;
    constexpr int AHEAD = 8; // rows that are on their way before the first is written
    const State &state = *shared_state;
    if (state.compacts[segment] != MOVED)
        return;
    const int lane = threadIdx.x % 32;
    const i64 warp = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    const int from = state.buffer[segment];
    const i64 n = layer->n_out, parts = (n + ROWS - 1) / ROWS;
    const i64 tiles = (static_cast<i64>(state.slots[segment + 1]) + COLUMNS - 1) / COLUMNS;
    for (i64 item = warp; item < tiles * parts; item += warps) {
        const i64 tile = item / parts, begin = item % parts * ROWS;
        const float *source[2];
        for (int k = 0; k < 2; k++) {
            const int slot = state.sources[tile * COLUMNS + lane + k * 32];
            source[k] = state.rows[1 - from] + place(slot < 0 ? 0 : slot, 0, n); // of no sample: any
        }
        float *target = state.rows[from] + place(tile * COLUMNS + lane, 0, n);
        const i64 end = begin + ROWS < n ? begin + ROWS : n;
        for (i64 row = begin; row < end; row += AHEAD) {
            float values[AHEAD][2];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (row + k < end)
                    for (int side = 0; side < 2; side++)
                        values[k][side] = __ldcs(source[side] + (row + k) * COLUMNS);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (row + k < end)
                    for (int side = 0; side < 2; side++)
                        target[(row + k) * COLUMNS + side * 32] = values[k][side];
        }
    }
}
