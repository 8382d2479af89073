// Smooth activations. Only kernels compiled with CURVES have them: they take registers and code that
// layers which hold their sums between two bounds have no use for.
#pragma once

#ifndef CURVES
#define CURVES 0
#endif

// As activations.CURVES numbers them.
enum Curve { NONE, SIGMOID, TANH, GELU, GELU_TANH, SILU };

// numerator / (1 + exp(-x)); beyond 2^126 __fdividef gives 0, which is right to fp32's last bit.
__device__ __forceinline__ float over_one_plus_exp(float numerator, float x) {
    return __fdividef(numerator, 1.0f + expf(-x));
}

__device__ __forceinline__ float curved(int curve, float x) {
    switch (curve) {
    case SIGMOID:
        return over_one_plus_exp(1.0f, x);
    case TANH:
        return tanhf(x);
    case GELU: // x Phi(x)
        return 0.5f * x * erfcf(-0.70710678f * x);
    case GELU_TANH: // x / 2 (1 + tanh(u)), with 2 u = sqrt(8 / pi) (x + 0.044715 x^3)
        return over_one_plus_exp(x, x * fmaf(x * x, 0.071354814f, 1.5957691f));
    default:
        return over_one_plus_exp(x, x);
    }
}
