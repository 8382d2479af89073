// Features into tiles at the start of a run, and rows, as fp32, out of them at the end.
#include "common.cuh"

constexpr int ROWS_A_BLOCK = 8; // warps of a block

// The kinds of feature elements, as the host numbers them.
enum Kind { F32, F64, F16, U8, I8, I16, U16, I32, U32, I64, U64 };

struct Half {
    unsigned short bits;

    __device__ __forceinline__ operator float() const { return half_value(bits); }
};

// Read COUNT elements, `stride` apart, all of one kind; zero where one is not `there`.
template <int COUNT, class T, class There>
__device__ __forceinline__ void read_all(const T *from, i64 stride, There there, float *values) {
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        values[k] = there(k) ? static_cast<float>(from[k * stride]) : 0.0f;
}

template <int COUNT, class There>
__device__ __forceinline__ void read_elements(const void *data, i64 kind, i64 at, i64 stride, There there,
                                              float *values) {
    switch (kind) {
    case F32: return read_all<COUNT>(static_cast<const float *>(data) + at, stride, there, values);
    case F64: return read_all<COUNT>(static_cast<const double *>(data) + at, stride, there, values);
    case F16: return read_all<COUNT>(static_cast<const Half *>(data) + at, stride, there, values);
    case U8: return read_all<COUNT>(static_cast<const unsigned char *>(data) + at, stride, there, values);
    case I8: return read_all<COUNT>(static_cast<const signed char *>(data) + at, stride, there, values);
    case I16: return read_all<COUNT>(static_cast<const short *>(data) + at, stride, there, values);
    case U16: return read_all<COUNT>(static_cast<const unsigned short *>(data) + at, stride, there, values);
    case I32: return read_all<COUNT>(static_cast<const int *>(data) + at, stride, there, values);
    case U32: return read_all<COUNT>(static_cast<const unsigned *>(data) + at, stride, there, values);
    case I64: return read_all<COUNT>(static_cast<const i64 *>(data) + at, stride, there, values);
    default: return read_all<COUNT>(static_cast<const u64 *>(data) + at, stride, there, values);
    }
}

// Start a run: all samples live, in order.
extern "C" __global__ void begin(const State *shared_state) {
    const State &state = *shared_state;
    const i64 thread = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const i64 threads = static_cast<i64>(gridDim.x) * blockDim.x;
    for (i64 k = thread; k < state.samples; k += threads)
        state.ids[0][k] = static_cast<int>(state.first + k);
    for (i64 word = thread; word < state.words; word += threads) {
        const i64 rest = state.samples - word * WORD;
        state.masks[word] = rest <= 0 ? 0 : first_bits(rest < WORD ? static_cast<int>(rest) : WORD);
    }
    if (thread == 0)
        state.slots[0] = static_cast<unsigned>(state.samples);
}

// The nonzero features among the bytes of a sample that this one of so many lanes takes.
__device__ __forceinline__ unsigned count_ones(const unsigned char *from, i64 bytes, int own, int lanes) {
    unsigned ones = 0;
    const i64 whole = (reinterpret_cast<u64>(from) & 15) == 0 ? bytes / 16 : 0;
#pragma unroll 4
    for (i64 k = own; k < whole; k += lanes) {
        const uint4 four = reinterpret_cast<const uint4 *>(from)[k];
        ones += __popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w);
    }
    for (i64 byte = whole * 16 + own; byte < bytes; byte += lanes)
        ones += __popc(from[byte]);
    return ones;
}

// Count the nonzero features of packed samples: bright samples live longest, so that tiles of samples that
// are alike die as a whole. A warp takes as many samples at a time as have work for all lanes.
extern "C" __global__ void __launch_bounds__(256)
    count_bright(i64 n, const State *shared_state) {
    __shared__ unsigned counts[BINS]; // of this block: in memory, all would wait for a few bins
    const State &state = *shared_state;
    const i64 samples = state.samples, bytes = (n + 7) / 8;
    int lanes = 32;
    while (lanes > 1 && lanes / 2 * 16 >= bytes)
        lanes /= 2;
    const int lane = threadIdx.x % 32, own = lane % lanes, side = 32 / lanes;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    const float scale = static_cast<float>(BINS - 1) / n;
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        counts[bin] = 0;
    __syncthreads();
    for (i64 first = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32 * side; first < samples; first += warps * side) {
        const i64 sample = first + lane / lanes;
        unsigned bright = sample < samples ? count_ones(state.bits + sample * state.bits_stride, bytes, own, lanes) : 0;
        for (int step = lanes / 2; step; step >>= 1)
            bright += __shfl_xor_sync(ALL_LANES, bright, step);
        const int share = static_cast<int>(bright * scale), bin = share < BINS ? BINS - 1 - share : 0; // the brightest first
        if (own == 0 && sample < samples) {
            state.ids[1][sample] = bin; // not used yet
            atomicAdd(counts + bin, 1);
        }
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        if (counts[bin])
            atomicAdd(state.bins + bin, counts[bin]);
}

// Have bins tell where the first of each goes. One block.
extern "C" __global__ void __launch_bounds__(BINS) sum_bins(const State *shared_state) {
    __shared__ unsigned sums[2][BINS];
    const State &state = *shared_state;
    const int bin = threadIdx.x;
    const unsigned own = state.bins[bin];
    sums[0][bin] = own;
    __syncthreads();
    int from = 0;
    for (int step = 1; step < BINS; step *= 2, from ^= 1) {
        sums[1 - from][bin] = sums[from][bin] + (bin >= step ? sums[from][bin - step] : 0);
        __syncthreads();
    }
    state.bins[bin] = sums[from][bin] - own;
}

// Give every sample its slot, by brightness. A block has its own part of the samples, and of the slots of each bin.
extern "C" __global__ void place_samples(const State *shared_state) {
    __shared__ unsigned counts[BINS];
    const State &state = *shared_state;
    const i64 each = (state.samples + gridDim.x - 1) / gridDim.x, first = blockIdx.x * each;
    const i64 last = first + each < state.samples ? first + each : state.samples;
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        counts[bin] = 0;
    __syncthreads();
    for (i64 sample = first + threadIdx.x; sample < last; sample += blockDim.x)
        atomicAdd(counts + state.ids[1][sample], 1);
    __syncthreads();
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        if (counts[bin])
            counts[bin] = atomicAdd(state.bins + bin, counts[bin]);
    __syncthreads();
    for (i64 sample = first + threadIdx.x; sample < last; sample += blockDim.x)
        state.ids[0][atomicAdd(counts + state.ids[1][sample], 1)] = static_cast<int>(state.first + sample);
}

// Packed 0/1 features, the first neuron in the highest bit. A warp takes eight neurons of 32 samples.
extern "C" __global__ void load_packed(i64 n, const State *state) {
    Stored *rows = state->rows[0];
    const i64 samples = state->samples;
    const int lane = threadIdx.x % 32;
    const i64 bytes = (n + 7) / 8;
    const i64 words = words_of(static_cast<unsigned>(samples));
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    const i64 warp = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    for (i64 item = warp; item < words * bytes; item += warps) {
        const i64 byte = item % bytes;
        const i64 slot = item / bytes * WORD + lane;
        const unsigned eight = slot < samples ? state->bits[(state->ids[0][slot] - state->first) * state->bits_stride + byte] : 0;
        Stored *target = rows + place(slot, byte * 8, n);
        for (int k = 0; k < 8 && byte * 8 + k < n; k++)
            target[k * COLUMNS] = stored(static_cast<float>(eight >> (7 - k) & 1));
    }
}

// Packed features turned, a bit a sample: [tile][neuron] of 64 bits where rows would lie. A warp takes 128
// neurons of a tile.
extern "C" __global__ void __launch_bounds__(256)
    turn_bits(i64 n, const State *state) {
    constexpr i64 SIZE = 16; // bytes of a sample that a lane takes
    uint2 *turned = reinterpret_cast<uint2 *>(state->rows[0]);
    const unsigned char *bits = state->bits;
    const i64 stride = state->bits_stride, samples = state->samples;
    const int lane = threadIdx.x % 32;
    const i64 bytes = (n + 7) / 8, groups = (bytes + SIZE - 1) / SIZE, tiles = (samples + COLUMNS - 1) / COLUMNS;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    const bool aligned = (reinterpret_cast<u64>(bits) | static_cast<u64>(stride)) % SIZE == 0;
    for (i64 item = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; item < tiles * groups; item += warps) {
        const i64 tile = item / groups, first = item % groups * SIZE;
        unsigned given[2][SIZE / 4] = {}; // words of this lane's samples
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i64 slot = tile * COLUMNS + half * WORD + lane;
            if (slot >= samples)
                continue;
            const unsigned char *from = bits + (state->ids[0][slot] - state->first) * stride + first;
            if (aligned && first + SIZE <= bytes) {
                const uint4 all = *reinterpret_cast<const uint4 *>(from);
                given[half][0] = all.x, given[half][1] = all.y, given[half][2] = all.z, given[half][3] = all.w;
            } else {
#pragma unroll
                for (int k = 0; k < SIZE; k++)
                    given[half][k / 4] |= first + k < bytes ? static_cast<unsigned>(from[k]) << k % 4 * 8 : 0;
            }
        }
#pragma unroll 1
        for (int word = 0; word < SIZE / 4; word++) {
            uint2 found = make_uint2(0, 0); // of the neuron of this lane
#pragma unroll
            for (int k = 0; k < WORD; k++) {
                const int shift = k / 8 * 8 + 7 - k % 8; // the first neuron is in the highest bit of its byte
                const unsigned low = __ballot_sync(ALL_LANES, given[0][0] >> shift & 1);
                const unsigned high = __ballot_sync(ALL_LANES, given[1][0] >> shift & 1);
                if (lane == k)
                    found = make_uint2(low, high);
            }
#pragma unroll
            for (int k = 0; k + 1 < SIZE / 4; k++) // the next word, without an address
                given[0][k] = given[0][k + 1], given[1][k] = given[1][k + 1];
            const i64 neuron = (first + word * 4) * 8 + lane;
            if (neuron < n)
                turned[tile * n + neuron] = found;
        }
    }
}

// A dense matrix of any strides, in elements. A block takes 32 neurons of a tile of samples, through
// shared memory, so that both its reads (along neurons) and its writes (along samples) are whole lines. What
// a thread reads is on its way at the same time.
extern "C" __global__ void __launch_bounds__(256)
    load_dense(const void *data, i64 kind, i64 sample_stride, i64 neuron_stride, i64 samples, i64 n,
               const State *state) {
    __shared__ float square[WORD][COLUMNS + 1]; // [neuron][sample]
    constexpr int READS = COLUMNS / ROWS_A_BLOCK;
    Stored *rows = state->rows[0];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 tiles = (samples + COLUMNS - 1) / COLUMNS, parts = (n + WORD - 1) / WORD;
    for (i64 item = blockIdx.x; item < tiles * parts; item += gridDim.x) {
        const i64 begin = item / parts * COLUMNS, first = item % parts * WORD;
        float values[READS];
        const auto there = [&](int k) { return begin + warp + k * ROWS_A_BLOCK < samples && first + lane < n; };
        read_elements<READS>(data, kind, (begin + warp) * sample_stride + (first + lane) * neuron_stride,
                             ROWS_A_BLOCK * sample_stride, there, values);
#pragma unroll
        for (int k = 0; k < READS; k++) {
            if (!(fabsf(values[k]) <= 3.402823466e38f))
                *state->invalid = 1;
            square[lane][warp + k * ROWS_A_BLOCK] = values[k];
        }
        __syncthreads();
        for (int k = threadIdx.x; k < WORD * COLUMNS && first + k / COLUMNS < n; k += ROWS_A_BLOCK * 32)
            rows[place(begin, first + k / COLUMNS, n) + k % COLUMNS] = stored(held(square[k / COLUMNS][k % COLUMNS]));
        __syncthreads();
    }
}

// CSR features, float32 values; the rows must have been filled with zeros. A warp takes a sample.
extern "C" __global__ void load_sparse(const i64 *indptr, const int *indices, const float *data, i64 samples,
                                       i64 n, const State *state) {
    Stored *rows = state->rows[0];
    const int lane = threadIdx.x % 32;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    for (i64 sample = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; sample < samples;
         sample += warps)
        for (i64 entry = indptr[sample] + lane; entry < indptr[sample + 1]; entry += 32)
            rows[place(sample, indices[entry], n)] = stored(held(data[entry]));
}

// Note which samples are live before `segment`, by their numbers.
extern "C" __global__ void mark(const State *shared_state, i64 segment) {
    const State &state = *shared_state;
    const i64 words = words_of(state.slots[segment]);
    const unsigned *masks = state.masks + segment * state.words;
    const int *ids = state.ids[state.order[segment]];
    for (i64 slot = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; slot < words * WORD;
         slot += static_cast<i64>(gridDim.x) * blockDim.x)
        if (masks[slot / WORD] >> slot % WORD & 1)
            atomicOr(state.alive + ids[slot] / WORD, 1u << ids[slot] % WORD);
}

// The rows of what is live before `segment`, row-major, in the order of slots or, for `by_id`, of
// samples; and which of them have a nonzero.
extern "C" __global__ void __launch_bounds__(256)
    store_rows(const State *shared_state, i64 segment, i64 n, float *out, i64 by_id) {
    __shared__ float square[WORD][WORD + 1];
    const State &state = *shared_state;
    const Stored *rows = state.rows[state.buffer[segment]];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 words = words_of(state.slots[segment]), parts = (n + WORD - 1) / WORD;
    for (i64 item = blockIdx.x; item < words * parts; item += gridDim.x) {
        const i64 word = item / parts, begin = word * WORD, first = item % parts * WORD;
        const unsigned mask = state.masks[segment * state.words + word];
        const int *ids = state.ids[state.order[segment]] + begin;
        constexpr int READS = WORD / ROWS_A_BLOCK;
        float values[READS];
        unsigned some = 0;
#pragma unroll
        for (int k = 0; k < READS; k++) {
            const i64 neuron = first + warp + k * ROWS_A_BLOCK;
            values[k] = neuron < n ? loaded(rows[place(begin + lane, neuron, n)]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < READS; k++) {
            some |= nonzero_lanes(values[k]);
            square[warp + k * ROWS_A_BLOCK][lane] = values[k];
        }
        unsigned *seen = state.nonzero + segment * state.words + word;
        if (lane == 0 && (some & mask & ~*seen))
            atomicOr(seen, some & mask);
        __syncthreads();
        for (int k = warp; k < WORD; k += ROWS_A_BLOCK)
            if (mask >> k & 1 && first + lane < n)
                out[(by_id ? ids[k] : begin + k) * n + first + lane] = square[lane][k];
        __syncthreads();
    }
}

// Rows of n values, each to the place that its id says; those of -1 to none. A warp takes a row.
extern "C" __global__ void __launch_bounds__(256)
    scatter_rows(const float *rows, const int *ids, i64 count, i64 n, float *out) {
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    for (i64 row = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; row < count; row += warps)
        if (ids[row] >= 0)
            for (i64 k = threadIdx.x % 32; k < n; k += 32)
                out[ids[row] * n + k] = rows[row * n + k];
}

// A head over rows, row-major, of n: exp(x) over its sum, or the logarithm of that. A warp takes a row.
extern "C" __global__ void __launch_bounds__(256)
    apply_head(const float *rows, i64 samples, i64 n, i64 logarithm, float *out) {
    const int lane = threadIdx.x % 32;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    for (i64 sample = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; sample < samples;
         sample += warps) {
        const float *x = rows + sample * n;
        float largest = x[0];
        for (i64 first = 0; first < n; first += 32) // all lanes alike, as shuffles want them
            largest = fmaxf(largest, first + lane < n ? x[first + lane] : x[0]);
        for (int step = 16; step; step >>= 1)
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
        float sum = 0.0f;
        for (i64 first = 0; first < n; first += 32)
            sum += first + lane < n ? expf(x[first + lane] - largest) : 0.0f;
        for (int step = 16; step; step >>= 1)
            sum += __shfl_xor_sync(ALL_LANES, sum, step);
        const float log_sum = logf(sum);
        for (i64 k = lane; k < n; k += 32) {
            const float y = x[k] - largest;
            out[sample * n + k] = logarithm ? y - log_sum : __fdividef(expf(y), sum);
        }
    }
}
