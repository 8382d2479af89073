// One layer over tiles in global memory, for layers too wide for shared memory.
//
// A lane is two neighbouring samples of a tile, a warp takes one panel (HEIGHT neurons that read the
// same inputs, or one neuron) over TILES tiles: for each edge it reads 256 bytes a tile, which serve
// all neurons of the panel, and the index and the weights, which serve all samples. Blocks that run
// at the same time work on the same few tiles, so that their rows come from L2.
//
// Samples die, but their columns stay until enough are empty; `census` decides on the device, and
// `compact` moves the live ones together.
//
// Specialised by: HEIGHT, TILES, BLOCKS (of a multiprocessor: the more, the fewer registers a thread).
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int PANELS = 4 * WARPS; // panels a block takes at a time

static_assert(HEIGHT % 4 == 0, "weights of a tall panel are read four at a time");

// Four indices, the same in every lane.
__device__ __forceinline__ void load_indices(const Layer &layer, const void *indices, i64 edge, unsigned *into) {
    if (layer.wide) {
        const uint4 four = __ldg(static_cast<const uint4 *>(indices) + edge / 4);
        into[0] = four.x, into[1] = four.y, into[2] = four.z, into[3] = four.w;
    } else {
        const uint2 two = __ldg(static_cast<const uint2 *>(indices) + edge / 4);
        into[0] = two.x & 0xffff, into[1] = two.x >> 16, into[2] = two.y & 0xffff, into[3] = two.y >> 16;
    }
}

// The inputs and weights of EDGES edges of a panel.
template <int H, int EDGES> struct Piece {
    float2 x[EDGES][TILES];
    float w[EDGES][H];

    template <bool EQUAL>
    __device__ __forceinline__ void load(const Layer &layer, const Panels &panels, const float2 *rows, i64 edge) {
        unsigned index[EDGES];
#pragma unroll
        for (int k = 0; k < EDGES; k += 4)
            load_indices(layer, panels.indices, edge + k, index + k);
#pragma unroll
        for (int k = 0; k < EDGES; k++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                x[k][t] = __ldg(rows + (t * layer.n_in + index[k]) * (COLUMNS / 2));
        if (!EQUAL)
#pragma unroll
            for (int k = 0; k < EDGES * H; k += 4) {
                const float4 four = __ldg(reinterpret_cast<const float4 *>(panels.weights + edge * H + k));
                float *into = &w[0][0] + k;
                into[0] = four.x, into[1] = four.y, into[2] = four.z, into[3] = four.w;
            }
    }

    template <bool EQUAL> __device__ __forceinline__ void add(float value, int edges, float2 (&totals)[H][TILES]) const {
#pragma unroll
        for (int k = 0; k < EDGES; k++)
            if (k < edges)
#pragma unroll
                for (int h = 0; h < H; h++)
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        const float weight = EQUAL ? value : w[k][h];
                        totals[h][t].x = fmaf(x[k][t].x, weight, totals[h][t].x);
                        totals[h][t].y = fmaf(x[k][t].y, weight, totals[h][t].y);
                    }
    }
};

// Compute one panel; ors into `nonzero` the samples of each tile with a nonzero output, even and odd
// ones apart.
template <int H, bool EQUAL>
__device__ __forceinline__ void run_panel(const Layer &layer, const Panels &panels, i64 panel, const float2 *rows,
                                          float2 *out, int tiles, unsigned (*nonzero)[2]) {
    constexpr int EDGES = H == 1 ? 8 : 4; // lists begin at multiples of 8
    const i64 begin = panels.lists[panel].begin;
    const int edges = panels.lists[panel].length;
    float2 totals[H][TILES];
#pragma unroll
    for (int h = 0; h < H; h++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            totals[h][t] = make_float2(0.0f, 0.0f);
    // What is read past the last edge is padding of the list: input 0, which is there.
#pragma unroll 1
    for (int edge = 0; edge < edges; edge += EDGES) {
        Piece<H, EDGES> piece;
        piece.template load<EQUAL>(layer, panels, rows, begin + edge);
        if (edge + EDGES <= edges)
            piece.template add<EQUAL>(layer.value, EDGES, totals);
        else
            piece.template add<EQUAL>(layer.value, edges - edge, totals);
    }
#pragma unroll
    for (int h = 0; h < H; h++) {
        const Target target = panels.targets[panel * H + h];
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
}

template <bool EQUAL>
__device__ __forceinline__ void run_any_panel(const Layer &layer, i64 panel, const float2 *rows, float2 *out, int tiles,
                                              unsigned (*nonzero)[2]) {
    if (panel < layer.tall.count)
        run_panel<HEIGHT, EQUAL>(layer, layer.tall, panel, rows, out, tiles, nonzero);
    else if (panel < layer.tall.count + layer.single.count)
        run_panel<1, EQUAL>(layer, layer.single, panel - layer.tall.count, rows, out, tiles, nonzero);
}

// Run a layer, number `segment` of the segments, over all tiles with a live sample.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    wide(const Layer *shared_layer, const State *shared_state, i64 segment) {
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int from = state.buffer[segment];
    const i64 used = (static_cast<i64>(state.slots[segment]) + COLUMNS - 1) / COLUMNS;
    const i64 chunks = (layer.tall.count + layer.single.count + PANELS - 1) / PANELS;
    const i64 items = (used + TILES - 1) / TILES * chunks;
    const unsigned *masks = state.masks + segment * state.words;
    unsigned *seen = state.nonzero + segment * state.words;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        state.began[segment] = nanoseconds();
    for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
        const i64 tile = item / chunks * TILES;
        const int tiles = used - tile < TILES ? static_cast<int>(used - tile) : TILES;
        unsigned live = 0, nonzero[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            nonzero[t][0] = nonzero[t][1] = 0;
            if (t < tiles)
                live |= masks[(tile + t) * 2] | masks[(tile + t) * 2 + 1];
        }
        if (live == 0)
            continue;
        // Tiles past the last are read as far as the buffers go and never written.
        const i64 column = tile * COLUMNS / 2;
        const float2 *rows = reinterpret_cast<const float2 *>(state.rows[from]) + column * layer.n_in + lane;
        float2 *out = reinterpret_cast<float2 *>(state.rows[1 - from]) + column * layer.n_out + lane;
#pragma unroll 1
        for (int k = warp; k < PANELS; k += WARPS) {
            const i64 panel = item % chunks * PANELS + k;
            if (layer.equal)
                run_any_panel<true>(layer, panel, rows, out, tiles, nonzero);
            else
                run_any_panel<false>(layer, panel, rows, out, tiles, nonzero);
        }
        if (lane == 0)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                for (int odd = 0; odd < 2; odd++)
                    if (t < tiles && (nonzero[t][odd] & ~seen[(tile + t) * 2 + odd])) // mostly nothing new
                        atomicOr(seen + (tile + t) * 2 + odd, nonzero[t][odd]);
    }
}
