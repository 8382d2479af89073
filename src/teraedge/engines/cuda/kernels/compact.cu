// Between two layers of kernels that leave rows in device memory, and do not take the census themselves.
#include "census.cuh"

constexpr int THREADS = 512;

// Read what nobody reads again.
__device__ __forceinline__ Stored read_once(const Stored *from) {
#if STORAGE
    return {__ldcs(&from->bits)};
#else
    return __ldcs(from);
#endif
}

// One block.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    census(const Layer *layer, i64 number, const State *state, i64 segment, i64 leaves) {
    take_census<THREADS>(*layer, number, *state, segment, leaves);
}

// Copy the live samples to their new slots, back into the buffer that the layer read, all in tiles of so many
// samples. A warp takes some rows of 64 slots that they go to.
template <int TILE> __device__ __forceinline__ void move_rows(const State &state, i64 segment, i64 n) {
    constexpr i64 ROWS = 64;
    constexpr int AHEAD = 8; // rows that are on their way before the first is written
    const int lane = threadIdx.x % 32;
    const i64 warp = (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const i64 warps = static_cast<i64>(gridDim.x) * blockDim.x / 32;
    const int from = state.buffer[segment];
    const i64 parts = (n + ROWS - 1) / ROWS;
    const i64 tiles = (static_cast<i64>(state.slots[segment + 1]) + COLUMNS - 1) / COLUMNS;
    for (i64 item = warp; item < tiles * parts; item += warps) {
        const i64 tile = item / parts, begin = item % parts * ROWS;
        const Stored *source[2];
        Stored *target[2];
        for (int k = 0; k < 2; k++) {
            const i64 to = tile * COLUMNS + lane + k * 32;
            const int slot = state.sources[to];
            source[k] = state.rows[1 - from] + place<TILE>(slot < 0 ? 0 : slot, 0, n); // of no sample: any
            target[k] = state.rows[from] + place<TILE>(to, 0, n);
        }
        const i64 end = begin + ROWS < n ? begin + ROWS : n;
        for (i64 row = begin; row < end; row += AHEAD) {
            Stored values[AHEAD][2];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (row + k < end)
                    for (int side = 0; side < 2; side++)
                        values[k][side] = read_once(source[side] + (row + k) * TILE);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (row + k < end)
                    for (int side = 0; side < 2; side++)
                        target[side][(row + k) * TILE] = values[k][side];
        }
    }
}

// Move samples, if the census said so; `own_tiles` where rows lie as between two layers of the staged kernel.
extern "C" __global__ void __launch_bounds__(256)
    compact(const Layer *layer, const State *state, i64 segment, i64 own_tiles) {
    if (state->compacts[segment] != MOVED)
        return;
    if (own_tiles)
        move_rows<STAGED_COLUMNS>(*state, segment, layer->n_out);
    else
        move_rows<COLUMNS>(*state, segment, layer->n_out);
}
