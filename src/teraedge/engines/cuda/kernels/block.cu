// Several layers at a time over a tile of samples in shared memory, on tensor cores: for layers whose
// neurons share their inputs.
//
// A *panel* is 16 neurons that read the same inputs; a *step* multiplies 16 of those inputs into them,
// for all samples of the tile, in fp32 as sums of bf16 terms (mma.cuh). A warp takes its panels one after
// the other; inputs that the next panel reads too are multiplied into that at the same time, so that they
// are read once. There are two tiles, for inputs and outputs in turn, or, to save room, one.
//
// Values are split into their terms once, when they are written. So the tile has a plane for each term, with
// the rows of neurons, WIDTH values of 16 bits each, and tensor cores are fed by matrices of 8 rows that may
// lie anywhere. Eight rows that are read at the same time lie in different banks if their places differ
// modulo 8, which the plan sees to (plan/block.py).
//
// Nothing is read from memory when it is needed: what there is to know of a panel comes in some panels ahead
// as a *record*, weights some pieces ahead, and the sizes of layers by each warp in turn.
//
// How many samples a tile has, 8 or SAMPLES, follows from how many there are: few are spread over all
// multiprocessors.
//
// Specialised by: SAMPLES (8, 16: the most that fit), TERMS (1, 2, 3: bf16 terms of a weight; 0: all
// weights of a layer are equal, and one term is enough), THREADS, HELD (panels of a warp at most where there is
// one tile, 0 where there are two).
#include "block_steps.cuh"

// What a launch runs.
struct Segment {
    const Layer *layers;
    i64 first, number; // of its layers in the network, and its own
    i64 count;         // of layers
    i64 moves;         // whether dead samples are dropped at the end
    i64 takes_bits, takes_samples, gives_samples; // whether inputs may be packed features, samples each in one piece
};

// Tell whether a segment begins with packed features.
__device__ __forceinline__ bool packed(const State &state, const Segment &segment) {
    return segment.takes_bits && state.bits;
}

// Take the tile through a layer, number `number` of the segment, by a warp that computes; ors the samples with
// a nonzero output into now.nonzero[number % 3].
template <int WIDTH, int TERMS_IN>
__device__ __forceinline__ void run_layer(const Layer &layer, const Areas &areas, Records &records, Weights &weights,
                                          Panel &panel, int number, Tile &now) {
    constexpr int TILES = WIDTH / 8;
    const int lane = threadIdx.x % 32;
    const Task<TILES> task(layer, weights, areas, number);
    unsigned some[TILES][2] = {};
    if (HELD)
        run_held_panels<TILES, TERMS_IN>(task, records, panel, some);
    else
        run_panels<TILES, TERMS_IN>(task, records, panel, some);
    if (!layer.droppable)
        return;
    unsigned live = 0;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 2; k++) // -0 is zero
            live |= (some[t][k] << 1 ? 1u : 0u) << (t * 8 + lane % 4 * 2 + k);
    live = __reduce_or_sync(ALL_LANES, live);
    if (lane == 0 && live)
        atomicOr(now.nonzero + number % 3, live);
}

// Take a tile of WIDTH samples that is there through layers, as long as some live; returns which do.
template <int WIDTH>
__device__ __forceinline__ unsigned run_layers(const State &state, const Segment &segment, const Areas &areas,
                                               Records &records, Weights &weights, Tile &now) {
    constexpr int PLACES = LAYERS_AHEAD + 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Panel panel;
    panel.read(records.take(now.layers[0]));
    unsigned ran = now.before[0];
#pragma unroll 1
    for (int done = 0; done < segment.count && ran; done++) {
        const Layer &layer = now.layers[done % PLACES];
        const bool errands = warp == done % WARPS;
        if (errands) { // the copies join the group of the next records
            if (done + LAYERS_AHEAD < segment.count)
                load_layer(now.layers + (done + LAYERS_AHEAD) % PLACES, segment.layers + done + LAYERS_AHEAD, lane);
            if (lane == 0)
                now.nonzero[(done + 1) % 3] = 0; // read last before the barrier before this layer
            if (done < 2 && packed(state, segment))
                touch_bits<WIDTH>(state, static_cast<int>(now.slot + gridDim.x * WIDTH), done, layer.n_in);
        }
        if (ONE_TERM && done == 0 && packed(state, segment))
            run_layer<WIDTH, 1>(layer, areas, records, weights, panel, done, now);
        else
            run_layer<WIDTH, PLANES>(layer, areas, records, weights, panel, done, now);
        if (done + 1 < segment.count)
            weights.begin(now.layers[(done + 1) % PLACES]);
        const bool droppable = layer.droppable; // a later layer may take its place from here on
        __syncthreads(); // every output has been written, and nonzero samples are known
        ran = now.before[done % 2];
        const unsigned live = droppable ? ran & now.nonzero[done % 3] : ran;
        if (errands && lane == 0) {
            count(state, segment.first + done, ran, live, now);
            now.before[(done + 1) % 2] = live; // read after the next barrier
        }
        ran = live;
    }
    return ran;
}

// Take all tiles of WIDTH samples through the segment, by turns with other blocks: all tiles take about as long.
template <int WIDTH>
__device__ __forceinline__ void run_tiles(const State &state, const Segment &segment, const Areas &areas,
                                          Asked *asked, Tile &now) {
    const int stride = static_cast<int>(gridDim.x) * WIDTH;
    if (threadIdx.x == 0) // kept in shared memory: layers need all registers
        now.slot = static_cast<i64>(blockIdx.x) * WIDTH - stride;
    for (;;) {
        __syncthreads(); // all are done with the tile before
        int slot = static_cast<int>(now.slot);
        const unsigned running = next_tile<WIDTH>(state, opaque(segment.number), stride, slot);
        if (running == 0)
            break;
        for (int k = 0; k < LAYERS_AHEAD && k < segment.count; k++)
            load_layer(now.layers + k, opaque(segment.layers) + k, threadIdx.x);
        wait_for_copies();
        __syncthreads();
        Records records(areas, now.layers, segment.count, asked[threadIdx.x / 32]);
        Weights weights;
        weights.begin(now.layers[0]);
        if (packed(state, segment))
            load_bits<WIDTH>(state, areas, slot, segment.layers[0]);
        else if (segment.takes_samples)
            load_samples<WIDTH>(state.rows[state.buffer[segment.number]], areas, slot, segment.layers[0]);
        else
            load_rows<WIDTH>(state.rows[state.buffer[segment.number]], areas, slot, segment.layers[0]);
        if (threadIdx.x == 0) {
            now.slot = slot, now.before[0] = running, now.began = nanoseconds();
            now.nonzero[0] = now.nonzero[1] = now.nonzero[2] = 0;
        }
        __syncthreads();
        const unsigned live = run_layers<WIDTH>(state, segment, areas, records, weights, now);
        wait_for_copies(); // for layers that nobody lived to see
        if (live == 0)
            continue;
        if (threadIdx.x == 0)
            now.running = live;
        __syncwarp();
        claim_slots(state, opaque(segment.number), now, WIDTH, segment.moves);
        __syncthreads();
        float *rows = state.rows[1 - state.buffer[segment.number]];
        const Layer &last = segment.layers[segment.count - 1];
        if (segment.gives_samples)
            store_samples<WIDTH>(rows, areas, segment.count, now.slots, last);
        else
            store_rows<WIDTH>(rows, areas, segment.count, now.slots, last);
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `takes_bits`: the inputs
// may be packed features. `takes_samples`, `gives_samples`: the samples before and after it lie in one piece
// each. Then the bytes of a plane of a tile and of a record, of whatever layer takes most.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    block(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 takes_bits, i64 takes_samples, i64 gives_samples, i64 plane_bytes, i64 record_bytes) {
    __shared__ Tile now;
    __shared__ Asked asked[WARPS];
    const State &state = *shared_state;
    // Arguments are kept as they are: they cost no registers.
    const Segment own = {layers, first, segment, layer_count, moves, takes_bits, takes_samples, gives_samples};
    const Areas areas = {static_cast<int>(plane_bytes), static_cast<int>(record_bytes)};
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    if (threadIdx.x < 32)
        clear_zero_rows(areas);
    if (SAMPLES > 8 && state.slots[segment] > gridDim.x * 8)
        run_tiles<SAMPLES>(state, own, areas, asked, now);
    else
        run_tiles<8>(state, own, areas, asked, now);
}
