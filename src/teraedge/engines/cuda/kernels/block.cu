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
// How many samples a tile has, 8 or more, up to SAMPLES, follows from how many there are: few are spread over
// all multiprocessors.
//
// Activations that are stored as fp16 or bf16 are multiplied as they are: one plane, so that more samples fit.
//
// Specialised by: SAMPLES (8, 16, 32: the most that fit), TERMS (1, 2, 3: terms of a weight; 0: all weights of a layer
// are equal), HELD (panels of a warp at most where there is one tile, 0 where there are two), STORAGE, THREADS.
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

// What the layers of all tiles of a block follow each other with: the first layer of a tile follows on the last one
// of the tile before.
struct Going {
    int number; // of the layer that runs, over all tiles
    int rows;   // number of the rows that the next layer reads
    Records records;
    Weights weights;
    Panel panel;

    // Begin with the first layer of a segment.
    __device__ __forceinline__ void begin(const Segment &segment, Tile &now) {
        wait_for_copies(); // of before
        __syncthreads();
        for (int k = 0; k < LAYERS_AHEAD; k++)
            load_layer(now.layers + (number + k) % PLACES, opaque(segment.layers) + k % segment.count, threadIdx.x);
        wait_for_copies();
        __syncthreads();
        records.begin(number);
        weights.begin(now.layers[number % PLACES]);
        panel.read(records.take(now.layers[number % PLACES]));
    }
};

// Take the tile through a layer; ors the samples with a nonzero output into now.nonzero.
template <int WIDTH, int TERMS_IN>
__device__ __forceinline__ void run_layer(const Layer &layer, const Areas &areas, Going &going, Tile &now) {
    constexpr int TILES = WIDTH / 8;
    const Task<TILES> task(layer, going.weights, areas, going.rows);
    Seen<TILES> some;
    if (HELD)
        run_held_panels<TILES, TERMS_IN>(task, going.records, going.panel, some);
    else
        run_panels<TILES, TERMS_IN>(task, going.records, going.panel, some);
    if (!layer.droppable)
        return;
    const unsigned live = __reduce_or_sync(ALL_LANES, some.samples());
    if (threadIdx.x % 32 == 0 && live)
        atomicOr(now.nonzero + going.number % 3, live);
}

// Find the next tile with live samples, from a slot on, by turns with other blocks: all tiles take about as long. By
// one thread.
template <int WIDTH>
__device__ __forceinline__ void find_tile(const State &state, i64 segment, int slot, Turn &turn) {
    const int total = static_cast<int>(state.slots[segment]), stride = static_cast<int>(gridDim.x) * WIDTH;
    unsigned running = 0;
    for (; slot < total; slot += stride) {
        running = state.masks[segment * state.words + slot / WORD] >> slot % WORD & first_bits(WIDTH);
        if (running)
            break;
    }
    turn.slot = slot, turn.running = running;
}

// Bring the inputs of a tile into the rows of a number.
template <int WIDTH>
__device__ __forceinline__ void load_inputs(const State &state, const Segment &segment, const Areas &areas, int number,
                                            const Turn &turn) {
    const Layer &layer = segment.layers[0];
    const Stored *rows = state.rows[state.buffer[opaque(segment.number)]];
    if (packed(state, segment))
        load_bits<WIDTH>(state, areas, number, turn, layer);
    else if (segment.takes_samples)
        load_samples<WIDTH>(rows, areas, number, turn.slot, layer);
    else
        load_rows<WIDTH>(rows, areas, number, turn.slot, layer);
}

// Have what load_inputs will read brought near, in two stages: what says where it is, and it itself; by a warp.
template <int WIDTH>
__device__ __forceinline__ void touch_inputs(const State &state, const Segment &segment, int stage, Turn &turn,
                                             const Layer &layer) {
    if (turn.running == 0)
        return;
    if (packed(state, segment)) {
        touch_bits<WIDTH>(state, stage, turn, layer.n_in);
    } else if (segment.takes_samples && stage) {
        const Stored *rows = state.rows[state.buffer[opaque(segment.number)]] + turn.slot * layer.n_in;
        for (i64 at = threadIdx.x % 32 * LINE; at < static_cast<i64>(WIDTH * layer.n_in * sizeof(Stored)); at += 32 * LINE)
            touch(reinterpret_cast<const char *>(rows) + at);
    }
}

// Take a tile of WIDTH samples that is there through the layers, as long as some live; returns which do.
template <int WIDTH>
__device__ __forceinline__ unsigned run_layers(const State &state, const Segment &segment, const Areas &areas,
                                               Going &going, Tile &now, Turn *turns) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned live = ALL_LANES;
    int done = 0;
#pragma unroll 1
    for (; done < segment.count && live; done++, going.number++, going.rows++) {
        const int number = going.number;
        const Layer &layer = now.layers[number % PLACES];
        const bool errands = warp == number % WARPS;
        if (errands) { // the copies join the group of the next records
            load_layer(now.layers + (number + LAYERS_AHEAD) % PLACES,
                       segment.layers + (done + LAYERS_AHEAD) % segment.count, lane);
            if (lane == 0)
                now.nonzero[(number + 1) % 3] = 0; // read last before the barrier before this layer
            if (done == 0)
                touch_inputs<WIDTH>(state, segment, 0, turns[now.turn], layer);
            if (done == (segment.count > 1))
                touch_inputs<WIDTH>(state, segment, 1, turns[now.turn], segment.layers[0]);
        }
        if (ONE_TERM && done == 0 && packed(state, segment))
            run_layer<WIDTH, 1>(layer, areas, going, now);
        else
            run_layer<WIDTH, PLANES>(layer, areas, going, now);
        going.weights.begin(now.layers[(number + 1) % PLACES]);
        const bool droppable = layer.droppable; // a later layer may take its place from here on
        __syncthreads(); // every output has been written, and nonzero samples are known
        const unsigned ran = now.before[number % 2];
        live = droppable ? ran & now.nonzero[number % 3] : ran;
        if (errands && lane == 0) {
            count(state, segment.first + done, ran, live, now);
            if (done + 1 < segment.count)
                now.before[(number + 1) % 2] = live; // read after the next barrier
        }
    }
    if (done == 1 && segment.count > 1) { // all died before it was known where the next inputs are
        if (warp == 0)
            touch_inputs<WIDTH>(state, segment, 1, turns[now.turn], segment.layers[0]);
        __syncthreads();
    }
    return live;
}

// Take all tiles of WIDTH samples through the segment. While the rows of one are written to memory, the inputs of
// the next one come, and its first layer is known.
template <int WIDTH>
__device__ __forceinline__ void run_tiles(const State &state, const Segment &segment, const Areas &areas,
                                          Asked *asked, Tile &now, Turn *turns) {
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0) {
            now.turn = 0, now.nonzero[0] = 0;
            find_tile<WIDTH>(state, segment.number, static_cast<int>(blockIdx.x) * WIDTH, turns[0]);
        }
        __syncwarp();
        touch_inputs<WIDTH>(state, segment, 1, turns[0], segment.layers[0]);
    }
    __syncthreads();
    Going going = {0, 0, Records(areas, now.layers, asked[threadIdx.x / 32])};
    bool more = turns[0].running != 0;
    if (more)
        load_inputs<WIDTH>(state, segment, areas, 0, turns[0]), going.begin(segment, now);
    while (more) {
        if (threadIdx.x == 0) {
            const Turn &turn = turns[now.turn];
            now.slot = turn.slot, now.before[going.number % 2] = turn.running, now.began = nanoseconds();
            now.turn ^= 1; // last read before the barrier after the layers of the tile before
            find_tile<WIDTH>(state, opaque(segment.number), turn.slot + static_cast<int>(gridDim.x) * WIDTH,
                             turns[now.turn]);
        }
        __syncthreads(); // the inputs are there, and rows before them have been written
        const unsigned live = run_layers<WIDTH>(state, segment, areas, going, now, turns);
        if (live && threadIdx.x < 32) {
            if (threadIdx.x == 0)
                now.running = live;
            __syncwarp();
            claim_slots(state, opaque(segment.number), now, WIDTH, segment.moves);
        }
        const Turn &next = turns[now.turn];
        const int rows = going.rows++;
        more = next.running != 0;
        if (!HELD && more)
            load_inputs<WIDTH>(state, segment, areas, going.rows, next);
        __syncthreads(); // slots are known
        if (live) {
            Stored *to = state.rows[1 - state.buffer[opaque(segment.number)]];
            const Layer &last = segment.layers[segment.count - 1];
            if (segment.gives_samples)
                store_samples<WIDTH>(to, areas, rows, now.slots, last);
            else
                store_rows<WIDTH>(to, areas, rows, now.slots, last);
        }
        if (HELD && more) {
            __syncthreads(); // rows have been written
            load_inputs<WIDTH>(state, segment, areas, going.rows, next);
        }
        if (!live && more) // the tile has not come to its end, where the first layer would be known
            going.begin(segment, now);
    }
    wait_for_copies(); // that nobody needs
}

// The same with as many samples a tile, at most WIDTH, as leave no multiprocessor without one.
template <int WIDTH>
__device__ __forceinline__ void run_spread(const State &state, const Segment &segment, const Areas &areas, Asked *asked,
                                           Tile &now, Turn *turns) {
    if constexpr (WIDTH > 8)
        if (state.slots[opaque(segment.number)] <= gridDim.x * (WIDTH / 2))
            return run_spread<WIDTH / 2>(state, segment, areas, asked, now, turns);
    run_tiles<WIDTH>(state, segment, areas, asked, now, turns);
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
    __shared__ Turn turns[2];
    const State &state = *shared_state;
    // Arguments are kept as they are: they cost no registers.
    const Segment own = {layers, first, segment, layer_count, moves, takes_bits, takes_samples, gives_samples};
    const Areas areas = {static_cast<int>(plane_bytes), static_cast<int>(record_bytes)};
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    if (threadIdx.x < 32)
        clear_zero_rows(areas);
    run_spread<SAMPLES>(state, own, areas, asked, now, turns);
}
