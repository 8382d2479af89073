// What a warp of the block kernel (block.cu) reads ahead of a layer, and its panels, step by step.
#pragma once

#include "block_tile.cuh"

// The sizes of a layer's head, in bytes.
__device__ __forceinline__ int head_size(const Layer &layer) {
    return WARPS * (layer.rounds * (PANEL * 6 + 4) + layer.steps * STEP * 2) + 2 * STEP * 2;
}

// Bring the head of a layer into shared memory, without waiting; by a warp.
__device__ __forceinline__ void load_head(const Layer &layer, char *into) {
    const uint4 *from = static_cast<const uint4 *>(layer.head);
    const int chunks = head_size(layer) / 16;
    for (int k = threadIdx.x % 32; k < chunks; k += 32)
        copy_async(into + k * 16, from + k);
}

// A head, of what is a warp's.
struct Head {
    const float *biases;           // [round][16]
    const unsigned short *outputs; // [round][16] addresses of rows; NO_OUTPUT where there is none
    const unsigned *lengths;       // [round] steps into one panel, and, in the upper half, into the next one too
    unsigned addresses;            // in shared memory: [step][4 lanes][4], this lane's; two steps more may be read

    __device__ __forceinline__ Head(const Areas &areas, int number, int rounds, int steps, int warp, int lane) {
        const char *bytes = areas.head(number);
        const int panels = WARPS * rounds, first = warp * rounds;
        biases = reinterpret_cast<const float *>(bytes) + first * PANEL + lane / 4;
        outputs = reinterpret_cast<const unsigned short *>(bytes + panels * PANEL * 4) + first * PANEL + lane / 4;
        lengths = reinterpret_cast<const unsigned *>(bytes + panels * PANEL * 6) + first;
        const int before = panels * (PANEL * 6 + 4) + (warp * steps * 4 + lane % 4) * 8;
        addresses = shared_address(shared, areas.head_offset(number) + before);
    }
};

// The weights of a warp on their way from memory, 16 neurons times 16 inputs a fragment: copies of a lane
// are for itself, and those of each fragment are a group.
struct Ring {
    char *slots;                // this lane's
    const uint4 *now = nullptr; // this lane's of the layer that runs
    int next = 0;               // more than 0, as later layers lie behind: from the end of those of this layer to
                                // those of the layer after it; 0 for none
    int fragments = 0, left = 0; // of the layer that runs, at least RING - 1; those that have not been taken
    int place = 0;              // of the next one

    __device__ __forceinline__ Ring(const Areas &areas, int warp, int lane) : slots(areas.ring(warp) + lane * 16) {}

    // Where the fragments of a warp begin.
    __device__ __forceinline__ static const uint4 *stream(const Layer &layer, int warp, int lane) {
        return reinterpret_cast<const uint4 *>(layer.tall.weights) +
               static_cast<i64>(warp) * layer.fragments * TERMS * 32 + lane;
    }

    __device__ __forceinline__ char *slot(int number) const { return slots + number % RING_PLACES * FRAGMENT_BYTES; }

    // Have a fragment of this layer, or of the next, come to a place.
    __device__ __forceinline__ void fetch(int number, int to) {
        if (number < fragments || next) {
            const uint4 *from = now + number * (TERMS * 32) + (number < fragments ? 0 : next);
            char *into = slot(to);
#pragma unroll
            for (int t = 0; t < TERMS; t++)
                copy_async(into + t * 512, from + t * 32);
        }
        end_group();
    }

    // Begin with the first layer of a segment.
    __device__ __forceinline__ void begin(const Layer &layer, int warp, int lane) {
        now = stream(layer, warp, lane), left = fragments = layer.fragments;
        for (int k = 0; k < RING - 1; k++)
            fetch(k, k);
    }

    // Note where the layer after the one that runs is.
    __device__ __forceinline__ void look_to(const Layer *following, int warp, int lane) {
        next = 0;
        if (following) // as if its fragments followed this layer's
            next = static_cast<int>(stream(*following, warp, lane) - now) - fragments * (TERMS * 32);
    }

    // Wait for the next fragment, and have another one come; returns where it is.
    __device__ __forceinline__ const uint4 *take() {
        wait_for_groups<(RING > 2 ? RING - 2 : 0)>();
        fetch(fragments - left + RING - 1, place + RING - 1);
        const char *taken = slot(place);
        left--, place = (place + 1) % RING_PLACES;
        return reinterpret_cast<const uint4 *>(taken);
    }

    // Pass what other warps have more of, and turn to the next layer.
    __device__ __forceinline__ void turn(const Layer *following) {
        while (left > 0)
            take();
        now += fragments * (TERMS * 32) + next;
        if (following)
            left = fragments = following->fragments;
    }
};

// ---------------------------------------------------------------- steps

// A unit of a row.
template <int TILES> __device__ __forceinline__ void load_unit(unsigned address, float (&x)[TILES]) {
    if constexpr (TILES == 2) {
        const float2 two = load_shared<float2>(shared, address);
        x[0] = two.x, x[1] = two.y;
    } else {
        x[0] = load_shared<float>(shared, address);
    }
}

// An address of shared memory in the units of addresses of rows.
template <int WIDTH> __device__ __forceinline__ unsigned in_row_units(unsigned address) {
    return address / (WIDTH == 16 ? 16 : 8);
}

// What a lane reads of the tile in a step: its unit, `own` bytes into each of four rows. `rows` has in both
// halves where the tile begins.
template <int TILES>
__device__ __forceinline__ void load_units(unsigned rows, uint2 addresses, unsigned own, float (&x)[4][TILES]) {
    constexpr int WIDTH = TILES * 8;
    addresses.x += rows, addresses.y += rows; // of both halves: none overflows
    load_unit(row_bytes<WIDTH>(addresses.x) ^ own, x[0]);
    load_unit(upper_row_bytes<WIDTH>(addresses.x) ^ own, x[1]);
    load_unit(row_bytes<WIDTH>(addresses.y) ^ own, x[2]);
    load_unit(upper_row_bytes<WIDTH>(addresses.y) ^ own, x[3]);
}

// The sums of a panel, of products of first terms, and of all others.
template <int TILES> struct Sums {
    float large[TILES][4], small[TILES][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                large[t][k] = small[t][k] = 0.0f;
    }
};

// The inputs of a step, split.
template <int TILES> struct Inputs {
    unsigned low[TILES][3], high[TILES][3];

    __device__ __forceinline__ void split_units(const float (&x)[4][TILES]) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            split(x[0][t], x[1][t], low[t][0], low[t][1], low[t][2]);
            split(x[2][t], x[3][t], high[t][0], high[t][1], high[t][2]);
        }
    }

    // Multiply with one term of weights, and add up.
    __device__ __forceinline__ void multiply(const uint4 &weights, int term, Sums<TILES> &sums) const {
#pragma unroll
        for (int with = 2 - term; with >= 0; with--) // as many terms of inputs as matter
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply_add(term + with ? sums.small[t] : sums.large[t], weights, low[t][with], high[t][with]);
    }
};

// What a warp has at hand of a layer while that runs.
template <int TILES> struct Task {
    const Layer &layer;
    Head head; // its addresses are those of the next step but two
    Ring &ring;
    uint4 equal;       // weights, where all are
    unsigned own;      // bytes into a row that a lane reads,
    unsigned write_at; // and writes
    unsigned from, to; // where the tiles of inputs and of outputs begin, in row units; `from` in both halves
    uint2 addresses;   // of the next step but one
    float x[4][TILES]; // units of the next step

    __device__ __forceinline__ void multiply(const Inputs<TILES> &inputs, Sums<TILES> &sums) {
        if constexpr (TERMS == 0) {
            inputs.multiply(equal, 0, sums);
        } else {
            const uint4 *fragment = ring.take();
#pragma unroll
            for (int term = TERMS - 1; term >= 0; term--)
                inputs.multiply(fragment[term * 32], term, sums);
        }
    }

    // Split the units of the next step, and read those of the step after it, which arrive while tensor
    // cores work.
    __device__ __forceinline__ void advance(Inputs<TILES> &inputs) {
        inputs.split_units(x);
        load_units(from, addresses, own, x);
        addresses = load_shared<uint2>(shared, head.addresses);
        head.addresses += STEP * 2;
    }
};

// Sum a panel, number `h` of the warp, and apply the activation. `sums` hold what came of the panel before,
// and are left with what there is of the next.
template <int TILES>
__device__ __forceinline__ void compute_panel(Task<TILES> &task, int h, Sums<TILES> &sums, float (&outputs)[TILES][4]) {
    const unsigned length = task.head.lengths[h];
    const float bias[2] = {task.head.biases[h * PANEL], task.head.biases[h * PANEL + 8]};
    Sums<TILES> next;
    next.clear();
    Inputs<TILES> inputs;
#pragma unroll 1
    for (unsigned k = length & 0xffff; k > 0; k--) {
        task.advance(inputs);
        task.multiply(inputs, sums);
    }
#pragma unroll 1
    for (unsigned k = length >> 16; k > 0; k--) {
        task.advance(inputs);
        task.multiply(inputs, sums);
        task.multiply(inputs, next);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            outputs[t][k] = activate(task.layer, sums.large[t][k] + sums.small[t][k], bias[k / 2]);
    sums = next;
}

// Write a panel; ors into `some` the bits of each sample's values.
template <int TILES>
__device__ __forceinline__ void write_panel(const Task<TILES> &task, int h, const float (&outputs)[TILES][4],
                                            unsigned (&some)[TILES][2]) {
    constexpr int WIDTH = TILES * 8;
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const unsigned address = task.head.outputs[h * PANEL + below * 8];
        if (address == NO_OUTPUT)
            continue;
        float y[2][TILES]; // units 2 quarter and 2 quarter + 1
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                y[k][t] = outputs[t][2 * below + k];
                some[t][k] |= __float_as_uint(y[k][t]);
            }
        const unsigned at = row_bytes<WIDTH>(address + task.to) ^ task.write_at;
        if constexpr (TILES == 2)
            store_shared(shared, at, make_float4(y[0][0], y[0][1], y[1][0], y[1][1]));
        else
            store_shared(shared, at, make_float2(y[0][0], y[1][0]));
    }
}

// The panels of a warp one after the other, where outputs have a tile of their own.
template <int TILES> __device__ __forceinline__ void run_panels(Task<TILES> &task, unsigned (&some)[TILES][2]) {
    const int rounds = task.layer.rounds;
    Sums<TILES> sums;
    sums.clear();
#pragma unroll 1
    for (int h = 0; h < rounds; h++) {
        float outputs[TILES][4];
        compute_panel(task, h, sums, outputs);
        write_panel(task, h, outputs, some);
    }
}

template <int TILES> __device__ __forceinline__ void copy_outputs(float (&to)[TILES][4], const float (&from)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            to[t][k] = from[t][k];
}

// The same where outputs overwrite inputs: all are held in registers until all warps have read their last
// input. Registers have no addresses, and code for each of HELD panels would not fit the instruction cache,
// so there is code for a few, and older outputs move on from register to register.
template <int TILES> __device__ __forceinline__ void run_held_panels(Task<TILES> &task, unsigned (&some)[TILES][2]) {
    constexpr int COUNT = HELD > 0 ? HELD : 1, MOST = TERMS ? 2 : 4, APART = COUNT < MOST ? COUNT : MOST;
    const int rounds = task.layer.rounds;
    float held[COUNT][TILES][4];
    Sums<TILES> sums;
    sums.clear();
    int first = 0; // of the panels that are computed together
#pragma unroll 1
    for (;; first += APART) {
#pragma unroll
        for (int h = COUNT - 1; h >= APART; h--)
            copy_outputs(held[h], held[h - APART]);
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds)
                compute_panel(task, first + h, sums, held[h]);
        if (first + APART >= rounds)
            break;
    }
    __syncthreads(); // every input has been read
#pragma unroll 1
    for (; first >= 0; first -= APART) {
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds)
                write_panel(task, first + h, held[h], some);
#pragma unroll
        for (int h = 0; h < COUNT - APART; h++)
            copy_outputs(held[h], held[h + APART]);
    }
}
