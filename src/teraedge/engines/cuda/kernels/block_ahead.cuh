// What a warp of the block kernel (block.cu) reads ahead: records of panels, and weights.
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
