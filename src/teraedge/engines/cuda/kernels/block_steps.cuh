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
            const unsigned both = upper_halves(layer.value, layer.value);
            next[0][0] = make_uint4(kept(both), kept(both), kept(both), kept(both)); // four registers side by side
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
        chunk = upper;
        const unsigned before = TILES == 2 ? 0 : upper * plane_bytes;
        from = shared_address(shared, areas.rows(number)) + before;
        to = shared_address(shared, areas.rows(number + 1)) + before;
    }
};

// The inputs of a step, for eight samples each: words of rows 2 q and 2 q + 1, and 8 more, of all terms, or, where
// features are 0 and 1, of the one there is.
template <int TILES, int TERMS_IN> struct Inputs {
    unsigned words[PLANES][TILES * 2];

    __device__ __forceinline__ void load(const Task<TILES> &task, unsigned unit) {
        const unsigned at = task.from + chunk_at<TILES * 8>(unit, task.chunk);
        if constexpr (TILES == 2) {
#pragma unroll
            for (int term = 0; term < TERMS_IN; term++)
                load_turned(shared, at + term * task.plane_bytes, words[term]);
        } else if constexpr (TERMS_IN == 1) {
            load_turned(shared, at, words[0]);
        } else {
            unsigned both[4];
            load_turned(shared, at, both);
            words[0][0] = both[0], words[0][1] = both[1], words[1][0] = both[2], words[1][1] = both[3];
            load_turned(shared, at + 2 * task.plane_bytes, words[2]);
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
                    if (of + term < PLANES) // as many as matter
                        multiply_add(of + term ? sums.small[t] : sums.large[t], piece[of], words[term][2 * t],
                                     words[term][2 * t + 1]);
    }
};

// Sum a panel. `sums` hold what came of the panel before; `next` is what there is of the next one.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void sum_panel(const Task<TILES> &task, Panel &panel, Sums<TILES> &sums, Sums<TILES> &next,
                                          float (&outputs)[TILES][4]) {
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
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            outputs[t][k] = sums.large[t][k] + sums.small[t][k];
}

// Apply the activation to sums.
template <int TILES>
__device__ __forceinline__ void activate_panel(const Task<TILES> &task, const float (&bias)[2],
                                               float (&outputs)[TILES][4]) {
    const float lower = task.layer.lower, upper = task.layer.upper;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            outputs[t][k] = fminf(fmaxf(outputs[t][k] + bias[k / 2], lower), upper);
}

// Split and write a panel to the rows of these units; ors into `some` the bits of each sample's values.
template <int TILES>
__device__ __forceinline__ void write_panel(const Task<TILES> &task, unsigned unit, const float (&outputs)[TILES][4],
                                            unsigned (&some)[TILES][2]) {
    unsigned words[PLANES][TILES * 2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float a = outputs[t][2 * half], b = outputs[t][2 * half + 1];
            split(a, b, words[0][2 * t + half], words[1][2 * t + half], words[2][2 * t + half]);
            some[t][0] |= __float_as_uint(a), some[t][1] |= __float_as_uint(b);
        }
    const unsigned at = task.to + chunk_at<TILES * 8>(unit, task.chunk);
    if constexpr (TILES == 2) {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            store_matrices(shared, at + plane * task.plane_bytes, words[plane]);
    } else {
        const unsigned both[4] = {words[0][0], words[0][1], words[1][0], words[1][1]};
        store_matrices(shared, at, both);
        store_matrices(shared, at + 2 * task.plane_bytes, words[2]);
    }
}

// Run a panel, where outputs have a tile of their own.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_panel(const Task<TILES> &task, Records &records, Panel &panel, Sums<TILES> &sums,
                                          Sums<TILES> &next, unsigned (&some)[TILES][2]) {
    float outputs[TILES][4];
    sum_panel<TILES, TERMS_IN>(task, panel, sums, next, outputs);
    const Ending ending(records.record);
    panel.read(records.take(task.layer)); // arrives while this one is finished
    activate_panel(task, ending.bias, outputs);
    write_panel(task, ending.unit, outputs, some);
}

// The panels of a warp one after the other.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_panels(const Task<TILES> &task, Records &records, Panel &panel,
                                           unsigned (&some)[TILES][2]) {
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

template <int TILES> __device__ __forceinline__ void copy_outputs(float (&to)[TILES][4], const float (&from)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            to[t][k] = from[t][k];
}

// The same where outputs overwrite inputs: all are held in registers until all warps have read their last
// input. Registers have no addresses, and code for each of many panels would not fit the instruction cache,
// so there is code for up to eight, and older outputs move on from register to register. Both halves of a warp know
// the same units, so one register holds those of four panels.
template <int TILES, int TERMS_IN>
__device__ __forceinline__ void run_held_panels(const Task<TILES> &task, Records &records, Panel &panel,
                                                unsigned (&some)[TILES][2]) {
    constexpr int APART = 4, GROUPS = HELD > 0 ? (HELD + APART - 1) / APART : 1;
    const int rounds = task.layer.rounds, lane = threadIdx.x % 32;
    float held[GROUPS * APART][TILES][4] = {}; // zeros need no registers before
    unsigned units[GROUPS][APART / 4];
    Sums<TILES> sums[2]; // by turns
    sums[0].clear();
    int first = 0; // of the panels that are computed together
#pragma unroll 1
    for (;; first += APART) {
#pragma unroll
        for (int h = GROUPS * APART - 1; h >= APART; h--)
            copy_outputs(held[h], held[h - APART]);
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
                sum_panel<TILES, TERMS_IN>(task, panel, sums[h % 2], sums[1 - h % 2], held[h]);
                const Ending ending(records.record);
                activate_panel(task, ending.bias, held[h]);
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
            copy_outputs(held[h], held[h + APART]);
#pragma unroll
        for (int four = 0; four < APART / 4; four++)
#pragma unroll
            for (int group = 0; group < GROUPS - 1; group++)
                units[group][four] = units[group + 1][four];
    }
}
