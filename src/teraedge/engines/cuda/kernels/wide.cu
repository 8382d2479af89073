// One layer over tiles in global memory, for layers too wide for shared memory.
//
// A lane is two neighbouring samples of a tile, a warp takes one panel (HEIGHT neurons that read the
// same inputs) over TILES tiles: for each edge it reads a row of each, which serves all neurons of
// the panel, and the index and the weights, which serve all samples. Warps that run at the same time
// work on the same few tiles, so that their rows come from L2.
//
// That takes some 100 kilobytes under way at any time in each multiprocessor, more than registers can
// hold. So each warp has a ring in shared memory: rows are copied into it without waiting, STAGES - 1
// pieces of EDGES edges before they are used, from one panel on to the next.
//
// Of the first layer's inputs, if they are packed features, turned, a bit a sample comes instead of a row: what is
// to be read is a thirty-second, and rows need not be written at all.
//
// Samples die, but their columns stay until enough are empty; `census` decides on the device, and
// `compact` moves the live ones together.
//
// Specialised by: HEIGHT (1, 8, 16), TILES, STAGES, STORAGE, THREADS.
#include "common.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int EDGES = 8;                         // of a piece; lists begin at multiples of it
constexpr int ROW = COLUMNS * sizeof(Stored) / 16; // in 16 bytes: the samples of a tile
constexpr int APART = 32 / (TILES * ROW);        // edges that the lanes of a warp copy together
constexpr int PIECE = EDGES * TILES * ROW;       // rows of a piece: [edge][tile]
constexpr int STAGE = PIECE + EDGES * HEIGHT / 4; // and its weights

static_assert(EDGES * TILES * 2 == 32, "a lane brings half of the bits of an edge and a tile");
static_assert(TILES == 2 && (APART == 1 || APART == 2), "a copy of a warp is a row of each tile, for an edge or two");

extern __shared__ uint4 rings[]; // [WARPS][STAGES][STAGE]

// What a warp works on: a panel over some tiles, from `edge` on.
struct Cursor {
    i64 item, tile, panel, edge;
    int left;  // edges; 0 or less where all have been taken, or no sample is live
    int tiles; // of TILES, those that exist; 0 where no sample is live
};

struct Job {
    const Layer &layer;
    const Panels &panels;
    const Stored *rows; // what the layer reads
    Stored *out;
    const unsigned *masks; // live samples before the layer
    unsigned *nonzero;     // samples with a nonzero output, to be added to
    i64 used;              // tiles
    i64 items;
};

// Place a cursor at the start of item `item`: all panels of some tiles come before the next tiles. As
// each item writes 256 bytes or more, 32 bits count them.
__device__ __forceinline__ void start(const Job &job, Cursor &at) {
    at.left = at.tiles = 0;
    if (at.item >= job.items)
        return;
    const unsigned number = static_cast<unsigned>(at.item), count = static_cast<unsigned>(job.panels.count);
    at.tile = static_cast<i64>(number / count) * TILES;
    at.panel = number % count;
    unsigned live = 0;
#pragma unroll
    for (int t = 0; t < TILES; t++)
        if (at.tile + t < job.used)
            live |= job.masks[(at.tile + t) * 2] | job.masks[(at.tile + t) * 2 + 1];
    if (live == 0)
        return;
    at.tiles = job.used - at.tile < TILES ? static_cast<int>(job.used - at.tile) : TILES;
    const List list = job.panels.lists[at.panel];
    at.edge = list.begin;
    at.left = list.length;
}

// Queue the copies of the rows of a piece: for each edge, a part of the warp a tile, a lane 16 bytes of the row.
__device__ __forceinline__ void bring_rows(const Job &job, const Cursor &at, uint4 *stage, int lane) {
    unsigned index[EDGES];
    load_eight_indices(job.layer, job.panels, at.edge, index);
    const int tile = lane / ROW % TILES, odd = lane / (TILES * ROW);
    const uint4 *rows =
        reinterpret_cast<const uint4 *>(job.rows) + (at.tile + tile) * job.layer.n_in * ROW + lane % ROW;
#pragma unroll
    for (int k = 0; k < EDGES; k += APART)
        if (k + odd < at.left && tile < at.tiles)
            copy_async(stage + k * TILES * ROW + lane, rows + static_cast<i64>(index[k + (odd && APART > 1)]) * ROW);
}

// The same for bits, [edge][tile][half of the samples].
__device__ __forceinline__ void bring_bits(const Job &job, const Cursor &at, uint4 *stage, int lane) {
    const int k = lane / (TILES * 2), tile = lane / 2 % TILES;
    if (k >= at.left || tile >= at.tiles)
        return;
    const i64 edge = at.edge + k;
    const i64 index = job.layer.wide ? __ldg(static_cast<const unsigned *>(job.panels.indices) + edge)
                                     : __ldg(static_cast<const unsigned short *>(job.panels.indices) + edge);
    const unsigned *bits = reinterpret_cast<const unsigned *>(job.rows) + lane % 2;
    const unsigned offset = static_cast<unsigned>(reinterpret_cast<char *>(stage) - reinterpret_cast<char *>(rings));
    copy_async_to<4>(rings, shared_address(rings, offset + lane * 4), bits + ((at.tile + tile) * job.layer.n_in + index) * 2);
}

// Queue the copy of the next piece, if there is one, into a stage of the ring.
template <bool BITS>
__device__ __forceinline__ void bring(const Job &job, i64 warps, Cursor &at, uint4 *stage, int lane) {
    while (at.left <= 0 && at.item < job.items) {
        at.item += warps;
        start(job, at);
        if (at.left > 0 && lane < HEIGHT)
            touch(job.panels.targets + at.panel * HEIGHT + lane);
    }
    if (at.item < job.items) {
        if (BITS)
            bring_bits(job, at, stage, lane);
        else
            bring_rows(job, at, stage, lane);
        if (!job.layer.equal)
            for (int k = lane; k < EDGES * HEIGHT / 4; k += 32)
                copy_async(stage + PIECE + k,
                           reinterpret_cast<const uint4 *>(job.panels.weights + at.edge * HEIGHT) + k);
        at.edge += EDGES;
        at.left -= EDGES;
    }
    end_group(); // also where there is nothing: groups are counted
}

// The values of an edge of a piece for the samples of a lane, in one of the tiles.
template <bool BITS> __device__ __forceinline__ float2 input(const uint4 *stage, int k, int tile, int lane) {
    if (!BITS)
        return loaded(reinterpret_cast<const Two *>(stage)[(k * TILES + tile) * (COLUMNS / 2) + lane]);
    const unsigned bits = reinterpret_cast<const unsigned *>(stage)[(k * TILES + tile) * 2 + lane / 16] >> lane % 16 * 2;
    return make_float2(bits & 1 ? 1.0f : 0.0f, bits & 2 ? 1.0f : 0.0f);
}

// Multiply a piece into the sums.
template <bool EQUAL, bool BITS>
__device__ __forceinline__ void add_piece(float value, const uint4 *stage, int count, int lane,
                                          float2 (&totals)[HEIGHT][TILES]) {
    const float *weights = reinterpret_cast<const float *>(stage + PIECE);
#pragma unroll
    for (int k = 0; k < EDGES; k++)
        if (k < count) {
            float2 x[TILES];
#pragma unroll
            for (int t = 0; t < TILES; t++)
                x[t] = input<BITS>(stage, k, t, lane);
#pragma unroll
            for (int h = 0; h < HEIGHT; h++) {
                const float weight = EQUAL ? value : weights[k * HEIGHT + h];
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    totals[h][t].x = fmaf(x[t].x, weight, totals[h][t].x);
                    totals[h][t].y = fmaf(x[t].y, weight, totals[h][t].y);
                }
            }
        }
}

// Bias, activation, and out; marks the samples with a nonzero output, of each tile a word of even
// columns and one of odd ones.
__device__ __forceinline__ void finish(const Job &job, const Cursor &at, int lane,
                                       const float2 (&totals)[HEIGHT][TILES]) {
    unsigned nonzero[TILES][2] = {};
    Two *out = reinterpret_cast<Two *>(job.out) + at.tile * job.layer.n_out * (COLUMNS / 2) + lane;
#pragma unroll
    for (int h = 0; h < HEIGHT; h++) {
        const Target target = job.panels.targets[at.panel * HEIGHT + h];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float2 y;
            y.x = activate(job.layer, totals[h][t].x, target.bias);
            y.y = activate(job.layer, totals[h][t].y, target.bias);
            if (t < at.tiles)
                out[(t * job.layer.n_out + target.output) * (COLUMNS / 2)] = stored(y);
            if (job.layer.droppable) {
                nonzero[t][0] |= nonzero_lanes(y.x);
                nonzero[t][1] |= nonzero_lanes(y.y);
            }
        }
    }
    unsigned *seen = job.nonzero + at.tile * 2;
    if (job.layer.droppable && lane == 0)
#pragma unroll
        for (int t = 0; t < TILES; t++)
            for (int odd = 0; odd < 2; odd++)
                if (t < at.tiles && (nonzero[t][odd] & ~seen[t * 2 + odd])) // most panels tell nothing new
                    atomicOr(seen + t * 2 + odd, nonzero[t][odd]);
}

template <bool EQUAL, bool BITS> __device__ __forceinline__ void run(const Job &job) {
    const int lane = threadIdx.x % 32;
    uint4 *ring = rings + threadIdx.x / 32 * STAGES * STAGE;
    const i64 warps = static_cast<i64>(gridDim.x) * WARPS;
    Cursor now = {};
    now.item = static_cast<i64>(blockIdx.x) * WARPS + threadIdx.x / 32;
    Cursor ahead = now;
    start(job, ahead);
    int stage = 0;
    for (int k = 0; k < STAGES; k++)
        bring<BITS>(job, warps, ahead, ring + k * STAGE, lane);
#pragma unroll 1
    for (; now.item < job.items; now.item += warps) {
        start(job, now);
        float2 totals[HEIGHT][TILES];
#pragma unroll
        for (int h = 0; h < HEIGHT; h++)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                totals[h][t] = make_float2(0.0f, 0.0f);
#pragma unroll 1
        for (; now.left > 0; now.left -= EDGES) {
            wait_for_groups<STAGES - 1>();
            __syncwarp(); // what the other lanes copied is there too
            add_piece<EQUAL, BITS>(job.layer.value, ring + stage * STAGE, now.left, lane, totals);
            __syncwarp(); // all have read it
            bring<BITS>(job, warps, ahead, ring + stage * STAGE, lane);
            stage = stage + 1 < STAGES ? stage + 1 : 0;
        }
        if (now.tiles)
            finish(job, now, lane, totals);
    }
}

template <bool BITS> __device__ __forceinline__ void run(const Job &job) {
    if (job.layer.equal)
        run<true, BITS>(job);
    else
        run<false, BITS>(job);
}

// Run the panels of one height of a layer, number `segment` of the segments, over all tiles with a
// live sample. `takes_bits`: 1 if the inputs may be packed features, 2 if bits.cu takes such.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    wide(const Layer *shared_layer, const State *shared_state, i64 segment, i64 takes_bits) {
    const Layer &layer = *shared_layer;
    const State &state = *shared_state;
    if (takes_bits == 2 && state.bits)
        return;
    const Panels &panels = HEIGHT == 1 ? layer.single : layer.tall;
    const int from = state.buffer[segment];
    const i64 used = (static_cast<i64>(state.slots[segment]) + COLUMNS - 1) / COLUMNS;
    const i64 offset = segment * state.words;
    const Job job = {layer,
                     panels,
                     state.rows[from],
                     state.rows[1 - from],
                     state.masks + offset,
                     state.nonzero + offset,
                     used,
                     (used + TILES - 1) / TILES * panels.count};
    note_begin(state, segment);
    if (takes_bits && state.bits)
        run<true>(job);
    else
        run<false>(job);
}
