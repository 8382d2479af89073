// The panels of a warp of the block kernel (block.cu), step by step.
#pragma once

#include "block_ahead.cuh"

// The sums of a panel, of products of first terms, and of all others; of what is stored in less than fp32 one is enough.
template <int TILES> struct Sums {
    float large[TILES][4], small[TILES][4];

    // What a product is added to, by the terms of weight and activation, of samples from 8 t on.
    __device__ __forceinline__ float (&of(int terms, int t))[4] { return STORAGE || terms == 0 ? large[t] : small[t]; }

    __device__ __forceinline__ float total(int t, int k) const {
        return STORAGE ? large[t][k] : large[t][k] + small[t][k];
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                large[t][k] = small[t][k] = 0.0f;
    }
};

// What a warp has at hand of a layer while that runs.
template <int TILES> struct Task {
    const Layer &layer;
    Weights &weights;
    unsigned from, to; // where the lane's part of the tiles of inputs and of outputs begins,
    unsigned chunk;    // and its chunk of a row
    unsigned plane_bytes;

    __device__ __forceinline__ Task(const Layer &layer, Weights &weights, const Areas &areas, int number)
        : layer(layer), weights(weights), plane_bytes(areas.plane_bytes) {
        // Lanes 16 and following say where the second chunk is, or, where there is one, that of the second plane.
        const unsigned upper = threadIdx.x % 32 / 16;
        chunk = TILES > 1 ? upper : 0;
        const unsigned before = TILES > 1 ? 0 : upper * plane_bytes;
        from = shared_address(shared, areas.rows(number)) + before;
        to = shared_address(shared, areas.rows(number + 1)) + before;
    }
};

// How often a lane moves words between a plane and registers for a panel or a step, and how many words at a time.
__device__ constexpr int moves(int tiles) { return (tiles + 1) / 2; }
__device__ constexpr int moved(int tiles) { return tiles == 1 ? 2 : 4; }

// The inputs of a step, for eight samples each: words of rows 2 q and 2 q + 1, and 8 more, of all terms, or, where
// features are 0 and 1, of the one there is.
template <int TILES, int TERMS_IN> struct Inputs {
    unsigned words[PLANES][moves(TILES)][moved(TILES)];

    __device__ __forceinline__ void load(const Task<TILES> &task, unsigned unit) {
        const unsigned at = task.from + chunk_at<TILES * 8>(unit, task.chunk);
        if constexpr (TILES > 1) {
#pragma unroll
            for (int term = 0; term < TERMS_IN; term++)
#pragma unroll
                for (int load = 0; load < moves(TILES); load++)
                    load_turned(shared, (at + term * task.plane_bytes) ^ load * 32, words[term][load]);
        } else if constexpr (TERMS_IN == 1) {
            load_turned(shared, at, words[0][0]);
        } else {
            unsigned both[4];
            load_turned(shared, at, both);
            words[0][0][0] = both[0], words[0][0][1] = both[1], words[1][0][0] = both[2], words[1][0][1] = both[3];
            load_turned(shared, at + 2 * task.plane_bytes, words[2][0]);
        }
    }

    // Multiply with a piece of weights, and add up: small products first.
    __device__ __forceinline__ void multiply(const uint4 (&piece)[PIECE], Sums<TILES> &sums) const {
#pragma unroll
        for (int of = PIECE - 1; of >= 0; of--)
#pragma unroll
            for (int term = TERMS_IN - 1; term >= 0; term--)
#pragma unroll
                for (int t = 0; t < TILES; t++)
                    if (of + term < 3) // as many as matter
                        multiply_add(sums.of(of + term, t), piece[of], words[term][t / 2][t % 2 * 2],
                                     words[term][t / 2][t % 2 * 2 + 1]);
    }
};

// Sum a panel. `sums` hold what came of the panel before; `next` is what there is of the next one.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void sum_panel(const Task<TILES> &task, Panel &panel, Sums<TILES> &sums, Sums<TILES> &next) {
    next.clear();
    Inputs<TILES, TERMS_IN> inputs;
    uint4 piece[PIECE];
#pragma unroll 1
    for (unsigned k = panel.lengths & 0xffff; k > 0; k--) {
        inputs.load(task, panel.take());
        task.weights.take(piece);
        inputs.multiply(piece, sums);
    }
#pragma unroll 1
    for (unsigned k = panel.lengths >> 16; k > 0; k--) {
        inputs.load(task, panel.take());
        task.weights.take(piece);
        inputs.multiply(piece, sums);
        task.weights.take(piece);
        inputs.multiply(piece, next);
    }
}

// Outputs of a lane, as they are stored: of samples 2 q and 2 q + 1 of each eight, neurons g and g + 8.
template <int TILES> using Outputs = Two[TILES][2];

// The bits of all outputs of each sample of a lane: whether any is nonzero.
template <int TILES> struct Seen {
    unsigned bits[TILES][STORAGE ? 1 : 2] = {};

    __device__ __forceinline__ void note(int t, const Two &two) {
#if STORAGE
        bits[t][0] |= two;
#else
        bits[t][0] |= __float_as_uint(two.x), bits[t][1] |= __float_as_uint(two.y);
#endif
    }

    // Return a bit for each sample of the tile.
    __device__ __forceinline__ unsigned samples() const {
        unsigned found = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 2; k++) { // -0 is zero
                const unsigned all = STORAGE ? bits[t][0] >> 16 * k & 0x7fff : bits[t][k % (STORAGE ? 1 : 2)] << 1;
                found |= (all ? 1u : 0u) << (t * 8 + threadIdx.x % 4 * 2 + k);
            }
        return found;
    }
};

// Apply the activation to sums. They are of inputs alone where all weights are equal, and of scaled weights of fp16.
template <int TILES>
__device__ __forceinline__ void activate_panel(const Task<TILES> &task, const float (&bias)[2], const Sums<TILES> &sums,
                                               Outputs<TILES> &outputs) {
    const float lower = task.layer.lower, upper = task.layer.upper, scale = task.layer.value;
    auto output = [&](int t, int k) {
        const float sum = sums.total(t, k), added = bias[k / 2];
        return fminf(fmaxf(TERMS == 0 || STORAGE == 1 ? fmaf(sum, scale, added) : sum + added, lower), upper);
    };
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            outputs[t][half] = stored(make_float2(output(t, 2 * half), output(t, 2 * half + 1)));
}

// Write a panel to the rows of these units.
template <int TILES>
__device__ __forceinline__ void write_panel(const Task<TILES> &task, unsigned unit, const Outputs<TILES> &outputs,
                                            Seen<TILES> &some) {
    unsigned words[PLANES][moves(TILES)][moved(TILES)];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned terms[PLANES];
#if STORAGE
            terms[0] = outputs[t][half];
#else
            split(outputs[t][half].x, outputs[t][half].y, terms);
#endif
#pragma unroll
            for (int plane = 0; plane < PLANES; plane++)
                words[plane][t / 2][t % 2 * 2 + half] = terms[plane];
            some.note(t, outputs[t][half]);
        }
    const unsigned at = task.to + chunk_at<TILES * 8>(unit, task.chunk);
    if constexpr (TILES > 1) {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
#pragma unroll
            for (int store = 0; store < moves(TILES); store++)
                store_matrices(shared, (at + plane * task.plane_bytes) ^ store * 32, words[plane][store]);
    } else if constexpr (PLANES == 1) {
        store_matrices(shared, at, words[0][0]);
    } else {
        const unsigned both[4] = {words[0][0][0], words[0][0][1], words[1][0][0], words[1][0][1]};
        store_matrices(shared, at, both);
        store_matrices(shared, at + 2 * task.plane_bytes, words[2][0]);
    }
}

// Run a panel, where outputs have a tile of their own.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_panel(const Task<TILES> &task, Records &records, Panel &panel, Sums<TILES> &sums,
                                          Sums<TILES> &next, Seen<TILES> &some) {
    sum_panel<TILES, TERMS_IN>(task, panel, sums, next);
    const Ending ending(records.record);
    panel.read(records.take(task.layer)); // arrives while this one is finished
    Outputs<TILES> outputs;
    activate_panel(task, ending.bias, sums, outputs);
    write_panel(task, ending.unit, outputs, some);
}

// The panels of a warp one after the other.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_panels(const Task<TILES> &task, Records &records, Panel &panel, Seen<TILES> &some) {
    Sums<TILES> sums[2]; // by turns
    sums[0].clear();
#pragma unroll 1
    for (int left = task.layer.rounds;; left -= 2) {
        run_panel<TILES, TERMS_IN>(task, records, panel, sums[0], sums[1], some);
        if (left == 1)
            break;
        run_panel<TILES, TERMS_IN>(task, records, panel, sums[1], sums[0], some);
        if (left == 2)
            break;
    }
}

template <int TILES> __device__ __forceinline__ void copy_outputs(Outputs<TILES> &to, const Outputs<TILES> &from) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            to[t][half] = from[t][half];
}

// The same where outputs overwrite inputs: all are held in registers until all warps have read their last
// input. Registers have no addresses, and code for each of many panels would not fit the instruction cache,
// so there is code for up to eight, and older outputs move on from register to register. Both halves of a warp know
// the same units, so one register holds those of four panels.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_held_panels(const Task<TILES> &task, Records &records, Panel &panel,
                                                Seen<TILES> &some) {
    constexpr int APART = 4, GROUPS = HELD > 0 ? (HELD + APART - 1) / APART : 1;
    const int rounds = task.layer.rounds, lane = threadIdx.x % 32;
    Outputs<TILES> held[GROUPS * APART] = {}; // zeros need no registers before
    unsigned units[GROUPS][APART / 4];
    Sums<TILES> sums[2]; // by turns
    sums[0].clear();
    int first = 0; // of the panels that are computed together
#pragma unroll 1
    for (;; first += APART) {
#pragma unroll
        for (int h = GROUPS * APART - 1; h >= APART; h--)
            copy_outputs<TILES>(held[h], held[h - APART]);
#pragma unroll
        for (int four = 0; four < APART / 4; four++) {
#pragma unroll
            for (int group = GROUPS - 1; group > 0; group--)
                units[group][four] = units[group - 1][four];
            units[0][four] = 0;
        }
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds) {
                sum_panel<TILES, TERMS_IN>(task, panel, sums[h % 2], sums[1 - h % 2]);
                const Ending ending(records.record);
                activate_panel(task, ending.bias, sums[h % 2], held[h]);
                if (lane / 16 == h % 2)
                    units[0][h / 4] |= ending.unit << 16 * (h / 2 % 2);
                panel.read(records.take(task.layer));
            }
        if (first + APART >= rounds)
            break;
    }
    __syncthreads(); // every input has been read
#pragma unroll 1
    for (; first >= 0; first -= APART) {
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds) {
                const unsigned both = __shfl_sync(ALL_LANES, units[0][h / 4], lane % 16 + h % 2 * 16);
                write_panel(task, both >> 16 * (h / 2 % 2) & 0xffff, held[h], some);
            }
#pragma unroll
        for (int h = 0; h < (GROUPS - 1) * APART; h++)
            copy_outputs<TILES>(held[h], held[h + APART]);
#pragma unroll
        for (int four = 0; four < APART / 4; four++)
#pragma unroll
            for (int group = 0; group < GROUPS - 1; group++)
                units[group][four] = units[group + 1][four];
    }
}
