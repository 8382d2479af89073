// What `teraedge doctor` runs: whether kernels compile and run right on a GPU.
//
// sums[b] = the sum of i * i over the 256 numbers i that block b has, by way of shared memory, warp
// shuffles and an atomic.

// sums: device, one long long a block, zero before
extern "C" __global__ void __launch_bounds__(256) probe(long long* sums) {
    __shared__ long long squares[256];
    long long number = blockIdx.x * 256ll + threadIdx.x;
    squares[threadIdx.x ^ 31] = number * number;
    __syncthreads();
    long long sum = squares[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0)
        atomicAdd((unsigned long long*)&sums[blockIdx.x], (unsigned long long)sum);
}
