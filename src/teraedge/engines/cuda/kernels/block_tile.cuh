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
constexpr int PLANES = 3;       // terms of an activation
constexpr int FIRST_PLACE = 16; // of a neuron; rows before it are zero, or are written for nobody
constexpr int TILE_COUNT = HELD ? 1 : 2;
constexpr bool ONE_TERM = !HELD && TERMS < 2; // whether there is code for features of one: registers are short

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

// A *unit* says where a row lies, for every width: units of two places in a row begin 16 bytes of all banks
// apart. Of two chunks of 8 samples the first is at the unit, the other beside it.
__device__ __forceinline__ unsigned unit_of(unsigned place) { return place * 2 + (place >> 2 & 1); }

// Where a chunk of a row lies, in bytes.
template <int WIDTH> __device__ __forceinline__ unsigned chunk_at(unsigned unit, unsigned chunk) {
    return WIDTH == 16 ? (unit ^ chunk) * 16 : unit / 2 * 16;
}

// Clear the rows that are read as zeros: nobody writes them; by a warp.
__device__ __forceinline__ void clear_zero_rows(const Areas &areas) {
    for (int number = 0; number < TILE_COUNT; number++)
        for (int plane = 0; plane < PLANES; plane++)
            for (int k = threadIdx.x % 32; k < FIRST_PLACE / 2 * SAMPLES / 8; k += 32)
                reinterpret_cast<float4 *>(areas.plane(number, plane))[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Split the rows of WIDTH slots from `slot` on into rows of a number, in the order of their places there.
template <int WIDTH>
__device__ __forceinline__ void load_rows(const float *rows, const Areas &areas, int number, int slot,
                                          const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8;
    const int neurons = static_cast<int>(layer.n_in);
    const unsigned short *order = layer.places + neurons; // the neuron at each place
    const float4 *source = reinterpret_cast<const float4 *>(rows + place(slot, 0, neurons));
#pragma unroll 2
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS) {
        const int chunk = k % CHUNKS;
        const float4 *from = source + order[k / CHUNKS] * (COLUMNS / 4) + chunk * 2;
        const float4 x = from[0], y = from[1];
        const unsigned at = chunk_at<WIDTH>(unit_of(FIRST_PLACE + k / CHUNKS), chunk);
        uint4 terms[PLANES];
        split(x.x, x.y, terms[0].x, terms[1].x, terms[2].x);
        split(x.z, x.w, terms[0].y, terms[1].y, terms[2].y);
        split(y.x, y.y, terms[0].z, terms[1].z, terms[2].z);
        split(y.z, y.w, terms[0].w, terms[1].w, terms[2].w);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            *reinterpret_cast<uint4 *>(areas.plane(number, plane) + at) = terms[plane];
    }
}

// Between two segments of this kernel a sample's values lie in one piece, n floats, n a multiple of 32, so that those
// of the few samples that live on are whole lines. They are in the order in which the layer before has them in its
// panels, and that within 32 is so that a warp moves 32 neurons of 8 samples as four matrices: lane 4 g + q has
// two times four neurons of sample g.
constexpr int GROUP = 32;

// Split such samples, of WIDTH slots from `slot` on, into rows. layer.places are in that order, too.
template <int WIDTH>
__device__ __forceinline__ void load_samples(const float *from, const Areas &areas, int number, int slot,
                                             const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8, APART = WARPS / CHUNKS * GROUP;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, neurons = static_cast<int>(layer.n_in);
    const int chunk = warp % CHUNKS;
    const unsigned tile = shared_address(shared, areas.rows(number));
    from += static_cast<i64>(slot + chunk * 8 + lane / 4) * neurons + lane % 4 * 4;
#pragma unroll 2
    for (int first = warp / CHUNKS * GROUP; first < neurons; first += APART) {
        const float4 x = *reinterpret_cast<const float4 *>(from + first);
        const float4 y = *reinterpret_cast<const float4 *>(from + first + GROUP / 2);
        const unsigned at = tile + chunk_at<WIDTH>(unit_of(__ldg(layer.places + first + lane)), chunk);
        unsigned words[PLANES][4];
        split(x.x, x.y, words[0][0], words[1][0], words[2][0]);
        split(x.z, x.w, words[0][1], words[1][1], words[2][1]);
        split(y.x, y.y, words[0][2], words[1][2], words[2][2]);
        split(y.z, y.w, words[0][3], words[1][3], words[2][3]);
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            store_turned(shared, at + plane * areas.plane_bytes, words[plane]);
    }
}

// Write samples with a slot of 0 or more so.
template <int WIDTH>
__device__ __forceinline__ void store_samples(float *to, const Areas &areas, int number, const int *slots,
                                              const Layer &layer) {
    constexpr int CHUNKS = WIDTH / 8, APART = WARPS / CHUNKS * GROUP;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, neurons = static_cast<int>(layer.n_out);
    const int chunk = warp % CHUNKS, slot = slots[chunk * 8 + lane / 4];
    const unsigned tile = shared_address(shared, areas.rows(number));
    to += static_cast<i64>(slot) * neurons + lane % 4 * 4;
#pragma unroll 2
    for (int first = warp / CHUNKS * GROUP; first < neurons; first += APART) {
        const unsigned at = tile + chunk_at<WIDTH>(unit_of(FIRST_PLACE + first + lane), chunk);
        unsigned words[PLANES][4];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            load_turned(shared, at + plane * areas.plane_bytes, words[plane]);
        float x[8];
#pragma unroll
        for (int m = 0; m < 4; m++) {
            x[2 * m] = joined(words[0][m] << 16, words[1][m] << 16, words[2][m] << 16);
            x[2 * m + 1] =
                joined(words[0][m] & 0xffff0000u, words[1][m] & 0xffff0000u, words[2][m] & 0xffff0000u);
        }
        if (slot >= 0) {
            store_global(reinterpret_cast<float4 *>(to + first), make_float4(x[0], x[1], x[2], x[3]));
            store_global(reinterpret_cast<float4 *>(to + first + GROUP / 2), make_float4(x[4], x[5], x[6], x[7]));
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
            unsigned ones[4]; // of bf16
#pragma unroll
            for (int pair = 0; pair < 4; pair++)
                ones[pair] = (both[pair] >> shift & 0x10001u) * 0x3f80u;
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
__device__ __forceinline__ void store_rows(float *rows, const Areas &areas, int number, const int *slots,
                                           const Layer &layer) {
    const int sample = threadIdx.x % WIDTH, slot = slots[sample], neurons = static_cast<int>(layer.n_out);
    if (slot < 0)
        return;
    float *target = rows + place(slot, 0, neurons);
#pragma unroll 4
    for (int neuron = threadIdx.x / WIDTH; neuron < neurons; neuron += THREADS / WIDTH) {
        const unsigned at = chunk_at<WIDTH>(unit_of(__ldg(layer.ends + neuron)), sample / 8) + sample % 8 * 2;
        unsigned terms[PLANES];
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++)
            terms[plane] = *reinterpret_cast<const unsigned short *>(areas.plane(number, plane) + at);
        target[neuron * COLUMNS] = joined(terms[0] << 16, terms[1] << 16, terms[2] << 16);
    }
}
