// Small kernels that test the emulator itself; WIDTH is a macro given at compile time.
#include "samples.cuh"

extern __shared__ float of_the_file[];

extern "C" __global__ void __launch_bounds__(256)
block_sums(const float* values, float* sums, long long count) {
    __shared__ float partial[256];
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    partial[threadIdx.x] = i < count ? values[i] : 0.0f;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

// As above with the last barrier left out: the emulator's order of threads shows it.
extern "C" __global__ void racy_sums(const float* values, float* sums, long long count) {
    extern __shared__ float partial[];
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    partial[threadIdx.x] = i < count ? values[i] : 0.0f;
    for (int half = blockDim.x / 2; half > 0; half /= 2)
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

extern "C" __global__ void warps(const int* values, int* out) {
    int lane = threadIdx.x % 32, value = values[threadIdx.x];
    unsigned odd = __ballot_sync(0xffffffffu, value % 2);
    int sum = value;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    int before = __shfl_up_sync(0xffffffffu, value, 1);
    int half_first = __shfl_sync(0xffffffffu, value, 0, 16);
    int* row = out + threadIdx.x * 8;
    row[0] = odd;
    row[1] = sum;
    row[2] = before;
    row[3] = half_first;
    row[4] = __popc(odd & ((1u << lane) - 1));
    row[5] = __any_sync(0xffffffffu, value == 7);
    row[6] = __all_sync(0xffffffffu, value >= 0);
    row[7] = -1;
    if (lane < 8) row[7] = __reduce_add_sync(0xffu, value);
    __syncwarp();
}

extern "C" __global__ void
histogram(const int* values, int* counts, float* total, long long count) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count) return;
    atomicAdd(&counts[values[i]], 1);
    atomicAdd(total, 0.5f);
    atomicMax(&counts[WIDTH], values[i]);
}

extern "C" __global__ void order(long long* next, long long* ranks) {
    if (threadIdx.x == 0) ranks[blockIdx.x] = (long long)atomicAdd((unsigned long long*)next, 1ull);
}

extern "C" __global__ void counted(long long* out) {
    int odd = threadIdx.x % 2;
    out[0] = __syncthreads_count(odd);
    out[1] = __syncthreads_or(threadIdx.x == 3);
    out[2] = __syncthreads_and(threadIdx.x < 100);
    out[3] = __syncthreads_and(odd);
}

extern "C" __global__ void divergent(int* out) {
    if (threadIdx.x < 16) {
        __syncthreads();
        out[threadIdx.x] = 1;
    } else {
        __syncthreads();
        out[threadIdx.x] = 2;
    }
}

extern "C" __global__ void deadlock(int* out) {
    if (threadIdx.x < 32) __syncthreads();
    else if (threadIdx.x < 40) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
    else out[threadIdx.x] = (int)__ballot_sync(0xffffffffu, 1);
}

extern "C" __global__ void beyond(float* values, long long at) { values[at] = 1.0f; }

extern "C" __global__ void read_beyond(const float* values, float* out, long long at) {
    out[0] = values[at];
}

extern "C" __global__ void shared_beyond(float* out, long long at) {
    extern __shared__ float tile[];
    tile[at] = 1.0f;
    __syncthreads();
    out[0] = tile[0];
}

extern "C" __global__ void uninitialised(float* out) {
    __shared__ float tile[4];
    extern __shared__ float more[];
    if (threadIdx.x == 1) tile[1] = 2.0f;
    __syncthreads();
    out[0] = tile[0];
    out[1] = tile[1];
    out[2] = more[0];
    of_the_file[3] = 4.0f;
    out[3] = more[3];
}

extern "C" __global__ void wrong_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);
}

extern "C" __global__ void spins_for_ever(volatile int* flag) {
    while (*flag == 0) __nanosleep(20);
}

extern "C" __global__ void narrow(float* out, int count) { out[0] = (float)count; }

extern "C" __global__ void templated(float* out) {
    out[threadIdx.x] = reversed<float>(threadIdx.x);
}

extern "C" __global__ void add_one(float* values) { values[threadIdx.x] += 1.0f; }

#ifdef TERAEDGE_EMULATED
extern "C" __global__ void copies(const float* values, float* out, long long waits) {
    __shared__ float4 tile[32];
    emulated_copy_async(&tile[threadIdx.x], values + 4 * threadIdx.x, 16);
    if (waits) emulated_wait_for_copies();
    __syncthreads();
    out[threadIdx.x] = tile[31 - threadIdx.x].y;
}

extern "C" __global__ void crooked(const float* values) {
    __shared__ float4 tile[2];
    emulated_copy_async(tile, values + 1, 16);
}
#endif
