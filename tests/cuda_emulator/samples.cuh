#pragma once

template <typename T> __device__ T reversed(unsigned thread) {
    __shared__ T tile[WIDTH];
    tile[thread] = T(thread);
    __syncthreads();
    return tile[WIDTH - 1 - thread];
}
