// The first layer from packed features, for layers too wide for the kernels that keep rows in shared memory.
//
// A block takes a tile of SAMPLES samples, turns their bits inside shared memory, a word an input, and lets a lane sum
// a neuron for all of them. Where all weights are equal, words are counted: a few of them are added bit by bit, for
// 32 samples at once (carry-save adders), and all neurons of a panel have the same sum. Else a weight is added for each
// sample whose bit is set. Outputs go through shared memory, so that a warp writes whole rows.
//
// Specialised by: SAMPLES (8, 16, 32), STORAGE, THREADS, BLOCKS (a multiprocessor, as registers allow).
#include "turning.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int EDGES = 8;       // that are read together; lists begin at multiples of it
constexpr int PLANES = 8;      // bits of a count
constexpr int MOST = 248;      // edges until it is full, whole pieces
constexpr int AHEAD = SAMPLES == 32 ? 2 : 4; // reads of bits of a lane that are under way together, as registers allow

constexpr int CHUNKS = SAMPLES / 4; // of a row of outputs, four samples each

template <int COUNT> struct Unsigned;
template <> struct Unsigned<8> { typedef unsigned char Word; };
template <> struct Unsigned<16> { typedef unsigned short Word; };
template <> struct Unsigned<32> { typedef unsigned Word; };
typedef Unsigned<SAMPLES>::Word Word;

extern __shared__ uint4 space[]; // Word [n_in], Four [WARPS][32][CHUNKS]

// What a lane sums: a panel, or a neuron of it.
struct Item {
    const Layer &layer;
    const Panels &panels;
    List list;
    int height, neuron; // neurons of the panel; the first that is summed
};

// The words of eight edges from a multiple of eight on; zero for those beyond the list.
__device__ __forceinline__ void read_words(const Item &item, int done, unsigned (&words)[EDGES]) {
    const Word *bits = reinterpret_cast<const Word *>(space);
    const i64 edge = item.list.begin + done;
    unsigned index[EDGES];
    load_eight_indices(item.layer, item.panels, edge, index);
#pragma unroll
    for (int k = 0; k < EDGES; k++)
        words[k] = done + k < item.list.length ? bits[index[k]] : 0;
}

// sum and carry of three bits, 32 times.
__device__ __forceinline__ void add_bits(unsigned a, unsigned b, unsigned c, unsigned &sum, unsigned &carry) {
    sum = a ^ b ^ c;
    carry = (a & b) | (c & (a | b));
}

// Add eight words, bit by bit, to counts: a plane has a bit of each.
__device__ __forceinline__ void count_words(const unsigned (&w)[EDGES], unsigned (&planes)[PLANES]) {
    unsigned one[2], two[4], four[2];
    add_bits(w[0], w[1], w[2], one[0], two[0]);
    add_bits(w[3], w[4], w[5], one[1], two[1]);
    add_bits(w[6], w[7], one[0], one[0], two[2]);
    add_bits(planes[0], one[0], one[1], planes[0], two[3]);
    add_bits(two[0], two[1], two[2], two[0], four[0]);
    add_bits(planes[1], two[0], two[3], planes[1], four[1]);
    unsigned carry;
    add_bits(planes[2], four[0], four[1], planes[2], carry);
#pragma unroll
    for (int k = 3; k < PLANES; k++) {
        const unsigned over = planes[k] & carry;
        planes[k] ^= carry;
        carry = over;
    }
}

// Add counts, times a weight, to sums, and begin anew.
__device__ __forceinline__ void add_counts(unsigned (&planes)[PLANES], float weight, float (&sums)[SAMPLES]) {
#pragma unroll
    for (int shift = 0; shift < 8; shift++) {
        unsigned bytes = 0; // of samples shift, shift + 8, ...
#pragma unroll
        for (int k = 0; k < PLANES; k++)
            bytes |= (planes[k] >> shift & 0x01010101) << k;
#pragma unroll
        for (int k = 0; k < SAMPLES / 8; k++)
            sums[shift + 8 * k] = fmaf(static_cast<float>(bytes >> 8 * k & 0xff), weight, sums[shift + 8 * k]);
    }
#pragma unroll
    for (int k = 0; k < PLANES; k++)
        planes[k] = 0;
}

// Sum the inputs of an item.
template <bool EQUAL> __device__ __forceinline__ void sum_item(const Item &item, float (&sums)[SAMPLES]) {
    unsigned planes[PLANES] = {};
    int room = MOST; // edges that may be counted before counts are full
#pragma unroll 1
    for (int done = 0; done < item.list.length; done += EDGES) {
        unsigned words[EDGES];
        read_words(item, done, words);
        if constexpr (EQUAL) {
            count_words(words, planes);
            room -= EDGES;
            if (room == 0)
                add_counts(planes, item.layer.value, sums), room = MOST;
        } else {
            const float *weights = item.panels.weights + (item.list.begin + done) * item.height + item.neuron;
#pragma unroll
            for (int k = 0; k < EDGES; k++) {
                const float weight = done + k < item.list.length ? __ldg(weights + k * item.height) : 0.0f;
#pragma unroll
                for (int s = 0; s < SAMPLES; s++)
                    if (words[k] >> s & 1)
                        sums[s] += weight;
            }
        }
    }
    if constexpr (EQUAL)
        add_counts(planes, item.layer.value, sums);
}

// Where a chunk of a lane's row is put, so that eight that are read or written together lie in different banks.
__device__ __forceinline__ int chunk_of(int lane, int chunk) { return lane * CHUNKS + (chunk ^ lane * CHUNKS / 8 % CHUNKS); }

// Finish a neuron of each lane, that of `target`, if it is one: the activation, and its values to where the tile's lie;
// returns samples with a nonzero output. `stage`: where the warp's part of shared memory begins.
__device__ __forceinline__ unsigned write_rows(const Layer &layer, const Target &target, const float (&sums)[SAMPLES],
                                               int stage, Stored *tile) {
    Four *rows = reinterpret_cast<Four *>(space) + stage;
    const int lane = threadIdx.x % 32;
    unsigned some = 0;
    __syncwarp(); // rows before have been read
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        float y[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            y[k] = activate(layer, sums[chunk * 4 + k], target.bias);
        const Four four = stored(make_float4(y[0], y[1], y[2], y[3]));
        const float4 left = loaded(four);
        const unsigned nonzero = (left.x != 0.0f) | (left.y != 0.0f) << 1 | (left.z != 0.0f) << 2 | (left.w != 0.0f) << 3;
        some |= nonzero << chunk * 4;
        rows[chunk_of(lane, chunk)] = four;
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const int of = (k * 32 + lane) / CHUNKS, output = __shfl_sync(ALL_LANES, target.output, of);
        if (output >= 0)
            *reinterpret_cast<Four *>(tile + static_cast<i64>(output) * COLUMNS + lane % CHUNKS * 4) =
                rows[chunk_of(of, lane % CHUNKS)];
    }
    return target.output >= 0 ? some : 0;
}

// Run all panels of one height on a tile; returns the samples with a nonzero output that this lane has seen. Lists are
// read two items ahead, and what they lead to is brought near one ahead: each would have to be waited for.
template <bool EQUAL>
__device__ __forceinline__ unsigned run_panels(const Layer &layer, const Panels &panels, int height, int stage, Stored *tile) {
    const int together = EQUAL && panels.count * 2 > THREADS ? height : 1; // neurons of an item
    const int each = height / together;                                    // items of a panel
    const int items = static_cast<int>(panels.count) * each;
    const auto list_of = [&](int number) { return number < items ? panels.lists[number / each] : List{0, 0, 0}; };
    const int bytes = layer.wide ? 4 : 2; // of an index
    int number = threadIdx.x;
    List list = list_of(number), next = list_of(number + THREADS);
    unsigned some = 0;
#pragma unroll 1
    for (; number / 32 * 32 < items; number += THREADS) { // a warp as a whole
        const List after = list_of(number + 2 * THREADS);
        if (number + THREADS < items) {
            touch(static_cast<const char *>(panels.indices) + next.begin * bytes);
            touch(panels.targets + static_cast<i64>(number + THREADS) * together);
        }
        const Item item = {layer, panels, list, height, number % each * together};
        float sums[SAMPLES] = {};
        sum_item<EQUAL>(item, sums);
#pragma unroll 1
        for (int k = 0; k < together; k++) {
            const Target target = number < items ? panels.targets[static_cast<i64>(number) * together + k] : Target{-1, 0.0f};
            some |= write_rows(layer, target, sums, stage, tile);
        }
        list = next, next = after;
    }
    return some;
}

// Every other bit, side by side.
__device__ __forceinline__ unsigned even_bits(unsigned bits) {
    bits &= 0x55555555;
    bits = (bits | bits >> 1) & 0x33333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff;
    return (bits | bits >> 8) & 0x0000ffff;
}

// Have the bits of a tile brought near, while the one before is summed.
__device__ __forceinline__ void touch_bits(const State &state, const int *ids, i64 slot, i64 slots, i64 n) {
    constexpr int LINE = 128, LANES_EACH = THREADS / SAMPLES; // threads that share a sample
    const i64 own = slot + threadIdx.x / LANES_EACH;
    if (own >= slots)
        return;
    const unsigned char *from = state.bits + (ids[own] - state.first) * state.bits_stride;
    for (i64 at = threadIdx.x % LANES_EACH * LINE; at < (n + 7) / 8; at += LANES_EACH * LINE)
        touch_far(from + at);
}

// Run the first layer on packed features, if they are; tall panels have `height` neurons. What comes out is what the
// wide kernel would leave.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    bits(const Layer *shared_layer, const State *shared_state, i64 segment, i64 height) {
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    if (!state.bits)
        return;
    note_begin(state, segment);
    const int from = state.buffer[segment];
    const i64 slots = state.slots[segment];
    const int *ids = state.ids[state.order[segment]];
    Word *words = reinterpret_cast<Word *>(space);
    const int stage = static_cast<int>((layer.n_in * sizeof(Word) + 15) / 16 * (16 / sizeof(Four))) + threadIdx.x / 32 * 32 * CHUNKS;
    for (i64 slot = static_cast<i64>(blockIdx.x) * SAMPLES; slot < slots; slot += static_cast<i64>(gridDim.x) * SAMPLES) {
        const unsigned running = state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(SAMPLES);
        if (running == 0)
            continue; // all threads alike
        __syncthreads(); // all have read the words of the tile before
        turn_samples<AHEAD>(state, ids, slot, running, layer.n_in, SAMPLES, WARPS,
                     [&](i64 neuron, unsigned own) { words[neuron] = static_cast<Word>(own); });
        __syncthreads();
        touch_bits(state, ids, slot + static_cast<i64>(gridDim.x) * SAMPLES, slots, layer.n_in);
        Stored *tile = state.rows[1 - from] + place(slot, 0, layer.n_out);
        const int tall = static_cast<int>(height);
        unsigned some;
        if (layer.equal)
            some = run_panels<true>(layer, layer.single, 1, stage, tile) | run_panels<true>(layer, layer.tall, tall, stage, tile);
        else
            some = run_panels<false>(layer, layer.single, 1, stage, tile) | run_panels<false>(layer, layer.tall, tall, stage, tile);
        some = or_over_warp(some);
        if (layer.droppable && threadIdx.x % 32 == 0 && some) {
            unsigned *seen = state.nonzero + segment * state.words + slot / COLUMNS * 2;
            const int column = static_cast<int>(slot % COLUMNS) / 2;
            atomicOr(seen, even_bits(some) << column);
            atomicOr(seen + 1, even_bits(some >> 1) << column);
        }
    }
}
