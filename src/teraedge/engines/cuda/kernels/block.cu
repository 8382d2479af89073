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
#include "mma.cuh"

constexpr int LAYERS_AHEAD = 4;
#include "tiles.cuh"

constexpr int WARPS = 16; // that compute
constexpr int PANEL = 16, STEP = 16;
constexpr int ZERO_ROWS = 4; // behind the last neuron: padding
constexpr int TILE_COUNT = HELD ? 1 : 2;
constexpr int RING_PLACES = RING > 0 ? RING : 1;
constexpr int FRAGMENT_BYTES = (TERMS ? TERMS : 1) * 512;
constexpr unsigned NO_OUTPUT = 0xffff;

extern __shared__ __align__(128) float4 shared[]; // tiles [places][WIDTH / 4], heads of layers, rings of all warps

// What shared memory is for, in bytes; the same for all layers of a segment.
struct Areas {
    int tile_bytes, head_bytes;

    // The rows that a layer reads, of that number in the segment; those it writes are of the next.
    __device__ __forceinline__ int rows_offset(int number) const { return number % TILE_COUNT * tile_bytes; }
    __device__ __forceinline__ char *rows(int number) const {
        return reinterpret_cast<char *>(shared) + rows_offset(number);
    }
    __device__ __forceinline__ int head_offset(int number) const {
        return TILE_COUNT * tile_bytes + number % HEADS * head_bytes;
    }
    __device__ __forceinline__ char *head(int number) const {
        return reinterpret_cast<char *>(shared) + head_offset(number);
    }
    __device__ __forceinline__ char *ring(int warp) const { return head(0) + HEADS * head_bytes + warp * RING * FRAGMENT_BYTES; }
};

// ---------------------------------------------------------------- the tile

// The first byte of a row, and what of its units is swapped, from its address.
template <int WIDTH> __device__ __forceinline__ unsigned row_bytes(unsigned address) {
    return WIDTH == 16 ? address << 4 & 0xffff0u : address << 3 & 0x7ffe0u;
}

// The same of an address in the upper half of a word.
template <int WIDTH> __device__ __forceinline__ unsigned upper_row_bytes(unsigned address) {
    return WIDTH == 16 ? address >> 12 & 0xffff0u : address >> 13 & 0x7ffe0u;
}

// Where a sample of the row at a place lies, in bytes.
template <int WIDTH> __device__ __forceinline__ unsigned bytes_at(unsigned place, int sample) {
    return row_bytes<WIDTH>(place * 4 + (place >> 1 & 1) * 2) ^ sample * 4;
}

// By a warp.
template <int WIDTH> __device__ __forceinline__ void clear_zero_rows(char *rows, i64 neurons) {
    const unsigned first = static_cast<unsigned>(neurons + 3) & ~3u;
    float4 *zeros = reinterpret_cast<float4 *>(rows) + first * (WIDTH / 4);
    for (int k = threadIdx.x % 32; k < ZERO_ROWS * WIDTH / 4; k += 32)
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
        copy_async(into + bytes_at<WIDTH>(places[neuron], chunk * 4), source + neuron * (COLUMNS / 4) + chunk);
    }
}

// Spread packed 0/1 features of the samples from `slot` on into the tile.
template <int WIDTH>
__device__ __forceinline__ void load_bits(const State &state, char *into, i64 slot, i64 neurons,
                                          const unsigned short *places) {
    const int sample = threadIdx.x % WIDTH;
    const bool there = slot + sample < state.slots[0];
    const i64 number = there ? state.ids[0][slot + sample] - state.first : 0;
    const unsigned char *bits = state.bits + number * state.bits_stride;
    const int bytes = static_cast<int>(neurons + 7) / 8;
    constexpr int AHEAD = HELD ? 1 : 2; // bytes that are read before the first is spread
    for (int first = threadIdx.x / WIDTH; first < bytes; first += AHEAD * (THREADS / WIDTH)) {
        unsigned eights[AHEAD] = {};
        uint4 at[AHEAD] = {}; // places have room for whole eights
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int byte = first + k * (THREADS / WIDTH);
            if (byte < bytes) {
                eights[k] = there ? bits[byte] : 0;
                at[k] = __ldg(reinterpret_cast<const uint4 *>(places) + byte);
            }
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int neuron = (first + k * (THREADS / WIDTH)) * 8;
            const unsigned pairs[4] = {at[k].x, at[k].y, at[k].z, at[k].w};
#pragma unroll
            for (int bit = 0; bit < 8; bit++)
                if (neuron + bit < neurons)
                    *reinterpret_cast<float *>(into + bytes_at<WIDTH>(pairs[bit / 2] >> bit % 2 * 16 & 0xffff, sample)) =
                        eights[k] >> (7 - bit) & 1 ? 1.0f : 0.0f;
        }
    }
}

// Write the rows of samples with a slot of 0 or more to their slots; every neuron lies at its number.
template <int WIDTH>
__device__ __forceinline__ void store_rows(float *rows, const char *from, const int *slots, i64 neurons) {
    const int sample = threadIdx.x % WIDTH, slot = slots[sample];
    if (slot < 0)
        return;
    float *target = rows + place(slot, 0, neurons);
    for (int neuron = threadIdx.x / WIDTH; neuron < neurons; neuron += THREADS / WIDTH)
        target[static_cast<i64>(neuron) * COLUMNS] =
            *reinterpret_cast<const float *>(from + bytes_at<WIDTH>(neuron, sample));
}

// ---------------------------------------------------------------- what comes from memory

// The sizes of a layer's head, in bytes.
__device__ __forceinline__ int head_size(const Layer &layer) {
    return WARPS * (layer.rounds * (PANEL * 6 + 4) + layer.steps * STEP * 2) + 2 * STEP * 2;
}

// Bring the head of a layer into shared memory, without waiting; by a warp.
__device__ __forceinline__ void load_head(const Layer &layer, char *into) {
    const uint4 *from = static_cast<const uint4 *>(layer.head);
    const int chunks = head_size(layer) / 16;
    for (int k = threadIdx.x % 32; k < chunks; k += 32)
        copy_async(into + k * 16, from + k);
}

// A head, of what is a warp's.
struct Head {
    const float *biases;           // [round][16]
    const unsigned short *outputs; // [round][16] addresses of rows; NO_OUTPUT where there is none
    const unsigned *lengths;       // [round] steps into one panel, and, in the upper half, into the next one too
    unsigned addresses;            // in shared memory: [step][4 lanes][4], this lane's; two steps more may be read

    __device__ __forceinline__ Head(const Areas &areas, int number, int rounds, int steps, int warp, int lane) {
        const char *bytes = areas.head(number);
        const int panels = WARPS * rounds, first = warp * rounds;
        biases = reinterpret_cast<const float *>(bytes) + first * PANEL + lane / 4;
        outputs = reinterpret_cast<const unsigned short *>(bytes + panels * PANEL * 4) + first * PANEL + lane / 4;
        lengths = reinterpret_cast<const unsigned *>(bytes + panels * PANEL * 6) + first;
        const int before = panels * (PANEL * 6 + 4) + (warp * steps * 4 + lane % 4) * 8;
        addresses = shared_address(shared, areas.head_offset(number) + before);
    }
};

// The weights of a warp on their way from memory, 16 neurons times 16 inputs a fragment: copies of a lane
// are for itself, and those of each fragment are a group.
struct Ring {
    char *slots;                // this lane's
    const uint4 *now = nullptr; // this lane's of the layer that runs
    int next = 0;               // from there to where those of the layer after it would begin; 0 for none
    int fragments = 0, left = 0; // of the layer that runs, at least RING - 1; those that have not been taken
    int place = 0;              // of the next one

    __device__ __forceinline__ Ring(const Areas &areas, int warp, int lane) : slots(areas.ring(warp) + lane * 16) {}

    // Where the fragments of a warp begin.
    __device__ __forceinline__ static const uint4 *stream(const Layer &layer, int warp, int lane) {
        return reinterpret_cast<const uint4 *>(layer.tall.weights) +
               static_cast<i64>(warp) * layer.fragments * TERMS * 32 + lane;
    }

    __device__ __forceinline__ char *slot(int number) const { return slots + number % RING_PLACES * FRAGMENT_BYTES; }

    // Have a fragment of this layer, or of the next, come to a place.
    __device__ __forceinline__ void fetch(int number, int to) {
        if (number < fragments || next) {
            const uint4 *from = now + number * (TERMS * 32) + (number < fragments ? 0 : next);
            char *into = slot(to);
#pragma unroll
            for (int t = 0; t < TERMS; t++)
                copy_async(into + t * 512, from + t * 32);
        }
        end_group();
    }

    // Begin with the first layer of a segment.
    __device__ __forceinline__ void begin(const Layer &layer, int warp, int lane) {
        now = stream(layer, warp, lane), left = fragments = layer.fragments;
        for (int k = 0; k < RING - 1; k++)
            fetch(k, k);
    }

    // Note where the layer after the one that runs is.
    __device__ __forceinline__ void look_to(const Layer *following, int warp, int lane) {
        next = 0;
        if (following) // as if its fragments followed this layer's
            next = static_cast<int>(stream(*following, warp, lane) - now) - fragments * (TERMS * 32);
    }

    // Wait for the next fragment, and have another one come; returns where it is.
    __device__ __forceinline__ const uint4 *take() {
        wait_for_groups<(RING > 2 ? RING - 2 : 0)>();
        fetch(fragments - left + RING - 1, place + RING - 1);
        const char *taken = slot(place);
        left--, place = (place + 1) % RING_PLACES;
        return reinterpret_cast<const uint4 *>(taken);
    }

    // Pass what other warps have more of, and turn to the next layer.
    __device__ __forceinline__ void turn(const Layer *following) {
        while (left > 0)
            take();
        now += fragments * (TERMS * 32) + next;
        if (following)
            left = fragments = following->fragments;
    }
};

// ---------------------------------------------------------------- steps

// A unit of a row.
template <int TILES> __device__ __forceinline__ void load_unit(unsigned address, float (&x)[TILES]) {
    if constexpr (TILES == 2) {
        const float2 two = load_shared<float2>(shared, address);
        x[0] = two.x, x[1] = two.y;
    } else {
        x[0] = load_shared<float>(shared, address);
    }
}

// An address of shared memory in the units of addresses of rows.
template <int WIDTH> __device__ __forceinline__ unsigned in_row_units(unsigned address) {
    return address / (WIDTH == 16 ? 16 : 8);
}

// What a lane reads of the tile in a step: its unit, `own` bytes into each of four rows. `rows` has in both
// halves where the tile begins.
template <int TILES>
__device__ __forceinline__ void load_units(unsigned rows, uint2 addresses, unsigned own, float (&x)[4][TILES]) {
    constexpr int WIDTH = TILES * 8;
    addresses.x += rows, addresses.y += rows; // of both halves: none overflows
    load_unit(row_bytes<WIDTH>(addresses.x) ^ own, x[0]);
    load_unit(upper_row_bytes<WIDTH>(addresses.x) ^ own, x[1]);
    load_unit(row_bytes<WIDTH>(addresses.y) ^ own, x[2]);
    load_unit(upper_row_bytes<WIDTH>(addresses.y) ^ own, x[3]);
}

// The sums of a panel, of products of first terms, and of all others.
template <int TILES> struct Sums {
    float large[TILES][4], small[TILES][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                large[t][k] = small[t][k] = 0.0f;
    }
};

// The inputs of a step, split.
template <int TILES> struct Inputs {
    unsigned low[TILES][3], high[TILES][3];

    __device__ __forceinline__ void split_units(const float (&x)[4][TILES]) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            split(x[0][t], x[1][t], low[t][0], low[t][1], low[t][2]);
            split(x[2][t], x[3][t], high[t][0], high[t][1], high[t][2]);
        }
    }

    // Multiply with one term of weights, and add up.
    __device__ __forceinline__ void multiply(const uint4 &weights, int term, Sums<TILES> &sums) const {
#pragma unroll
        for (int with = 2 - term; with >= 0; with--) // as many terms of inputs as matter
#pragma unroll
            for (int t = 0; t < TILES; t++)
                multiply_add(term + with ? sums.small[t] : sums.large[t], weights, low[t][with], high[t][with]);
    }
};

// What a warp has at hand of a layer while that runs.
template <int TILES> struct Task {
    const Layer &layer;
    Head head; // its addresses are those of the next step but two
    Ring &ring;
    uint4 equal;       // weights, where all are
    unsigned own;      // bytes into a row that a lane reads,
    unsigned write_at; // and writes
    unsigned from, to; // where the tiles of inputs and of outputs begin, in row units; `from` in both halves
    uint2 addresses;   // of the next step but one
    float x[4][TILES]; // units of the next step

    __device__ __forceinline__ void multiply(const Inputs<TILES> &inputs, Sums<TILES> &sums) {
        if constexpr (TERMS == 0) {
            inputs.multiply(equal, 0, sums);
        } else {
            const uint4 *fragment = ring.take();
#pragma unroll
            for (int term = TERMS - 1; term >= 0; term--)
                inputs.multiply(fragment[term * 32], term, sums);
        }
    }

    // Split the units of the next step, and read those of the step after it, which arrive while tensor
    // cores work.
    __device__ __forceinline__ void advance(Inputs<TILES> &inputs) {
        inputs.split_units(x);
        load_units(from, addresses, own, x);
        addresses = load_shared<uint2>(shared, head.addresses);
        head.addresses += STEP * 2;
    }
};

// Sum a panel, number `h` of the warp, and apply the activation. `sums` hold what came of the panel before,
// and are left with what there is of the next.
template <int TILES>
__device__ __forceinline__ void compute_panel(Task<TILES> &task, int h, Sums<TILES> &sums, float (&outputs)[TILES][4]) {
    const unsigned length = task.head.lengths[h];
    const float bias[2] = {task.head.biases[h * PANEL], task.head.biases[h * PANEL + 8]};
    Sums<TILES> next;
    next.clear();
    Inputs<TILES> inputs;
#pragma unroll 1
    for (unsigned k = length & 0xffff; k > 0; k--) {
        task.advance(inputs);
        task.multiply(inputs, sums);
    }
#pragma unroll 1
    for (unsigned k = length >> 16; k > 0; k--) {
        task.advance(inputs);
        task.multiply(inputs, sums);
        task.multiply(inputs, next);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            outputs[t][k] = activate(task.layer, sums.large[t][k] + sums.small[t][k], bias[k / 2]);
    sums = next;
}

// Write a panel; ors into `some` the bits of each sample's values.
template <int TILES>
__device__ __forceinline__ void write_panel(const Task<TILES> &task, int h, const float (&outputs)[TILES][4],
                                            unsigned (&some)[TILES][2]) {
    constexpr int WIDTH = TILES * 8;
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const unsigned address = task.head.outputs[h * PANEL + below * 8];
        if (address == NO_OUTPUT)
            continue;
        float y[2][TILES]; // units 2 quarter and 2 quarter + 1
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                y[k][t] = outputs[t][2 * below + k];
                some[t][k] |= __float_as_uint(y[k][t]);
            }
        const unsigned at = row_bytes<WIDTH>(address + task.to) ^ task.write_at;
        if constexpr (TILES == 2)
            store_shared(shared, at, make_float4(y[0][0], y[0][1], y[1][0], y[1][1]));
        else
            store_shared(shared, at, make_float2(y[0][0], y[1][0]));
    }
}

// The panels of a warp one after the other, where outputs have a tile of their own.
template <int TILES> __device__ __forceinline__ void run_panels(Task<TILES> &task, unsigned (&some)[TILES][2]) {
    const int rounds = task.layer.rounds;
    Sums<TILES> sums;
    sums.clear();
#pragma unroll 1
    for (int h = 0; h < rounds; h++) {
        float outputs[TILES][4];
        compute_panel(task, h, sums, outputs);
        write_panel(task, h, outputs, some);
    }
}

template <int TILES> __device__ __forceinline__ void copy_outputs(float (&to)[TILES][4], const float (&from)[TILES][4]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            to[t][k] = from[t][k];
}

// The same where outputs overwrite inputs: all are held in registers until all warps have read their last
// input. Registers have no addresses, and code for each of HELD panels would not fit the instruction cache,
// so there is code for a few, and older outputs move on from register to register.
template <int TILES> __device__ __forceinline__ void run_held_panels(Task<TILES> &task, unsigned (&some)[TILES][2]) {
    constexpr int COUNT = HELD > 0 ? HELD : 1, APART = COUNT < 2 ? COUNT : 2;
    const int rounds = task.layer.rounds;
    float held[COUNT][TILES][4];
    Sums<TILES> sums;
    sums.clear();
    int first = 0; // of the panels that are computed together
#pragma unroll 1
    for (;; first += APART) {
#pragma unroll
        for (int h = COUNT - 1; h >= APART; h--)
            copy_outputs(held[h], held[h - APART]);
#pragma unroll
        for (int h = 0; h < APART; h++)
            if (first + h < rounds)
                compute_panel(task, first + h, sums, held[h]);
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
            copy_outputs(held[h], held[h + APART]);
    }
}

// ---------------------------------------------------------------- layers

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
