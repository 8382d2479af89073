// One layer over tiles in global memory, for layers too wide for shared memory.
//
// A lane is a sample, a warp takes one panel (HEIGHT neurons that read the same inputs, or one
// neuron) over TILES tiles: for each edge it reads a 128-byte line a tile, which serves all neurons
// of the panel, and the index and the weights, which serve all samples. Blocks that run at the same
// time work on the same few tiles, so that lines come from L2.
//
// Samples die, but their columns stay until enough are empty; `census` decides on the device, and
// `compact` moves the live ones together.
//
// Specialised by: HEIGHT, TILES.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int PANELS = 4 * WARPS; // panels a block takes at a time
constexpr int AHEAD = 4;          // edges loaded together; lists begin at multiples of it

// The indices of AHEAD edges, the same in every lane.
__device__ __forceinline__ void load_indices(const Layer &layer, const Panels &panels, i64 edge, unsigned *into) {
    if (layer.wide) {
        const uint4 four = __ldg(reinterpret_cast<const uint4 *>(panels.indices) + edge / 4);
        into[0] = four.x, into[1] = four.y, into[2] = four.z, into[3] = four.w;
    } else {
        const uint2 two = __ldg(reinterpret_cast<const uint2 *>(panels.indices) + edge / 4);
        into[0] = two.x & 0xffff, into[1] = two.x >> 16, into[2] = two.y & 0xffff, into[3] = two.y >> 16;
    }
}

template <int H> __device__ __forceinline__ void load_weights(const float *weights, i64 edge, float *into) {
    if (H % 4 == 0) {
#pragma unroll
        for (int k = 0; k < H / 4; k++) {
            const float4 four = __ldg(reinterpret_cast<const float4 *>(weights + edge * H) + k);
            into[4 * k] = four.x, into[4 * k + 1] = four.y, into[4 * k + 2] = four.z, into[4 * k + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int k = 0; k < H; k++)
            into[k] = __ldg(weights + edge * H + k);
    }
}

// Multiply `edges` of AHEAD edges into totals[H][TILES].
template <int H, bool EQUAL>
__device__ __forceinline__ void add_edges(const Layer &layer, const Panels &panels, const float *rows, i64 edge,
                                          int edges, float (&totals)[H][TILES]) {
    unsigned index[AHEAD];
    float x[AHEAD][TILES];
    load_indices(layer, panels, edge, index);
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        if (k < edges)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                x[k][t] = __ldg(rows + (t * layer.n_in + index[k]) * LINE);
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
        if (k < edges) {
            float w[H];
            if (!EQUAL)
                load_weights<H>(panels.weights, edge + k, w);
#pragma unroll
            for (int h = 0; h < H; h++)
#pragma unroll
                for (int t = 0; t < TILES; t++)
                    totals[h][t] = fmaf(x[k][t], EQUAL ? layer.value : w[h], totals[h][t]);
        }
}

// Compute one panel; ors into `nonzero` the samples of each tile with a nonzero output.
template <int H, bool EQUAL>
__device__ __forceinline__ void run_panel(const Layer &layer, const Panels &panels, i64 panel, const float *rows,
                                          float *out, int tiles, unsigned *nonzero) {
    const i64 begin = panels.starts[panel];
    const int edges = panels.lengths[panel];
    float totals[H][TILES];
#pragma unroll
    for (int h = 0; h < H; h++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            totals[h][t] = 0.0f;
    const int whole = edges / AHEAD * AHEAD;
    for (int k = 0; k < whole; k += AHEAD)
        add_edges<H, EQUAL>(layer, panels, rows, begin + k, AHEAD, totals);
    if (whole < edges)
        add_edges<H, EQUAL>(layer, panels, rows, begin + whole, edges - whole, totals);
#pragma unroll
    for (int h = 0; h < H; h++) {
        const int output = panels.outputs[panel * H + h];
        const float bias = layer.bias[output];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const float y = activate(layer, totals[h][t], bias);
            if (t < tiles)
                out[(t * layer.n_out + output) * LINE] = y;
            nonzero[t] |= nonzero_lanes(y);
        }
    }
}

// Run a layer, number `segment` of the segments, over all tiles with a live sample.
extern "C" __global__ void __launch_bounds__(THREADS)
    wide(const Layer *shared_layer, const State *shared_state, i64 segment) {
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int from = state.buffer[segment];
    const i64 used = (static_cast<i64>(state.slots[segment]) + LINE - 1) / LINE;
    const i64 panels = layer.tall.count + layer.single.count;
    const i64 chunks = (panels + PANELS - 1) / PANELS;
    const i64 items = (used + TILES - 1) / TILES * chunks;
    const unsigned *masks = state.masks + segment * state.tiles;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        state.began[segment] = nanoseconds();
    for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
        const i64 tile = item / chunks * TILES;
        const int tiles = used - tile < TILES ? used - tile : TILES;
        unsigned live = 0, nonzero[TILES];
        for (int t = 0; t < TILES; t++) {
            nonzero[t] = 0;
            live |= t < tiles ? masks[tile + t] : 0;
        }
        if (live == 0)
            continue;
        // Tiles past the last are read as far as the buffers go and never written.
        const float *rows = state.rows[from] + tile * layer.n_in * LINE + lane;
        float *out = state.rows[1 - from] + tile * layer.n_out * LINE + lane;
        const i64 first = item % chunks * PANELS + warp;
        for (int k = 0; k < PANELS; k += WARPS) {
            const i64 panel = first + k;
            if (panel < layer.tall.count) {
                if (layer.equal)
                    run_panel<HEIGHT, true>(layer, layer.tall, panel, rows, out, tiles, nonzero);
                else
                    run_panel<HEIGHT, false>(layer, layer.tall, panel, rows, out, tiles, nonzero);
            } else if (panel < panels) {
                const i64 single = panel - layer.tall.count;
                if (layer.equal)
                    run_panel<1, true>(layer, layer.single, single, rows, out, tiles, nonzero);
                else
                    run_panel<1, false>(layer, layer.single, single, rows, out, tiles, nonzero);
            }
        }
        if (lane == 0)
            for (int t = 0; t < tiles; t++) {
                unsigned *seen = state.nonzero + segment * state.tiles + tile + t;
                if (nonzero[t] & ~*seen) // most neurons tell nothing new
                    atomicOr(seen, nonzero[t]);
            }
    }
}
