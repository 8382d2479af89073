// Between two layers of kernels that leave rows in device memory: count the live samples, and decide whether to
// put them together. Nothing of this goes through the host.
#pragma once

#include "common.cuh"

// The sum of `value` over the threads before this one; `total` gets that over all.
template <int BLOCK>
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
    for (int k = 0; k < BLOCK / 32; k++) {
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
    const unsigned even = __ldcg(nonzero + (word & ~1ll)) >> shift & 0xffff, odd = __ldcg(nonzero + (word | 1)) >> shift & 0xffff;
    return spread(even) | spread(odd) << 1;
}

// Tell where the sample of each new slot lies, and which it is.
template <int BLOCK>
__device__ __forceinline__ void find_sources(const State &state, i64 segment, i64 used, u64 live, const unsigned *after) {
    const int order = state.order[segment], lane = threadIdx.x % 32;
    const int *ids = state.ids[order];
    int *moved = state.ids[1 - order];
    for (i64 word = threadIdx.x / 32; word < used; word += BLOCK / 32) {
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

// By one block. Samples without a nonzero output are dead where the layer lets them die. The others are put
// together: by the next layer when it reads them (`leaves`), which costs little, as soon as 2 % are dead; or by
// `compact`, which costs as much as most of a layer, once layers have run as many dead samples.
template <int BLOCK>
__device__ __forceinline__ void take_census(const Layer &layer, i64 number, const State &state, i64 segment, bool leaves) {
    __shared__ unsigned sums[BLOCK / 32];
    __shared__ unsigned last; // the words up to the last with a live sample
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
    for (i64 begin = 0; begin < used; begin += BLOCK) {
        const i64 word = begin + threadIdx.x;
        unsigned mask = word < used ? masks[word] : 0;
        unsigned total;
        sum_before<BLOCK>(__popc(mask), sums, &total);
        ran += total;
        if (layer.droppable && word < used)
            mask &= nonzero_word(nonzero, word);
        const unsigned before = sum_before<BLOCK>(__popc(mask), sums, &total);
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
    const u64 idle = state.idle[segment] + left - live; // dead samples that layers run between two moves
    const bool moves = live < left && (leaves ? live * 256 <= static_cast<u64>(left) * 250 : idle * 4 >= live * 3);
    if (moves) {
        find_sources<BLOCK>(state, segment, used, live, after);
        __syncthreads();
        for (i64 word = threadIdx.x; word < used; word += BLOCK) { // in use from now on: the first columns
            const i64 rest = static_cast<i64>(live) - word * WORD;
            after[word] = rest > 0 ? first_bits(rest < WORD ? static_cast<int>(rest) : WORD) : 0;
        }
    }
    if (threadIdx.x == 0) {
        const int from = state.buffer[segment], order = state.order[segment];
        state.compacts[segment] = !moves ? STAY : leaves ? LEFT : MOVED;
        state.slots[segment + 1] = moves ? static_cast<unsigned>(live) : left;
        state.idle[segment + 1] = moves ? 0 : idle;
        state.buffer[segment + 1] = moves && !leaves ? from : 1 - from;
        state.order[segment + 1] = moves ? 1 - order : order;
        state.ran[number] += ran;
        state.live[number] += live;
        state.nanos[number] += nanoseconds() - state.began[segment];
    }
}
