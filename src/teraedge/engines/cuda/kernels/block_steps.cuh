// What a warp of the block kernel (block.cu) reads ahead, and its panels, step by step.
#pragma once

#include "block_tile.cuh"

// A record: biases [16], units of rows that are written [16], steps into this panel, and, in the upper half, into
// the next one too, and of each step the units of its inputs [16].
constexpr int OUTPUTS_AT = PANEL * 4, LENGTHS_AT = PANEL * 6, STEPS_AT = PANEL * 6 + 16;

__device__ __forceinline__ int record_size(const Layer &layer) { return STEPS_AT + layer.steps * STEP * 2; }

// What a lane knows of how a panel ends.
struct Ending {
    float bias[2]; // of rows lane / 4 and 8 more
    unsigned unit; // of the row that the lane says where to write

    __device__ __forceinline__ explicit Ending(unsigned record) {
        const unsigned row = record + threadIdx.x % 32 / 4 * 4;
        bias[0] = load_shared<float>(shared, row);
        bias[1] = load_shared<float>(shared, row + 32);
        unit = load_shared<unsigned short>(shared, record + OUTPUTS_AT + threadIdx.x % 16 * 2);
    }
};

// And of how it begins.
struct Panel {
    unsigned lengths;
    unsigned units; // where those of the next step are
    unsigned unit;  // that the lane says of them

    __device__ __forceinline__ void read(unsigned record) {
        lengths = load_shared<unsigned>(shared, record + LENGTHS_AT);
        units = record + STEPS_AT + threadIdx.x % 16 * 2;
        unit = load_shared<unsigned short>(shared, units);
    }

    // Return the unit of the next step, and read the one after it: one more than there are may be read.
    __device__ __forceinline__ unsigned take() {
        const unsigned taken = unit;
        units += STEP * 2;
        unit = load_shared<unsigned short>(shared, units);
        return taken;
    }
};

// What a warp has asked for of the records, in shared memory: sums need the registers.
struct Asked {
    const char *next; // chunk to ask for
    int layer, left;  // its layer, and how many records that has yet
    int coming;       // records in the chunk that comes
    int place;        // where the next one goes, of two
};

// The records of a warp on their way from memory, up to CHUNK at a time, for panels of this layer and of those
// after it: there is room for a chunk that is used and one that comes.
struct Records {
    const Areas &areas;
    const Layer *layers; // by turns
    Asked &asked;
    unsigned record; // that is used,
    int more;        // and those after it in its chunk

    __device__ __forceinline__ Records(const Areas &areas, const Layer *layers, Asked &asked)
        : areas(areas), layers(layers), asked(asked) {}

    // Ask for those of a layer of this number.
    __device__ __forceinline__ void begin(int number) {
        more = 0;
        fetch({nullptr, number - 1, 0, 0, 0});
    }

    // Ask for the next chunk, which is a group, and note that.
    __device__ __forceinline__ void fetch(Asked now) {
        const int mine = threadIdx.x % 32 * 16, warp = threadIdx.x / 32;
        if (now.left == 0) {
            const Layer &layer = layers[++now.layer % PLACES];
            now.left = layer.rounds;
            now.next = static_cast<const char *>(layer.records) + warp * now.left * record_size(layer);
        }
        now.coming = min(now.left, CHUNK);
        const int all = now.coming * record_size(layers[now.layer % PLACES]);
        const unsigned into = slot(now.place) + mine;
#pragma unroll 1
        for (int at = 0; at + mine < all; at += 512)
            copy_async_to<16>(shared, into + at, now.next + mine + at);
        end_group();
        now.next += all, now.left -= now.coming, now.place ^= 1;
        __syncwarp(); // all have read it
        if (mine == 0)
            asked = now;
    }

    __device__ __forceinline__ unsigned slot(int place) const {
        return shared_address(shared, areas.records(threadIdx.x / 32) + place * CHUNK * areas.record_bytes);
    }

    // Return where the record after one of this layer is. Behind a chunk the next one is waited for, and one more
    // asked for.
    __device__ __forceinline__ unsigned take(const Layer &layer) {
        record += record_size(layer);
        if (more == 0) {
            wait_for_groups<0>();
            __syncwarp();
            const Asked before = asked;
            record = slot(before.place ^ 1), more = max(before.coming, 1);
            fetch(before);
        }
        more--;
        return record;
    }
};

// The weights of a warp, pieces of 16 neurons times 16 inputs, read ahead.
constexpr int PIECES_AHEAD = HELD || TERMS != 1 ? 1 : 2; // as registers allow
constexpr int PIECE = TERMS ? TERMS : 1;               // words of a lane

struct Weights {
    const uint4 *from; // the next piece to read
    uint4 next[PIECES_AHEAD][PIECE];

    // Begin with a layer.
    __device__ __forceinline__ void begin(const Layer &layer) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (TERMS == 0) {
            next[0][0] = make_uint4(kept(ONES), kept(ONES), kept(ONES), kept(ONES)); // four registers side by side
            return;
        }
        from = reinterpret_cast<const uint4 *>(layer.tall.weights) + static_cast<i64>(warp) * layer.fragments * TERMS * 32 + lane;
#pragma unroll
        for (int k = 0; k < PIECES_AHEAD; k++)
            read(next[k]);
    }

    __device__ __forceinline__ void read(uint4 (&into)[PIECE]) {
#pragma unroll
        for (int t = 0; t < PIECE; t++)
            into[t] = __ldg(from + t * 32);
        from += PIECE * 32;
    }

    // Take a piece, and read another one, which may lie behind the last.
    __device__ __forceinline__ void take(uint4 (&piece)[PIECE]) {
#pragma unroll
        for (int t = 0; t < PIECE; t++) {
            piece[t] = next[0][t];
#pragma unroll
            for (int k = 0; k < PIECES_AHEAD - 1; k++)
                next[k][t] = next[k + 1][t];
        }
        if (TERMS)
            read(next[PIECES_AHEAD - 1]);
    }
};

// ---------------------------------------------------------------- steps

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
