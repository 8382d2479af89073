// What the kernels share that take tiles of samples through several layers in shared memory: which
// samples a block has, which of them are still live, and where they go. LAYERS_AHEAD is the number of layers
// whose sizes and addresses are there before they run.
#pragma once

#include "common.cuh"

// What a block knows of its tile. In shared memory, because sums need all registers.
struct Tile {
    Layer layers[LAYERS_AHEAD + 1]; // the one that runs, and those after it, by turns
    i64 slot;            // of its first sample
    unsigned running;
    unsigned before[2];  // live before the layer that runs, and after it, by turns (block kernel)
    unsigned nonzero[3]; // samples with a nonzero output, of layers in turn
    int turn;            // which of two places is the next tile's (block kernel)
    u64 began;           // the layer that runs
    int slots[WORD];     // where samples go
};

// Tell whether equal samples run once in a segment, and so in few.cu.
__device__ __forceinline__ bool runs_elsewhere(const State &state, i64 segment) { return state.distinct[segment] != 0; }

// Note what follows after a segment that is one launch; by one thread.
__device__ __forceinline__ void describe_next(const State &state, i64 segment, bool moves) {
    state.buffer[segment + 1] = 1 - state.buffer[segment];
    state.order[segment + 1] = moves ? 1 - state.order[segment] : state.order[segment];
    if (!moves)
        state.slots[segment + 1] = state.slots[segment];
}

// Take the next tile of `samples` samples with live ones, if there is one; false where none is left.
// Its first layers are on their way.
__device__ __forceinline__ bool claim_tile(const State &state, i64 segment, const Layer *layers, int layer_count,
                                           int samples, Tile &now) {
    const unsigned total = state.slots[segment];
    for (;;) {
        __syncthreads(); // all are done with the tile before
        if (threadIdx.x == 0) {
            now.slot = static_cast<i64>(atomicAdd(state.tickets + segment, 1)) * samples;
            now.running = 0;
            if (now.slot < total)
                now.running =
                    state.masks[segment * state.words + now.slot / WORD] >> now.slot % WORD & first_bits(samples);
            now.nonzero[0] = now.nonzero[1] = now.nonzero[2] = 0;
        }
        __syncthreads();
        if (now.slot >= total)
            return false;
        if (now.running == 0)
            continue;
        for (int k = 0; k < LAYERS_AHEAD && k < layer_count; k++)
            load_layer(now.layers + k, layers + k, threadIdx.x);
        return true;
    }
}

// Wait until a tile that was claimed, and is being loaded, is there.
__device__ __forceinline__ void begin_tile(Tile &now) {
    wait_for_copies();
    if (threadIdx.x == 0)
        now.began = nanoseconds();
    __syncthreads();
}

// Decide where each live sample of the tile goes, and move what belongs to it besides its row.
__device__ __forceinline__ void claim_slots(const State &state, i64 segment, Tile &now, int samples, bool moves) {
    if (threadIdx.x >= 32)
        return;
    const int lane = threadIdx.x;
    const int order = state.order[segment];
    unsigned *masks = state.masks + (segment + 1) * state.words;
    unsigned base = static_cast<unsigned>(now.slot);
    if (moves && lane == 0)
        base = atomicAdd(state.slots + segment + 1, __popc(now.running));
    base = __shfl_sync(ALL_LANES, base, 0);
    if (lane < samples) {
        const unsigned rank = moves ? __popc(now.running & first_bits(lane)) : lane;
        const bool stays = (now.running >> lane & 1) != 0;
        now.slots[lane] = stays ? static_cast<int>(base + rank) : -1;
        if (stays) {
            if (moves)
                state.ids[1 - order][base + rank] = state.ids[order][now.slot + lane];
            atomicOr(masks + (base + rank) / WORD, 1u << (base + rank) % WORD);
        }
    }
}

// Count a layer that `ran` took part in and that leaves `live`; by one thread.
__device__ __forceinline__ void count(const State &state, i64 number, unsigned ran, unsigned live, Tile &now) {
    const u64 end = nanoseconds();
    atomicAdd(state.ran + number, static_cast<u64>(__popc(ran)));
    atomicAdd(state.live + number, static_cast<u64>(__popc(live)));
    atomicAdd(state.nanos + number, end - now.began);
    now.began = end;
}
