// Several layers at a time over a tile of samples in shared memory, on tensor cores: for layers whose
// neurons share their inputs.
//
// A *panel* is 16 neurons that read the same inputs; a *step* multiplies 16 of those inputs into them,
// for all samples of the tile, in fp32 as sums of bf16 terms (mma.cuh). A warp takes its panels one after
// the other, and inputs that the next panel reads too are multiplied into that at the same time, so that
// they are read and split once. There are two tiles, for inputs and outputs in turn, or, where a layer is
// too wide for that, one.
//
// A row of the tile is one neuron, WIDTH floats; a unit is what a lane reads of it, WIDTH / 8 floats,
// eight a row. Lane 4 g + q reads unit g of four rows, and so its four neighbours read four rows at the
// same time: those lie in four different quarters of the banks if their places differ modulo 4, which
// the plan sees to (plan/block.py). An *address*, 4 * place + 2 * (place / 2 % 2), tells where a row lies
// and where in it its units are, for every width.
//
// Nothing is read from memory when it is needed. All of a layer but its weights comes in as a whole while
// layers before it run (the *head* of a layer); of weights each warp has a ring of RING fragments. Such errands
// are for a warp of its own, or, where registers are short, for each warp in turn.
//
// How many samples a tile has, 8 or SAMPLES, follows from how many there are: few are spread over all
// multiprocessors.
//
// Specialised by: SAMPLES (8, 16: the most that fit), TERMS (1, 2, 3: bf16 terms of a weight; 0: all
// weights of a layer are equal, and one term is enough), THREADS (512, 32 more for errands), RING, HEADS (2, 3: layers there is room
// for), HELD (panels of a warp at most where there is one tile, 0 where there are two).
#include "block_steps.cuh"

// Take the tile through a layer, number `number` of the segment, by a warp that computes; ors the samples with
// a nonzero output into now.nonzero[number % 3].
template <int WIDTH>
__device__ __forceinline__ void run_layer(const Layer &layer, const Layer *following, const Areas &areas, Ring &ring,
                                          int number, Tile &now) {
    constexpr int TILES = WIDTH / 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    Task<TILES> task = {layer, Head(areas, number, layer.rounds, layer.steps, warp, lane), ring};
    task.own = lane / 4 * (TILES * 4), task.write_at = quarter * (TILES * 8);
    task.from = kept(in_row_units<WIDTH>(shared_address(shared, areas.rows_offset(number))) * 0x10001);
    task.to = kept(in_row_units<WIDTH>(shared_address(shared, areas.rows_offset(number + 1))));
    load_units(task.from, load_shared<uint2>(shared, task.head.addresses), task.own, task.x);
    task.addresses = load_shared<uint2>(shared, task.head.addresses + STEP * 2);
    task.head.addresses += 2 * STEP * 2;
    if (TERMS) {
        ring.look_to(following, warp, lane);
    } else {
        const unsigned both = upper_halves(layer.value, layer.value);
        task.equal = make_uint4(kept(both), kept(both), kept(both), kept(both));
    }
    unsigned some[TILES][2] = {};
    if (HELD)
        run_held_panels(task, some);
    else
        run_panels(task, some);
    if (TERMS)
        ring.turn(following);
    if (!layer.droppable)
        return;
    unsigned live = 0;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 2; k++) // -0 is zero
            live |= (some[t][k] << 1 ? 1u : 0u) << ((2 * quarter + k) * TILES + t);
    live = __reduce_or_sync(ALL_LANES, live);
    if (lane == 0 && live)
        atomicOr(now.nonzero + number % 3, live);
}

// Have come what later layers need: a head that is needed HEADS - 1 layers later, and what tells where that
// of another is. These copies are a group.
__device__ __forceinline__ void look_ahead(const Layer *layers, int number, int layer_count, const Areas &areas, Tile &now) {
    constexpr int PLACES = LAYERS_AHEAD + 1;
    if (number + HEADS - 1 < layer_count)
        load_head(now.layers[(number + HEADS - 1) % PLACES], areas.head(number + HEADS - 1));
    if (number + LAYERS_AHEAD < layer_count)
        load_layer(now.layers + (number + LAYERS_AHEAD) % PLACES, layers + number + LAYERS_AHEAD, threadIdx.x % 32);
    end_group();
}

// Take all tiles of WIDTH samples through the segment.
template <int WIDTH>
__device__ __forceinline__ void run_tiles(const State &state, const Layer *layers, i64 first, int layer_count,
                                          i64 segment, bool moves, bool bits, const Areas &areas, Tile &now) {
    constexpr int PLACES = LAYERS_AHEAD + 1;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool computes = warp < WARPS;
    constexpr bool APART = THREADS > WARPS * 32; // errands have a warp of their own
    while (claim_tile(state, segment, layers, layer_count, WIDTH, now)) {
        if (bits)
            load_bits<WIDTH>(state, areas.rows(0), now.slot, layers[0].n_in, layers[0].places);
        else
            load_rows<WIDTH>(state.rows[state.buffer[segment]], areas.rows(0), now.slot, layers[0].n_in,
                             layers[0].places);
        if (warp == THREADS / 32 - 1) {
            clear_zero_rows<WIDTH>(areas.rows(0), layers[0].n_in);
            for (int k = 0; k < HEADS - 1 && k < layer_count; k++)
                load_head(layers[k], areas.head(k));
        }
        begin_tile(now);
        Ring ring(areas, warp, lane);
        if (TERMS && computes)
            ring.begin(layers[0], warp, lane);
        unsigned running = now.running;
#pragma unroll 1
        for (int done = 0; done < layer_count && running; done++) {
            const Layer &layer = now.layers[done % PLACES];
            const bool droppable = layer.droppable; // a later layer may take its place after this one
            const bool errands = warp == (APART ? WARPS : done % WARPS);
            if (errands) {
                if (lane == 0)
                    now.nonzero[(done + 1) % 3] = 0; // read last before the barrier before this layer
                look_ahead(layers, done, layer_count, areas, now);
            }
            if (computes) {
                const Layer *following = done + 1 < layer_count ? now.layers + (done + 1) % PLACES : nullptr;
                run_layer<WIDTH>(layer, following, areas, ring, done, now);
            }
            if (errands) {
                clear_zero_rows<WIDTH>(areas.rows(done + 1), layer.n_out); // for the layer after this one
                wait_for_groups<HEADS - 2>(); // stricter than needed where weights are on their way, too
            }
            __syncthreads(); // every output has been written, nonzero samples are known, and heads are there
            const unsigned ran = running;
            if (droppable)
                running &= now.nonzero[done % 3];
            if (errands && lane == 0)
                count(state, first + done, ran, running, now);
        }
        wait_for_copies(); // for a layer that nobody lived to see
        if (running == 0)
            continue;
        if (threadIdx.x == 0)
            now.running = running;
        __syncwarp();
        claim_slots(state, segment, now, WIDTH, moves);
        __syncthreads();
        store_rows<WIDTH>(state.rows[1 - state.buffer[segment]], areas.rows(layer_count), now.slots,
                          layers[layer_count - 1].n_out);
    }
}

// Run layers[0] to layers[layer_count - 1], number `first` and following of the network, as `segment`.
// `moves`: dead samples are dropped at the end; else every sample keeps its slot. `takes_bits`: the inputs
// may be packed features. Then the bytes of a tile and of a head, of whatever layer takes most.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    block(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 takes_bits, i64 tile_bytes, i64 head_bytes) {
    __shared__ Tile now;
    const State &state = *shared_state;
    const int layers_in_all = static_cast<int>(layer_count);
    const Areas areas = {static_cast<int>(tile_bytes), static_cast<int>(head_bytes)};
    const bool bits = takes_bits && state.bits;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    if (SAMPLES > 8 && state.slots[segment] > gridDim.x * 8)
        run_tiles<SAMPLES>(state, layers, first, layers_in_all, segment, moves, bits, areas, now);
    else
        run_tiles<8>(state, layers, first, layers_in_all, segment, moves, bits, areas, now);
}
