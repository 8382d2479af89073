// One layer over tiles in global memory, for layers too wide for shared memory.
//
// A lane is two neighbouring samples of a tile, a warp takes one panel (HEIGHT neurons that read the
// same inputs) over TILES tiles: for each edge it reads 256 bytes a tile, which serve all neurons of
// the panel, and the index and the weights, which serve all samples. Warps that run at the same time
// work on the same few tiles, so that their rows come from L2, and neighbouring warps on neighbouring
// panels, which often read the same rows, from L1.
//
// The indices of the next edges, of the next panel's first, and where the panel after that lies are
// read while rows are on their way: otherwise a warp would wait for memory three times, not once.
//
// Samples die, but their columns stay until enough are empty; `census` decides on the device, and
// `compact` moves the live ones together.
//
// Specialised by: HEIGHT (1, 8), TILES, BLOCKS (of a multiprocessor: the more, the fewer registers).
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int EDGES = HEIGHT == 1 ? 8 : 4; // read together; lists begin at multiples of 8

static_assert(HEIGHT == 1 || HEIGHT % 4 == 0, "weights are read four at a time");

// The inputs of EDGES edges, as they lie in memory: the same in every lane.
struct Indices {
    unsigned words[EDGES];

    __device__ __forceinline__ void load(const Layer &layer, const void *all, i64 edge) {
        const uint4 *from = static_cast<const uint4 *>(all);
        if (layer.wide) {
#pragma unroll
            for (int k = 0; k < EDGES; k += 4) {
                const uint4 four = __ldg(from + (edge + k) / 4);
                words[k] = four.x, words[k + 1] = four.y, words[k + 2] = four.z, words[k + 3] = four.w;
            }
        } else if constexpr (EDGES == 8) {
            const uint4 eight = __ldg(from + edge / 8);
            words[0] = eight.x, words[1] = eight.y, words[2] = eight.z, words[3] = eight.w;
        } else {
            const uint2 four = __ldg(static_cast<const uint2 *>(all) + edge / 4);
            words[0] = four.x, words[1] = four.y;
        }
    }

    __device__ __forceinline__ unsigned get(const Layer &layer, int k) const {
        return layer.wide ? words[k] : k % 2 ? words[k / 2] >> 16 : words[k / 2] & 0xffff;
    }
};

struct Work {
    i64 tile;
    i64 panel;
    List list;
};

// What a warp does `item`-th: all panels of some tiles before the next tiles. As each item writes 256
// bytes, 32 bits count them.
__device__ __forceinline__ Work work_of(const Panels &panels, i64 item, i64 items) {
    Work work = {0, 0, {0, 0, 0}};
    if (item < items) {
        const unsigned number = static_cast<unsigned>(item), count = static_cast<unsigned>(panels.count);
        work.tile = static_cast<i64>(number / count) * TILES;
        work.panel = number % count;
        work.list = panels.lists[work.panel];
    }
    return work;
}

// Multiply the rows of `count` edges into the sums.
template <bool EQUAL>
__device__ __forceinline__ void add_edges(const Layer &layer, const Panels &panels, const float2 *rows, i64 edge,
                                          int count, const Indices &indices, float2 (&totals)[HEIGHT][TILES]) {
    float2 x[EDGES][TILES];
    float weights[EDGES * HEIGHT];
#pragma unroll
    for (int k = 0; k < EDGES; k++) // past the last edge it is input 0, which is there
#pragma unroll
        for (int t = 0; t < TILES; t++)
            x[k][t] = __ldg(rows + (t * layer.n_in + indices.get(layer, k)) * (COLUMNS / 2));
    if (!EQUAL)
#pragma unroll
        for (int k = 0; k < EDGES * HEIGHT; k += 4) {
            const float4 four = __ldg(reinterpret_cast<const float4 *>(panels.weights + edge * HEIGHT + k));
            weights[k] = four.x, weights[k + 1] = four.y, weights[k + 2] = four.z, weights[k + 3] = four.w;
        }
#pragma unroll
    for (int k = 0; k < EDGES; k++)
        if (k < count)
#pragma unroll
            for (int h = 0; h < HEIGHT; h++)
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    const float weight = EQUAL ? layer.value : weights[k * HEIGHT + h];
                    totals[h][t].x = fmaf(x[k][t].x, weight, totals[h][t].x);
                    totals[h][t].y = fmaf(x[k][t].y, weight, totals[h][t].y);
                }
}

// Bias, activation, and out; marks the samples with a nonzero output, of each tile a word of even
// columns and one of odd ones.
__device__ __forceinline__ void finish(const Layer &layer, const Panels &panels, i64 panel, float2 *out, int tiles,
                                       unsigned *seen, const float2 (&totals)[HEIGHT][TILES]) {
    unsigned nonzero[TILES][2] = {};
#pragma unroll
    for (int h = 0; h < HEIGHT; h++) {
        const Target target = panels.targets[panel * HEIGHT + h];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float2 y;
            y.x = activate(layer, totals[h][t].x, target.bias);
            y.y = activate(layer, totals[h][t].y, target.bias);
            if (t < tiles)
                out[(t * layer.n_out + target.output) * (COLUMNS / 2)] = y;
            if (layer.droppable) {
                nonzero[t][0] |= nonzero_lanes(y.x);
                nonzero[t][1] |= nonzero_lanes(y.y);
            }
        }
    }
    if (layer.droppable && threadIdx.x % 32 == 0)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            for (int odd = 0; odd < 2; odd++)
                if (t < tiles && (nonzero[t][odd] & ~seen[t * 2 + odd])) // most panels tell nothing new
                    atomicOr(seen + t * 2 + odd, nonzero[t][odd]);
}

template <bool EQUAL>
__device__ __forceinline__ void run(const Layer &layer, const Panels &panels, const State &state, i64 segment) {
    const int lane = threadIdx.x % 32;
    const int from = state.buffer[segment];
    const i64 used = (static_cast<i64>(state.slots[segment]) + COLUMNS - 1) / COLUMNS;
    const i64 items = (used + TILES - 1) / TILES * panels.count;
    const i64 warps = static_cast<i64>(gridDim.x) * (THREADS / 32);
    const unsigned *masks = state.masks + segment * state.words;
    unsigned *nonzero = state.nonzero + segment * state.words;
    i64 item = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) / 32;
    Work work = work_of(panels, item, items);
    Indices indices;
    indices.load(layer, panels.indices, work.list.begin);
#pragma unroll 1
    for (; item < items; item += warps) {
        const Work next = work_of(panels, item + warps, items);
        const int tiles = used - work.tile < TILES ? static_cast<int>(used - work.tile) : TILES;
        unsigned live = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++)
            if (t < tiles)
                live |= masks[(work.tile + t) * 2] | masks[(work.tile + t) * 2 + 1];
        float2 totals[HEIGHT][TILES];
#pragma unroll
        for (int h = 0; h < HEIGHT; h++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                totals[h][t] = make_float2(0.0f, 0.0f);
        // Tiles past the last are read as far as the buffers go and never written.
        const i64 column = work.tile * (COLUMNS / 2);
        const float2 *rows = reinterpret_cast<const float2 *>(state.rows[from]) + column * layer.n_in + lane;
        float2 *out = reinterpret_cast<float2 *>(state.rows[1 - from]) + column * layer.n_out + lane;
        int left = live ? work.list.length : 0;
        i64 edge = work.list.begin;
#pragma unroll 1
        for (; left > EDGES; left -= EDGES) {
            Indices following;
            following.load(layer, panels.indices, edge + EDGES);
            add_edges<EQUAL>(layer, panels, rows, edge, EDGES, indices, totals);
            indices = following;
            edge += EDGES;
        }
        Indices following;
        following.load(layer, panels.indices, next.list.begin);
        if (left > 0)
            add_edges<EQUAL>(layer, panels, rows, edge, left, indices, totals);
        indices = following;
        if (live)
            finish(layer, panels, work.panel, out, tiles, nonzero + work.tile * 2, totals);
        work = next;
    }
}

// Run the panels of one height of a layer, number `segment` of the segments, over all tiles with a
// live sample.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    wide(const Layer *shared_layer, const State *shared_state, i64 segment) {
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    const Panels &panels = HEIGHT == 1 ? layer.single : layer.tall;
    if (blockIdx.x == 0 && threadIdx.x == 0 && state.began[segment] == 0)
        state.began[segment] = nanoseconds();
    if (layer.equal)
        run<true>(layer, panels, state, segment);
    else
        run<false>(layer, panels, state, segment);
}
