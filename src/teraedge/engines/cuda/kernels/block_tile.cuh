// The tile of samples of the block kernel (block.cu): where rows lie in shared memory, and how they come
// there and go.
#pragma once

#include "mma.cuh"

// At the end of layer d, records of layer d + 2 may be asked for: its sizes must have been waited for before the
// barrier at the end of layer d - 1, by the warp that copies them, which does so a layer after it asked.
constexpr int LAYERS_AHEAD = 4, PLACES = LAYERS_AHEAD + 1;
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int CHUNK = 64 / WARPS; // records of a warp that come together
constexpr int PANEL = 16, STEP = 16, LINE = 128;
constexpr int FIRST_PLACE = 16; // of a neuron; rows before it are zero, or are written for nobody
constexpr int TILE_COUNT = HELD ? 1 : 2;
// Whether there is code for features of one term, where others have more: registers are short.
constexpr bool ONE_TERM = PLANES > 1 && !HELD && TERMS < 2;

extern __shared__ __align__(128) float4 shared[]; // tiles [plane][place][WIDTH], records of all warps

// What a block knows of a tile before it runs: the slot of its first sample, which live, and, of packed features,
// the number of each sample among those given, or -1.
struct Turn {
    int slot;
    unsigned running;
    int sources[SAMPLES];
};

// What shared memory is for, in bytes; the same for all layers of a segment.
struct Areas {
    int plane_bytes, record_bytes;

    // The rows that a layer reads, of that number in the segment; those it writes are of the next.
    __device__ __forceinline__ int rows(int number) const { return number % TILE_COUNT * PLANES * plane_bytes; }
    __device__ __forceinline__ char *plane(int number, int plane) const {
        return reinterpret_cast<char *>(shared) + rows(number) + plane * plane_bytes;
    }
    __device__ __forceinline__ int records(int warp) const {
        return TILE_COUNT * PLANES * plane_bytes + warp * 2 * CHUNK * record_bytes;
    }
};

// A *unit* says where a row lies, for every width: the first chunk of 8 samples of a row of 32, in 16 bytes. It is
// another one of the row's four for every second place, so that eight places in a row begin in different banks, also
// in rows of half the width, where units are half.
__device__ __forceinline__ unsigned unit_of(unsigned place) { return place * 4 + (place >> 1 & 3); }

// Where a chunk of a row lies, in bytes; that of another chunk differs by 16 times the bits that these differ by.
template <int WIDTH> __device__ __forceinline__ unsigned chunk_at(unsigned unit, unsigned chunk) {
    return (unit / (32 / WIDTH) ^ chunk) * 16;
}

// Clear the rows that are read as zeros: nobody writes them; by a warp.
__device__ __forceinline__ void clear_zero_rows(const Areas &areas) {
    for (int number = 0; number < TILE_COUNT; number++)
        for (int plane = 0; plane < PLANES; plane++)
            for (int k = threadIdx.x % 32; k < FIRST_PLACE / 2 * SAMPLES / 8; k += 32)
                reinterpret_cast<float4 *>(areas.plane(number, plane))[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Eight values from device memory as planes have them, two a word, and back.
__device__ __forceinline__ void to_planes(const Four &x, const Four &y, unsigned (&words)[PLANES][4]) {
#if STORAGE
    words[0][0] = x.x, words[0][1] = x.y, words[0][2] = y.x, words[0][3] = y.y;
#else
    const float2 pairs[4] = {{x.x, x.y}, {x.z, x.w}, {y.x, y.y}, {y.z, y.w}};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        unsigned terms[PLANES];
        split(pairs[k].x, pairs[k].y, terms);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            words[plane][k] = terms[plane];
    }
#endif
}

__device__ __forceinline__ void from_planes(const unsigned (&words)[PLANES][4], Four &x, Four &y) {
#if STORAGE
    x = make_uint2(words[0][0], words[0][1]), y = make_uint2(words[0][2], words[0][3]);
#else
    float values[8];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        unsigned lower[PLANES], upper[PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            lower[plane] = words[plane][k] << 16, upper[plane] = words[plane][k] & 0xffff0000u;
        values[2 * k] = joined(lower), values[2 * k + 1] = joined(upper);
    }
    x = make_float4(values[0], values[1], values[2], values[3]);
    y = make_float4(values[4], values[5], values[6], values[7]);
#endif
}

// Split the rows of WIDTH slots from `slot` on into rows of a number, in the order of their places there.
template <int WIDTH>
__device__ __forceinline__ void load_rows(const Stored *rows, const Areas &areas, int number, int slot,
                                          const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8;
    const int neurons = static_cast<int>(layer.n_in);
    const unsigned short *order = layer.places + neurons; // the neuron at each place
    const Four *source = reinterpret_cast<const Four *>(rows + place(slot, 0, neurons));
#pragma unroll HELD ? 1 : 2
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS) {
        const int chunk = k % CHUNKS;
        const Four *from = source + order[k / CHUNKS] * (COLUMNS / 4) + chunk * 2;
        const unsigned at = chunk_at<WIDTH>(unit_of(FIRST_PLACE + k / CHUNKS), chunk);
        unsigned words[PLANES][4];
        to_planes(from[0], from[1], words);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            *reinterpret_cast<uint4 *>(areas.plane(number, plane) + at) =
                make_uint4(words[plane][0], words[plane][1], words[plane][2], words[plane][3]);
    }
}

// Between two segments of this kernel a sample's values lie in one piece, n floats, n a multiple of 32, so that those
// of the few samples that live on are whole lines. They are in the order in which the layer before has them in its
// panels, and that within 32 is so that a warp moves 32 neurons of 8 samples as four matrices: lane 4 g + q has
// two times four neurons of sample g.
constexpr int GROUP = 32;

// Split such samples, of WIDTH slots from `slot` on, into rows. layer.places are in that order, too.
template <int WIDTH>
__device__ __forceinline__ void load_samples(const Stored *from, const Areas &areas, int number, int slot,
                                             const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8, APART = WARPS / CHUNKS * GROUP;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, neurons = static_cast<int>(layer.n_in);
    const int chunk = warp % CHUNKS;
    const unsigned tile = shared_address(shared, areas.rows(number));
    from += static_cast<i64>(slot + chunk * 8 + lane / 4) * neurons + lane % 4 * 4;
#pragma unroll HELD ? 1 : 2
    for (int first = warp / CHUNKS * GROUP; first < neurons; first += APART) {
        const Four x = *reinterpret_cast<const Four *>(from + first);
        const Four y = *reinterpret_cast<const Four *>(from + first + GROUP / 2);
        const unsigned at = tile + chunk_at<WIDTH>(unit_of(__ldg(layer.places + first + lane)), chunk);
        unsigned words[PLANES][4];
        to_planes(x, y, words);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            store_turned(shared, at + plane * areas.plane_bytes, words[plane]);
    }
}

// Write samples with a slot of 0 or more so.
template <int WIDTH>
__device__ __forceinline__ void store_samples(Stored *to, const Areas &areas, int number, const int *slots,
                                              const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8, APART = WARPS / CHUNKS * GROUP;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, neurons = static_cast<int>(layer.n_out);
    const int chunk = warp % CHUNKS, slot = slots[chunk * 8 + lane / 4];
    const unsigned tile = shared_address(shared, areas.rows(number));
    to += static_cast<i64>(slot) * neurons + lane % 4 * 4;
#pragma unroll HELD ? 1 : 2
    for (int first = warp / CHUNKS * GROUP; first < neurons; first += APART) {
        const unsigned at = tile + chunk_at<WIDTH>(unit_of(FIRST_PLACE + first + lane), chunk);
        unsigned words[PLANES][4];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            load_turned(shared, at + plane * areas.plane_bytes, words[plane]);
        Four x, y;
        from_planes(words, x, y);
        if (slot >= 0) {
            store_global(reinterpret_cast<Four *>(to + first), x);
            store_global(reinterpret_cast<Four *>(to + first + GROUP / 2), y);
        }
    }
}

// Spread packed 0/1 features of a tile into rows: into the first plane, as they have one term; others are cleared
// if they are read. A thread takes four neurons of eight samples.
template <int WIDTH>
__device__ __forceinline__ void load_bits(const State &state, const Areas &areas, int number, const Turn &turn,
                                          const Layer &layer) {
    const int neurons = static_cast<int>(layer.n_in);
    const int halves = (neurons + 127) / 128 * 32; // of bytes, in whole warps
#pragma unroll 1
    for (int k = threadIdx.x; k < halves * (WIDTH / 8); k += THREADS) {
        const int chunk = k / halves, half = k % halves; // the same chunk in all lanes
        if (half * 4 >= neurons)
            continue;
        const uint2 pairs = __ldg(reinterpret_cast<const uint2 *>(layer.places) + half); // there are whole fours
        unsigned both[4] = {}; // of two samples each
#pragma unroll
        for (int sample = 0; sample < 8; sample++) {
            const int source = turn.sources[chunk * 8 + sample];
            if (source >= 0)
                both[sample / 2] |= static_cast<unsigned>(__ldg(state.bits + source * state.bits_stride + half / 2))
                                    << sample % 2 * 16;
        }
#pragma unroll
        for (int bit = 0; bit < 4; bit++) {
            const int shift = 7 - bit - half % 2 * 4;
            unsigned ones[4];
#pragma unroll
            for (int pair = 0; pair < 4; pair++)
                ones[pair] = (both[pair] >> shift & 0x10001u) * (ONES & 0xffff);
            const unsigned at = (bit < 2 ? pairs.x : pairs.y) >> bit % 2 * 16 & 0xffff;
            if (half * 4 + bit >= neurons)
                continue;
            const unsigned to = chunk_at<WIDTH>(unit_of(at), chunk);
            *reinterpret_cast<uint4 *>(areas.plane(number, 0) + to) = make_uint4(ones[0], ones[1], ones[2], ones[3]);
#pragma unroll
            for (int plane = 1; plane < (ONE_TERM ? 1 : PLANES); plane++)
                *reinterpret_cast<uint4 *>(areas.plane(number, plane) + to) = make_uint4(0, 0, 0, 0);
        }
    }
}

// Have packed features of a tile brought near, in two stages: what says where they are, and they themselves, which
// is noted; by a warp.
template <int WIDTH>
__device__ __forceinline__ void touch_bits(const State &state, int stage, Turn &turn, i64 neurons) {
    const int lane = threadIdx.x % 32, slot = turn.slot + lane % WIDTH;
    const bool there = slot < state.slots[0];
    const int *id = state.ids[0] + slot;
    if (stage == 0) {
        if (there)
            touch(id);
        return;
    }
    const int source = there ? static_cast<int>(*id - state.first) : -1;
    if (lane < WIDTH)
        turn.sources[lane] = source;
    const unsigned char *bits = state.bits + source * state.bits_stride;
    for (i64 at = lane / WIDTH * LINE; there && at < (neurons + 7) / 8; at += 32 / WIDTH * LINE)
        touch(bits + at);
}

// Write the rows of samples with a slot of 0 or more to their slots.
template <int WIDTH>
__device__ __forceinline__ void store_rows(Stored *rows, const Areas &areas, int number, const int *slots,
                                           const Layer &layer) {
    const int sample = threadIdx.x % WIDTH, slot = slots[sample], neurons = static_cast<int>(layer.n_out);
    if (slot < 0)
        return;
    Stored *target = rows + place(slot, 0, neurons);
#pragma unroll HELD ? 1 : 4
    for (int neuron = threadIdx.x / WIDTH; neuron < neurons; neuron += THREADS / WIDTH) {
        const unsigned at = chunk_at<WIDTH>(unit_of(__ldg(layer.ends + neuron)), sample / 8) + sample % 8 * 2;
#if STORAGE
        target[neuron * COLUMNS] = *reinterpret_cast<const Stored *>(areas.plane(number, 0) + at);
#else
        unsigned terms[PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            terms[plane] = *reinterpret_cast<const unsigned short *>(areas.plane(number, plane) + at) << 16;
        target[neuron * COLUMNS] = joined(terms);
#endif
    }
}
