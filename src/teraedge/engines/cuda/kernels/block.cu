// Several layers at a time over a tile of samples in shared memory, on tensor cores: for layers whose
// neurons share their inputs.
//
// A *panel* is 16 neurons that read the same inputs; a *step* multiplies 16 of those inputs into them,
// for all samples of the tile, in fp32 as sums of bf16 terms (mma.cuh). A warp has its panels for itself;
// their steps lie one after the other in memory, as its *stream*. There are two tiles, for inputs and
// outputs in turn, or, where a layer is too wide for that, one.
//
// A row of the tile is one neuron, SAMPLES floats; a unit is what a lane reads of it, SAMPLES / 8 floats,
// eight a row. Lane 4 g + q reads unit g of four rows, and so its four neighbours read four rows at the
// same time: those lie in four different quarters of the banks if their places differ modulo 4, which
// the plan sees to (plan/block.py). What little of a place decides where in a row its units lie is in
// the address that the plan gives, 8 * place + 2 * (place % 4), for every width of a tile.
//
// Nothing is read from memory when it is needed: biases, places of outputs and lengths of lists come in
// as a whole while the layer before runs (the *head* of a layer), and each warp has a ring of RING steps.
//
// How many samples a tile has, 8 to SAMPLES, follows from how many there are: few are spread over
// all multiprocessors.
//
// Specialised by: SAMPLES (8, 16, 32: the most that fit), TERMS (1, 2, 3: bf16 terms of a weight),
// THREADS, RING, HELD (panels of a warp at most where there is one tile, 0 where there are two).
#include "mma.cuh"
#include "tiles.cuh"

constexpr int WARPS = THREADS / 32;
constexpr int PANEL = 16, STEP = 16;
constexpr int ZERO_ROWS = 4; // behind the last neuron: padding

constexpr int TILE_COUNT = HELD ? 1 : 2;

extern __shared__ float4 shared[]; // tiles [places][WIDTH / 4], heads of two layers, rings of all warps

// What shared memory is for, in bytes; the same for all layers of a segment.
struct Areas {
    int tile_bytes, head_bytes, step_bytes;

    // The rows that a layer reads, of that number in the segment; those it writes are of the next.
    __device__ __forceinline__ char *rows(int number) const {
        return reinterpret_cast<char *>(shared) + number % TILE_COUNT * tile_bytes;
    }
    __device__ __forceinline__ char *head(int number) const {
        return reinterpret_cast<char *>(shared) + TILE_COUNT * tile_bytes + number % 2 * head_bytes;
    }
    __device__ __forceinline__ char *ring(int warp) const {
        return head(0) + 2 * head_bytes + warp * RING * step_bytes;
    }
};

// ---------------------------------------------------------------- the tile

// What of an address tells where in a row of so many samples units lie.
template <int WIDTH> constexpr __device__ unsigned address_mask() {
    return WIDTH == 32 ? 0xffffu : WIDTH == 16 ? 0xfffdu : 0xfff9u;
}

__device__ __forceinline__ unsigned address_of(unsigned place) { return place * 8 + (place & 3) * 2; }

// The first of the rows of zeros.
__device__ __forceinline__ unsigned zero_place(i64 neurons) { return static_cast<unsigned>(neurons + 3) & ~3u; }

// Where a sample of a row lies, in floats.
template <int WIDTH> __device__ __forceinline__ int float_at(unsigned place, int sample) {
    constexpr int UNIT = WIDTH / 8;
    const unsigned unit = (address_of(place) & address_mask<WIDTH>()) ^ (sample / UNIT);
    return static_cast<int>(unit) * UNIT + sample % UNIT;
}

template <int WIDTH> __device__ __forceinline__ void clear_zero_rows(char *rows, i64 neurons) {
    float4 *zeros = reinterpret_cast<float4 *>(rows) + zero_place(neurons) * (WIDTH / 4);
    for (int k = threadIdx.x; k < ZERO_ROWS * WIDTH / 4; k += THREADS)
        zeros[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Copy the rows of WIDTH slots from `slot` on into the tile, each to its place.
template <int WIDTH>
__device__ __forceinline__ void load_rows(const float *rows, char *into, i64 slot, i64 neurons,
                                          const unsigned short *places) {
    constexpr int CHUNKS = WIDTH / 4;
    const float4 *source = reinterpret_cast<const float4 *>(rows + place(slot, 0, neurons));
    for (int k = threadIdx.x; k < neurons * CHUNKS; k += THREADS) {
        const int neuron = k / CHUNKS, chunk = k % CHUNKS;
        copy_async(into + float_at<WIDTH>(places[neuron], chunk * 4) * 4, source + neuron * (COLUMNS / 4) + chunk);
    }
}

// Spread packed 0/1 features of the samples from `slot` on into the tile.
template <int WIDTH>
__device__ __forceinline__ void load_bits(const State &state, char *into, i64 slot, i64 neurons,
                                          const unsigned short *places) {
    float *values = reinterpret_cast<float *>(into);
    const int sample = threadIdx.x % WIDTH;
    const bool there = slot + sample < state.slots[0];
    const unsigned char *bits = state.bits + (slot + sample) * state.bits_stride;
    for (int byte = threadIdx.x / WIDTH; byte * 8 < neurons; byte += THREADS / WIDTH) {
        const unsigned eight = there ? bits[byte] : 0;
        for (int k = 0; k < 8 && byte * 8 + k < neurons; k++)
            values[float_at<WIDTH>(places[byte * 8 + k], sample)] = static_cast<float>(eight >> (7 - k) & 1);
    }
}

// Write the rows of samples with a slot of 0 or more to their slots; every neuron lies at its number.
template <int WIDTH>
__device__ __forceinline__ void store_rows(float *rows, const char *from, const int *slots, i64 neurons) {
    const float *values = reinterpret_cast<const float *>(from);
    const int sample = threadIdx.x % WIDTH, slot = slots[sample];
    if (slot < 0)
        return;
    float *target = rows + place(slot, 0, neurons);
    for (int neuron = threadIdx.x / WIDTH; neuron < neurons; neuron += THREADS / WIDTH)
        target[static_cast<i64>(neuron) * COLUMNS] = values[float_at<WIDTH>(neuron, sample)];
}

// ---------------------------------------------------------------- what comes from memory

// What a layer tells of its panels, in the order of warps and their rounds.
struct Head {
    const float *biases;           // [panel][16]
    const unsigned short *outputs; // [panel][16] places; NO_OUTPUT where there is none
    const int *lengths;            // [panel] steps

    __device__ __forceinline__ Head(const char *bytes, int rounds, int warp) {
        const int panels = WARPS * rounds, first = warp * rounds;
        biases = reinterpret_cast<const float *>(bytes) + first * PANEL;
        outputs = reinterpret_cast<const unsigned short *>(bytes + panels * PANEL * 4) + first * PANEL;
        lengths = reinterpret_cast<const int *>(bytes + panels * PANEL * 6) + first;
    }
};

constexpr unsigned NO_OUTPUT = 0xffff;

// Bring the head of a layer into shared memory, without waiting.
__device__ __forceinline__ void load_head(const Layer &layer, char *into) {
    const int chunks = WARPS * layer.rounds * (PANEL * 6 + 4) / 16;
    for (int k = threadIdx.x; k < chunks; k += THREADS)
        copy_async(into + k * 16, static_cast<const uint4 *>(layer.head) + k);
}

// The steps of a warp on their way from memory: four times four addresses, and the weights. Of the
// copies of a lane each step is a group.
struct Ring {
    char *slots;
    int step_bytes;
    const uint4 *rows;    // of this layer's stream: two a step
    const uint4 *weights; // TERMS * 32 a step, this lane's
    int steps;            // of the stream; one more may be read
    bool equal;

    __device__ __forceinline__ Ring(const Areas &areas, int warp) : slots(areas.ring(warp)), step_bytes(areas.step_bytes) {}

    __device__ __forceinline__ char *slot(int step) const { return slots + step % RING * step_bytes; }

    __device__ __forceinline__ void fetch(int step, int lane) {
        if (step <= steps) {
            char *into = slot(step);
            if (lane < 2)
                copy_async(into + lane * 16, rows + step * 2 + lane);
            if (!equal)
#pragma unroll
                for (int t = 0; t < TERMS; t++)
                    copy_async(into + 32 + (t * 32 + lane) * 16, weights + (step * TERMS + t) * 32);
        }
        end_group();
    }

    // Turn to a layer's stream, and have its first steps come. No copy may be under way.
    __device__ __forceinline__ void turn_to(const Layer &layer, int warp, int lane) {
        steps = layer.steps, equal = layer.equal;
        rows = static_cast<const uint4 *>(layer.tall.indices) + warp * steps * 2;
        weights = reinterpret_cast<const uint4 *>(layer.tall.weights) + static_cast<i64>(warp) * steps * TERMS * 32 + lane;
#pragma unroll
        for (int step = 0; step < RING - 1; step++)
            fetch(step, lane);
    }

    __device__ __forceinline__ uint2 addresses(int step, int lane) const {
        return reinterpret_cast<const uint2 *>(slot(step))[lane % 4];
    }
};

// ---------------------------------------------------------------- steps

// A unit of a row.
template <int TILES>
__device__ __forceinline__ void load_unit(const char *rows, unsigned address, unsigned group, float (&x)[TILES]) {
    const unsigned unit = (address & address_mask<TILES * 8>()) ^ group;
    if constexpr (TILES == 4) {
        const float4 four = reinterpret_cast<const float4 *>(rows)[unit];
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else if constexpr (TILES == 2) {
        const float2 two = reinterpret_cast<const float2 *>(rows)[unit];
        x[0] = two.x, x[1] = two.y;
    } else {
        x[0] = reinterpret_cast<const float *>(rows)[unit];
    }
}

// What a lane reads of the tile in a step: a unit of each of its four rows.
template <int TILES>
__device__ __forceinline__ void load_units(const char *rows, uint2 addresses, unsigned group, float (&x)[4][TILES]) {
    load_unit(rows, addresses.x & 0xffff, group, x[0]);
    load_unit(rows, addresses.x >> 16, group, x[1]);
    load_unit(rows, addresses.y & 0xffff, group, x[2]);
    load_unit(rows, addresses.y >> 16, group, x[3]);
}

template <int TILES> __device__ __forceinline__ void copy_sums(float (&to)[TILES][4], const float (&from)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            to[t][k] = from[t][k];
}

// Multiply a step into `large` and `small` sums. Before that, `fetch` reads what the next step needs into
// x, which has been split by then, so that it arrives while tensor cores work.
template <int TILES, class Weights, class Fetch>
__device__ __forceinline__ void multiply(Weights weights, float (&x)[4][TILES], float (&large)[TILES][4],
                                         float (&small)[TILES][4], Fetch fetch) {
    unsigned low[TILES][3], high[TILES][3];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        split(x[0][t], x[1][t], low[t][0], low[t][1], low[t][2]);
        split(x[2][t], x[3][t], high[t][0], high[t][1], high[t][2]);
    }
    fetch();
#pragma unroll
    for (int of = TERMS - 1; of >= 0; of--) { // the terms of weights, each with as many of x as matter
        const uint4 w = weights(of);
#pragma unroll
        for (int with = 2 - of; with >= 0; with--)
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply_add(of + with ? small[t] : large[t], w, low[t][with], high[t][with]);
    }
}

// ---------------------------------------------------------------- layers

// What a warp has at hand of a layer while that runs.
struct Task {
    const Layer &layer;
    Head head;
    Ring &ring;
    int lane, group, quarter;
    const char *from; // rows of the inputs
    char *to;         // and of the outputs
    int step;         // the next of the stream
};

// Sum a panel, number `h` of the warp, and apply the activation. x holds the units of its first step, and is
// left with those of the step after its last.
template <int TILES, bool EQUAL>
__device__ __forceinline__ void compute_panel(Task &task, int h, float (&x)[4][TILES], float (&sums)[TILES][4]) {
    const unsigned both = upper_halves(task.layer.value, task.layer.value);
    const uint4 equal = make_uint4(both, both, both, both); // one term is enough for them
    Ring &ring = task.ring;
    float small[TILES][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            sums[t][k] = small[t][k] = 0.0f;
    const int end = task.step + task.head.lengths[h];
#pragma unroll 1
    for (; task.step < end; task.step++) {
        wait_for_groups<RING - 3>();
        __syncwarp(); // this step and the next are there, and all lanes are done with the one before
        ring.fetch(task.step + RING - 1, task.lane);
        const char *slot = ring.slot(task.step);
        multiply(
            [&](int term) {
                return EQUAL ? equal : *reinterpret_cast<const uint4 *>(slot + 32 + (term * 32 + task.lane) * 16);
            },
            x, sums, small, [&] { load_units(task.from, ring.addresses(task.step + 1, task.lane), task.group, x); });
    }
    const float *biases = task.head.biases + h * PANEL + task.group;
    const float bias[2] = {biases[0], biases[8]};
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            sums[t][k] = activate(task.layer, sums[t][k] + small[t][k], bias[k / 2]);
}

// Write the units 2 quarter and 2 quarter + 1 of a row.
template <int TILES>
__device__ __forceinline__ void write_units(char *rows, int place, int group, int quarter, const float (&units)[2][TILES]) {
    float *values = reinterpret_cast<float *>(rows);
    const int at = float_at<TILES * 8>(place, 2 * quarter * TILES);
    if constexpr (TILES == 4) {
        // Even rows begin with the even unit, odd ones with the odd one: in other banks.
        const bool odd = group & 1;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float four[4];
#pragma unroll
            for (int t = 0; t < 4; t++)
                four[t] = odd ? units[1 - k][t] : units[k][t];
            *reinterpret_cast<float4 *>(values + (at ^ (odd == (k == 0) ? 4 : 0))) =
                make_float4(four[0], four[1], four[2], four[3]);
        }
    } else if constexpr (TILES == 2) {
        *reinterpret_cast<float4 *>(values + at) = make_float4(units[0][0], units[0][1], units[1][0], units[1][1]);
    } else {
        *reinterpret_cast<float2 *>(values + at) = make_float2(units[0][0], units[1][0]);
    }
}

// Write a panel; ors into `some` the bits of each sample's values.
template <int TILES>
__device__ __forceinline__ void write_panel(const Task &task, int h, const float (&sums)[TILES][4],
                                            unsigned (&some)[TILES][2]) {
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const unsigned output = task.head.outputs[h * PANEL + below * 8 + task.group];
        if (output == NO_OUTPUT)
            continue;
        float units[2][TILES];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                units[k][t] = sums[t][2 * below + k];
                some[t][k] |= __float_as_uint(units[k][t]);
            }
        write_units(task.to, output, task.group, task.quarter, units);
    }
}

// The panels of a warp one after the other, where outputs have a tile of their own.
template <int TILES, bool EQUAL>
__device__ __forceinline__ void run_panels(Task &task, float (&x)[4][TILES], unsigned (&some)[TILES][2]) {
    const int rounds = task.layer.rounds;
#pragma unroll 1
    for (int h = 0; h < rounds; h++) {
        float sums[TILES][4];
        compute_panel<TILES, EQUAL>(task, h, x, sums);
        write_panel(task, h, sums, some);
    }
}

// The same where outputs overwrite inputs: all sums are held in registers until all warps have read their
// last input. Registers have no addresses, and code for each of HELD panels would not fit the instruction
// cache, so there is code for a few, and older sums move on from register to register.
template <int TILES, bool EQUAL>
__device__ __forceinline__ void run_held_panels(Task &task, float (&x)[4][TILES], unsigned (&some)[TILES][2]) {
    constexpr int COUNT = HELD > 0 ? HELD : 1, APART = COUNT < 4 ? COUNT : 4;
    const int rounds = task.layer.rounds;
    float held[COUNT][TILES][4];
    int first = 0; // of the panels that are computed together
#pragma unroll 1
    for (;; first += APART) {
#pragma unroll
        for (int h = COUNT - 1; h >= APART; h--)
            copy_sums(held[h], held[h - APART]);
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds)
                compute_panel<TILES, EQUAL>(task, first + h, x, held[h]);
        if (first + APART >= rounds)
            break;
    }
    __syncthreads(); // every input has been read
#pragma unroll 1
    for (; first >= 0; first -= APART) {
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds)
                write_panel(task, first + h, held[h], some);
#pragma unroll
        for (int h = 0; h < COUNT - APART; h++)
            copy_sums(held[h], held[h + APART]);
    }
}

// Take the tile through a layer, number `number` of the segment; ors the samples with a nonzero output into
// now.nonzero[number % 3].
template <int WIDTH, bool EQUAL>
__device__ __forceinline__ void run_layer(const Layer &layer, const Layer *following, const Areas &areas, Ring &ring,
                                          int number, Tile &now) {
    constexpr int TILES = WIDTH / 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Task task = {layer,        Head(areas.head(number), layer.rounds, warp), ring, lane, lane / 4, lane % 4,
                 areas.rows(number), areas.rows(number + 1), 0};
    const i64 n_out = layer.n_out;
    const bool droppable = layer.droppable;
    if (following)
        load_head(*following, areas.head(number + 1)); // joins the copies of the first step
    if (threadIdx.x == 0)
        now.nonzero[(number + 1) % 3] = 0; // read last before the barrier before this layer
    float x[4][TILES];
    wait_for_groups<RING - 2>();
    __syncwarp();
    load_units(task.from, ring.addresses(0, lane), task.group, x);
    unsigned some[TILES][2] = {};
    if (HELD)
        run_held_panels<TILES, EQUAL>(task, x, some);
    else
        run_panels<TILES, EQUAL>(task, x, some);
    wait_for_copies();
    __syncwarp(); // all lanes are done with the ring
    if (following)
        ring.turn_to(*following, warp, lane);
    if (droppable) {
        unsigned live = 0;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 2; k++) // -0 is zero
                live |= (some[t][k] << 1 ? 1u : 0u) << ((2 * task.quarter + k) * TILES + t);
        live = or_over_warp(live);
        if (lane == 0 && live)
            atomicOr(now.nonzero + number % 3, live);
    }
    clear_zero_rows<WIDTH>(task.to, n_out);
    __syncthreads(); // every output has been written, and the samples with a nonzero are known
}

// Take all tiles of WIDTH samples through the segment.
template <int WIDTH>
__device__ __forceinline__ void run_tiles(const State &state, const Layer *layers, i64 first, int layer_count,
                                          i64 segment, bool moves, bool bits, const Areas &areas, Tile &now) {
    constexpr int PLACES = LAYERS_AHEAD + 1;
    while (claim_tile(state, segment, layers, layer_count, WIDTH, now)) {
        if (bits)
            load_bits<WIDTH>(state, areas.rows(0), now.slot, layers[0].n_in, layers[0].places);
        else
            load_rows<WIDTH>(state.rows[state.buffer[segment]], areas.rows(0), now.slot, layers[0].n_in,
                             layers[0].places);
        clear_zero_rows<WIDTH>(areas.rows(0), layers[0].n_in);
        load_head(layers[0], areas.head(0));
        begin_tile(now);
        Ring ring(areas, threadIdx.x / 32);
        ring.turn_to(layers[0], threadIdx.x / 32, threadIdx.x % 32);
        unsigned running = now.running;
#pragma unroll 1
        for (int done = 0; done < layer_count && running; done++) {
            const Layer &layer = now.layers[done % PLACES];
            const Layer *following = done + 1 < layer_count ? now.layers + (done + 1) % PLACES : nullptr;
            if (done + LAYERS_AHEAD < layer_count)
                load_layer(now.layers + (done + LAYERS_AHEAD) % PLACES, layers + done + LAYERS_AHEAD);
            const bool droppable = layer.droppable; // the next layer but one may take its place after that
            if (TERMS == 1 && layer.equal)
                run_layer<WIDTH, TERMS == 1>(layer, following, areas, ring, done, now);
            else
                run_layer<WIDTH, false>(layer, following, areas, ring, done, now);
            const unsigned ran = running;
            if (droppable)
                running &= now.nonzero[done % 3];
            if (threadIdx.x == 0)
                count(state, first + done, ran, running, now);
        }
        wait_for_copies(); // of a layer that nobody lived to see
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
// may be packed features. Then the bytes of the tile, of a head and of a step, of whatever layer takes most.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    block(const Layer *layers, i64 first, i64 layer_count, const State *shared_state, i64 segment, i64 moves,
          i64 takes_bits, i64 tile_bytes, i64 head_bytes, i64 step_bytes) {
    __shared__ Tile now;
    const State &state = *shared_state;
    const int count = static_cast<int>(layer_count);
    const Areas areas = {static_cast<int>(tile_bytes), static_cast<int>(head_bytes), static_cast<int>(step_bytes)};
    const bool bits = takes_bits && state.bits;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        describe_next(state, segment, moves);
    const unsigned total = state.slots[segment];
    if (SAMPLES > 16 && total > gridDim.x * 16)
        run_tiles<SAMPLES>(state, layers, first, count, segment, moves, bits, areas, now);
    else if (SAMPLES > 8 && total > gridDim.x * 8)
        run_tiles<(SAMPLES < 16 ? SAMPLES : 16)>(state, layers, first, count, segment, moves, bits, areas, now);
    else
        run_tiles<8>(state, layers, first, count, segment, moves, bits, areas, now);
}
