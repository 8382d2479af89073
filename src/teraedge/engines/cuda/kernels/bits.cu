// The first layer from packed features, for layers too wide for the kernels that keep rows in shared memory.
//
// A block takes a tile of SAMPLES samples, turns their bits inside shared memory, a word an input, and lets a lane sum
// a neuron, or, where there are too few for all lanes, neighbouring ones, each for some samples. Where all weights are
// equal, words are counted: a few of them are added bit by bit, for all samples at once (carry-save adders), and all
// neurons of a panel have the same sum. Else a weight is added for each sample whose bit is set.
//
// Specialised by: SAMPLES (8, 16, 32), STORAGE, THREADS, BLOCKS (a multiprocessor, as registers allow).
#include "turning.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int EDGES = 8;       // that are read together; lists begin at multiples of it
constexpr int PLANES = 8;      // bits of a count
constexpr int MOST = 248;      // edges until it is full, whole pieces
constexpr int AHEAD = 4;       // reads of bits of a lane that are under way together

constexpr int MOST_PARTS = SAMPLES == 8 ? 2 : 4; // lanes that share an item

// The samples of a lane that shares an item with others: `SIDE` neighbours in each of some bytes of a word, so that two
// lanes write whole sectors.
template <int PARTS> struct Own {
    enum { COUNT = SAMPLES / PARTS, SIDE = PARTS == 1 ? 8 : 4, BYTES = COUNT / SIDE };
    int first; // sample of the tile

    __device__ __forceinline__ explicit Own(int part) : first(PARTS == 1 ? 0 : part % 2 * SIDE + part / 2 * 8 * BYTES) {}
    __device__ __forceinline__ int sample(int k) const { return first + k % SIDE + k / SIDE * 8; }
};
template <int PARTS> using Sums = float[Own<PARTS>::COUNT];

template <int COUNT> struct Unsigned;
template <> struct Unsigned<8> { typedef unsigned char Word; };
template <> struct Unsigned<16> { typedef unsigned short Word; };
template <> struct Unsigned<32> { typedef unsigned Word; };
typedef Unsigned<SAMPLES>::Word Word;

extern __shared__ uint4 space[]; // Word [n_in]

// What a lane sums: a panel, or a neuron of it.
struct Item {
    const Layer &layer;
    const Panels &panels;
    List list;
    i64 panel;
    int height, neuron; // neurons of the panel; which one, where it is summed alone
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

// Add counts, times a weight, to the sums of a lane, and begin anew.
template <int PARTS>
__device__ __forceinline__ void add_counts(unsigned (&planes)[PLANES], float weight, const Own<PARTS> &own, Sums<PARTS> &sums) {
    constexpr int SIDE = Own<PARTS>::SIDE;
#pragma unroll
    for (int side = 0; side < SIDE; side++) {
        unsigned bytes = 0; // of samples 8 apart
#pragma unroll
        for (int k = 0; k < PLANES; k++)
            bytes |= (planes[k] >> own.first >> side & 0x01010101) << k;
#pragma unroll
        for (int k = 0; k < Own<PARTS>::BYTES; k++)
            sums[side + SIDE * k] = fmaf(static_cast<float>(bytes >> 8 * k & 0xff), weight, sums[side + SIDE * k]);
    }
#pragma unroll
    for (int k = 0; k < PLANES; k++)
        planes[k] = 0;
}

// Sum the inputs of an item.
template <bool EQUAL, int PARTS>
__device__ __forceinline__ void sum_item(const Item &item, const Own<PARTS> &own, Sums<PARTS> &sums) {
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
                add_counts<PARTS>(planes, item.layer.value, own, sums), room = MOST;
        } else {
            const float *weights = item.panels.weights + (item.list.begin + done) * item.height + item.neuron;
#pragma unroll
            for (int k = 0; k < EDGES; k++) {
                const float weight = done + k < item.list.length ? __ldg(weights + k * item.height) : 0.0f;
#pragma unroll
                for (int c = 0; c < Own<PARTS>::COUNT; c++)
                    if (words[k] >> own.sample(c) & 1)
                        sums[c] += weight;
            }
        }
    }
    if constexpr (EQUAL)
        add_counts<PARTS>(planes, item.layer.value, own, sums);
}

// Finish a neuron: the activation, and its values to where the tile's lie; returns samples with a nonzero output.
template <int PARTS>
__device__ __forceinline__ unsigned write_neuron(const Item &item, int number, const Own<PARTS> &own, const Sums<PARTS> &sums,
                                                 Stored *tile) {
    const Target target = item.panels.targets[item.panel * item.height + number];
    Stored *out = tile + static_cast<i64>(target.output) * COLUMNS + own.first;
    unsigned some = 0;
#pragma unroll
    for (int begin = 0; begin < Own<PARTS>::COUNT; begin += 4) {
        const int at = own.sample(begin) - own.first; // the same in all lanes
        float y[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            y[k] = activate(item.layer, sums[begin + k], target.bias);
            some |= rounded(y[k]) != 0.0f ? 1u << (at + k) : 0u;
        }
        *reinterpret_cast<Four *>(out + at) = stored(make_float4(y[0], y[1], y[2], y[3]));
    }
    return some << own.first;
}

// Where the edges of an item begin, or none beyond the last.
template <bool EQUAL> __device__ __forceinline__ List list_of(const Panels &panels, int height, i64 number) {
    const i64 panel = EQUAL ? number : number / height;
    return panel < panels.count ? panels.lists[panel] : List{0, 0, 0};
}

// Run all panels of one height on a tile; returns the samples with a nonzero output that this lane has seen. Lists are
// read two items ahead, and what they lead to is brought near one ahead: each would have to be waited for.
template <bool EQUAL, int PARTS>
__device__ __forceinline__ unsigned run_items(const Layer &layer, const Panels &panels, int height, Stored *tile) {
    constexpr int STRIDE = THREADS / PARTS;
    const i64 items = panels.count * (EQUAL ? 1 : height);
    const Own<PARTS> own(threadIdx.x % PARTS);
    const int bytes = layer.wide ? 4 : 2; // of an index
    i64 number = threadIdx.x / PARTS;
    List list = list_of<EQUAL>(panels, height, number), next = list_of<EQUAL>(panels, height, number + STRIDE);
    unsigned some = 0;
#pragma unroll 1
    for (; number < items; number += STRIDE) {
        const List after = list_of<EQUAL>(panels, height, number + 2 * STRIDE);
        const i64 panel = EQUAL ? number : number / height, following = EQUAL ? number + STRIDE : (number + STRIDE) / height;
        if (following < panels.count) {
            touch(static_cast<const char *>(panels.indices) + next.begin * bytes);
            touch(panels.targets + following * height);
        }
        const Item item = {layer, panels, list, panel, height, EQUAL ? 0 : static_cast<int>(number - panel * height)};
        Sums<PARTS> sums = {};
        sum_item<EQUAL, PARTS>(item, own, sums);
        const int last = EQUAL ? height : item.neuron + 1;
#pragma unroll 1
        for (int neuron = item.neuron; neuron < last; neuron++)
            some |= write_neuron<PARTS>(item, neuron, own, sums, tile);
        list = next, next = after;
    }
    return some;
}

template <bool EQUAL>
__device__ __forceinline__ unsigned run_panels(const Layer &layer, const Panels &panels, int height, Stored *tile) {
    if (panels.count * (EQUAL ? 1 : height) < THREADS)
        return run_items<EQUAL, MOST_PARTS>(layer, panels, height, tile);
    return run_items<EQUAL, 1>(layer, panels, height, tile);
}

// Every other bit, side by side.
__device__ __forceinline__ unsigned even_bits(unsigned bits) {
    bits &= 0x55555555;
    bits = (bits | bits >> 1) & 0x33333333;
    bits = (bits | bits >> 2) & 0x0f0f0f0f;
    bits = (bits | bits >> 4) & 0x00ff00ff;
    return (bits | bits >> 8) & 0x0000ffff;
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
    for (i64 slot = static_cast<i64>(blockIdx.x) * SAMPLES; slot < slots; slot += static_cast<i64>(gridDim.x) * SAMPLES) {
        const unsigned running = state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(SAMPLES);
        if (running == 0)
            continue; // all threads alike
        __syncthreads(); // all have read the words of the tile before
        turn_samples<AHEAD>(state, ids, slot, running, layer.n_in, SAMPLES, WARPS,
                     [&](i64 neuron, unsigned own) { words[neuron] = static_cast<Word>(own); });
        __syncthreads();
        Stored *tile = state.rows[1 - from] + place(slot, 0, layer.n_out);
        unsigned some;
        if (layer.equal)
            some = run_panels<true>(layer, layer.single, 1, tile) | run_panels<true>(layer, layer.tall, static_cast<int>(height), tile);
        else
            some = run_panels<false>(layer, layer.single, 1, tile) | run_panels<false>(layer, layer.tall, static_cast<int>(height), tile);
        some = or_over_warp(some);
        if (layer.droppable && threadIdx.x % 32 == 0 && some) {
            unsigned *seen = state.nonzero + segment * state.words + slot / COLUMNS * 2;
            const int column = static_cast<int>(slot % COLUMNS) / 2;
            atomicOr(seen, even_bits(some) << column);
            atomicOr(seen + 1, even_bits(some >> 1) << column);
        }
    }
}
