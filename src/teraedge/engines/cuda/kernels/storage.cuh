// How activations lie in device memory: as fp32, or rounded to nearest fp16 or bf16. Sums are fp32 in any case.
//
// Specialised by: STORAGE (0: fp32, 1: fp16, 2: bf16). A value beyond the largest of the type becomes infinite;
// the host sets the bounds of layers so that none is.
#pragma once

#ifndef STORAGE
#define STORAGE 0
#endif

// The value of an fp16 number, of its bits.
__device__ __forceinline__ float half_value(unsigned short bits) {
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 0)
        return sign * fraction * 5.9604644775390625e-8f; // 2^-24
    if (exponent == 31)
        return fraction ? __int_as_float(0x7fc00000) : sign * __int_as_float(0x7f800000);
    return __int_as_float((bits >> 15) << 31 | (exponent + 112) << 23 | fraction << 13);
}

constexpr float LARGEST = STORAGE == 0 ? 3.402823466e38f : STORAGE == 1 ? 65504.0f : 3.3895314e38f;

#if STORAGE == 0

typedef float Stored;
typedef float2 Two; // neighbours
typedef float4 Four;

__device__ __forceinline__ float loaded(float x) { return x; }
__device__ __forceinline__ float2 loaded(const float2 &x) { return x; }
__device__ __forceinline__ float4 loaded(const float4 &x) { return x; }
__device__ __forceinline__ float stored(float x) { return x; }
__device__ __forceinline__ float2 stored(const float2 &x) { return x; }
__device__ __forceinline__ float4 stored(const float4 &x) { return x; }
__device__ __forceinline__ float rounded(float x) { return x; }
__device__ __forceinline__ float held(float x) { return x; }

#else

struct Stored {
    unsigned short bits;
};
typedef unsigned Two; // the first in the lower half
typedef uint2 Four;

#ifndef TERAEDGE_EMULATED

// Two values, rounded; a's in the lower half.
__device__ __forceinline__ unsigned two_stored(float a, float b) {
    unsigned both;
#if STORAGE == 1
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
#endif
    return both;
}

// Two values held between others, both stored.
__device__ __forceinline__ unsigned clamped(unsigned two, unsigned lower, unsigned upper) {
#if STORAGE == 1
    asm volatile("max.f16x2 %0, %0, %1;" : "+r"(two) : "r"(lower));
    asm volatile("min.f16x2 %0, %0, %1;" : "+r"(two) : "r"(upper));
#else
    asm volatile("max.bf16x2 %0, %0, %1;" : "+r"(two) : "r"(lower));
    asm volatile("min.bf16x2 %0, %0, %1;" : "+r"(two) : "r"(upper));
#endif
    return two;
}

__device__ __forceinline__ float bits_loaded(unsigned short bits) {
#if STORAGE == 1
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
#endif
}

#else

inline unsigned short bits_stored(float x) {
    const unsigned bits = __float_as_uint(x), size = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
#if STORAGE == 1
    if (size > 0x7f800000)
        return 0x7fff;
    if (size >= 0x477ff000) // halfway to what would follow 65504
        return sign | 0x7c00;
    if (size < 0x38800000) // 2^-14: parts of 2^-24
        return sign | static_cast<unsigned>(rintf(fabsf(x) * 16777216.0f));
    return sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
#else
    return size > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

inline unsigned two_stored(float a, float b) { return bits_stored(a) | static_cast<unsigned>(bits_stored(b)) << 16; }

inline float bits_loaded(unsigned short bits) {
#if STORAGE == 1
    return half_value(bits);
#else
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
#endif
}

inline unsigned clamped(unsigned two, unsigned lower, unsigned upper) {
    auto one = [](unsigned short x, unsigned short low, unsigned short high) {
        return bits_stored(fminf(fmaxf(bits_loaded(x), bits_loaded(low)), bits_loaded(high)));
    };
    return one(two, lower, upper) | one(two >> 16, lower >> 16, upper >> 16) << 16;
}

#endif

__device__ __forceinline__ float loaded(Stored x) { return bits_loaded(x.bits); }
__device__ __forceinline__ float2 loaded(unsigned two) {
    return make_float2(bits_loaded(static_cast<unsigned short>(two)), bits_loaded(static_cast<unsigned short>(two >> 16)));
}
__device__ __forceinline__ float4 loaded(const uint2 &four) {
    const float2 a = loaded(four.x), b = loaded(four.y);
    return make_float4(a.x, a.y, b.x, b.y);
}
__device__ __forceinline__ Stored stored(float x) { return {static_cast<unsigned short>(two_stored(x, 0.0f))}; }
__device__ __forceinline__ unsigned stored(const float2 &x) { return two_stored(x.x, x.y); }
__device__ __forceinline__ uint2 stored(const float4 &x) {
    return make_uint2(two_stored(x.x, x.y), two_stored(x.z, x.w));
}

// What is left of a value when it has been stored.
__device__ __forceinline__ float rounded(float x) { return loaded(stored(x)); }

// A value held within what can be stored; NaN stays.
__device__ __forceinline__ float held(float x) { return fabsf(x) > LARGEST ? copysignf(LARGEST, x) : x; }

#endif
