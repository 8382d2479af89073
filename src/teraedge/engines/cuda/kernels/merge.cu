// Equal samples, anywhere, found before a segment and put back after it.
//
// `match` hashes the rows of all slots, and its last block lets each look up the first with the same hash. `settle`
// compares them bit for bit, so that a hash that is the same by chance costs time only, and its last block gives each
// distinct row a *column*. few.cu runs the columns. `spread` copies what comes out to the samples that they stand for.
// Where there are too many samples to look at, or too many columns to gain, all run as ever.
//
// Specialised by: HASH_MASK (the bits of a hash that are used, so that tests see equal ones of distinct rows).
#include "common.cuh"

#ifndef HASH_MASK
#define HASH_MASK ~0ull
#endif
constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int TABLE = 2 * MERGED;  // places of a hash table
constexpr int EACH = 4;            // slots of a thread at a time, so that what is read of them is on its way together
constexpr i64 ROWS = 64;           // neurons that a warp takes at a time

extern __shared__ u64 table[]; // the upper half of a hash, and below it the slot; all ones where there is none

// A number in which each bit depends on all of a value and of its place (Steele et al., 2014: SplitMix64).
__device__ __forceinline__ u64 mixed(unsigned value, i64 neuron) {
    u64 x = (static_cast<u64>(neuron) << 32 | value) + 0x9e3779b97f4a7c15ull * static_cast<u64>(neuron + 1);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

__device__ __forceinline__ bool is_live(const State &state, i64 segment, i64 slot) {
    return state.masks[segment * state.words + slot / WORD] >> slot % WORD & 1;
}

// Call `visit` with a word of slots and the neurons from one up to another, so that warps share all; by all blocks.
template <class Visit> __device__ __forceinline__ void share_out(i64 slots, i64 n, const Visit &visit) {
    const i64 parts = (n + ROWS - 1) / ROWS, words = (slots + WORD - 1) / WORD;
    for (i64 item = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / 32; item < words * parts; item += static_cast<i64>(gridDim.x) * WARPS) {
        const i64 from = item % parts * ROWS;
        visit(item / parts * WORD + threadIdx.x % 32, from, from + ROWS < n ? from + ROWS : n);
    }
}

// Tell the last block of a phase that all have done their part.
__device__ __forceinline__ bool is_last(const State &state, i64 segment, int phase) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        last = atomicAdd(state.arrived + 2 * segment + phase, 1) == gridDim.x - 1;
    __syncthreads();
    return last;
}

__device__ __forceinline__ bool may_merge(const State &state, i64 segment) {
    return state.slots[segment] > 0 && state.slots[segment] <= MERGED;
}

// Return the first slot that was entered with the same hash, or this one, which is then.
__device__ __forceinline__ int find_leader(u64 hash, int slot) {
    const u64 own = (hash & ~0xffffffffull) | static_cast<unsigned>(slot);
    for (unsigned at = hash % TABLE;; at = (at + 1) % TABLE) {
        u64 there = table[at]; // most are equal to one that is there, and none is ever another
        if (there == ~0ull)
            there = atomicCAS(table + at, ~0ull, own);
        if (there == ~0ull)
            return slot;
        if ((there ^ own) >> 32 == 0)
            return static_cast<int>(there & 0xffffffff);
    }
}

// Find for each live slot the first with the same hash.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    match(const State *shared_state, i64 segment, i64 n) {
    const State &state = *shared_state;
    const Equal &equal = state.equal;
    if (!may_merge(state, segment))
        return;
    const i64 slots = state.slots[segment];
    const unsigned *rows = reinterpret_cast<const unsigned *>(state.rows[state.buffer[segment]]);
    share_out(slots, n, [&](i64 slot, i64 from, i64 to) {
        u64 hash = 0;
#pragma unroll 8
        for (i64 neuron = from; neuron < to; neuron++)
            hash += mixed(rows[place(slot, neuron, n)], neuron);
        if (slot < slots)
            atomicAdd(equal.hashes + slot, hash);
    });
    if (!is_last(state, segment, 0))
        return;
    for (int k = threadIdx.x; k < TABLE; k += THREADS)
        table[k] = ~0ull;
    __syncthreads();
    for (int begin = threadIdx.x; begin < slots; begin += EACH * THREADS) {
        unsigned live = 0; // a bit each
        u64 hashes[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int slot = begin + k * THREADS;
            live |= slot < slots && is_live(state, segment, slot) ? 1u << k : 0;
            hashes[k] = slot < slots ? __ldcg(equal.hashes + slot) & HASH_MASK : 0;
        }
#pragma unroll
        for (int k = 0; k < EACH; k++)
            if (live >> k & 1) {
                const int slot = begin + k * THREADS;
                equal.leaders[slot] = find_leader(hashes[k], slot);
                equal.flags[slot] = 0;
            }
    }
}

// Give distinct rows their columns, if there are `most` at most. They are read as they are in `match`.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    settle(const State *shared_state, i64 segment, i64 n, i64 most) {
    __shared__ int count;
    const State &state = *shared_state;
    const Equal &equal = state.equal;
    if (!may_merge(state, segment))
        return;
    const i64 slots = state.slots[segment];
    const unsigned *rows = reinterpret_cast<const unsigned *>(state.rows[state.buffer[segment]]);
    share_out(slots, n, [&](i64 slot, i64 from, i64 to) {
        if (slot >= slots || !is_live(state, segment, slot) || equal.leaders[slot] == slot)
            return;
        const i64 leader = equal.leaders[slot];
        unsigned differ = 0;
#pragma unroll 8
        for (i64 neuron = from; neuron < to; neuron++)
            differ |= rows[place(slot, neuron, n)] ^ rows[place(leader, neuron, n)];
        if (differ)
            equal.flags[slot] = 1;
    });
    if (!is_last(state, segment, 1))
        return;
    if (threadIdx.x == 0)
        count = 0;
    __syncthreads();
    for (int begin = threadIdx.x; begin < slots; begin += EACH * THREADS) {
        bool leads[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int slot = begin + k * THREADS;
            leads[k] = slot < slots && is_live(state, segment, slot) && (equal.leaders[slot] == slot || __ldcg(equal.flags + slot));
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int slot = begin + k * THREADS;
            if (slot < slots)
                equal.hashes[slot] = 0;
            if (leads[k]) {
                const int column = atomicAdd(&count, 1);
                equal.columns[slot] = column, equal.leads[column] = slot, equal.stands[column] = 0;
            }
        }
    }
    __syncthreads();
    for (int first = 0; first < slots; first += EACH * THREADS) { // all threads alike
        int columns[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int slot = first + k * THREADS + threadIdx.x;
            const bool live = slot < slots && is_live(state, segment, slot);
            const int leader = !live ? 0 : __ldcg(equal.flags + slot) ? slot : equal.leaders[slot];
            columns[k] = live ? __ldcg(equal.columns + leader) : -1;
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (columns[k] >= 0)
                equal.leaders[first + k * THREADS + threadIdx.x] = columns[k];
            const unsigned same = __match_any_sync(ALL_LANES, columns[k]); // one addition for all of them
            if (columns[k] >= 0 && (same & first_bits(threadIdx.x % 32)) == 0)
                atomicAdd(equal.stands + columns[k], __popc(same));
        }
    }
    if (threadIdx.x == 0)
        state.distinct[segment] = count <= most ? count : 0;
}

// Give samples that live on the rows of their columns, n values each; and note what follows. All keep their slots:
// with equal samples run once, dead ones cost nothing.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    spread(const State *shared_state, i64 segment, i64 n) {
    const State &state = *shared_state;
    const Equal &equal = state.equal;
    if (state.distinct[segment] == 0)
        return;
    const int buffer = state.buffer[segment];
    const i64 slots = state.slots[segment];
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        state.buffer[segment + 1] = buffer;
        state.order[segment + 1] = state.order[segment];
        state.slots[segment + 1] = static_cast<unsigned>(slots);
    }
    share_out(slots, n, [&](i64 slot, i64 from, i64 to) {
        const int column = slot < slots && is_live(state, segment, slot) ? equal.leaders[slot] : -1;
        const bool stays = column >= 0 && equal.flags[column];
        const unsigned mask = __ballot_sync(ALL_LANES, stays);
        if (from == 0 && threadIdx.x % 32 == 0)
            state.masks[(segment + 1) * state.words + slot / WORD] = mask;
        const Stored *source = state.rows[1 - buffer] + place(stays ? column : 0, 0, n);
        Stored *target = state.rows[buffer] + place(slot, 0, n);
        constexpr int TOGETHER = 16; // values that are on their way before the first is written
        for (i64 neuron = from; neuron < to; neuron += TOGETHER) {
            Stored values[TOGETHER];
#pragma unroll
            for (int k = 0; k < TOGETHER; k++)
                values[k] = source[(neuron + k < to ? neuron + k : from) * COLUMNS];
#pragma unroll
            for (int k = 0; k < TOGETHER; k++)
                if (stays && neuron + k < to)
                    target[(neuron + k) * COLUMNS] = values[k];
        }
    });
}
