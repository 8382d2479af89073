// CUDA's words for a CPU compiler, so that the kernels run in tests without a GPU.
//
// Included before every .cu file, which device.py has copied with `extern __shared__` rewritten.
// Every thread of a block is a fiber; blocks run one after the other in shuffled order. What the
// fibers wait for, and what is checked, is in cuda_emulator.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define TERAEDGE_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// In a section of its own, which is filled with garbage before every block.
#define __shared__ static __attribute__((section("emulated_shared")))

// ---------------------------------------------------------------- indices
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 { unsigned x, y, z; };
extern "C" {
extern uint3 emulated_thread, emulated_block;
extern dim3 emulated_block_size, emulated_grid_size;
}
#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_block_size
#define gridDim emulated_grid_size
constexpr int warpSize = 32;

// ---------------------------------------------------------------- vectors
#define EMULATED_VECTORS(type, name, align2, align4)                                              \
    struct alignas(align2) name##2 { type x, y; };                                                \
    struct alignas(align4) name##4 { type x, y, z, w; };                                          \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                              \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(unsigned, uint, 8, 16)
EMULATED_VECTORS(int, int, 8, 16)
EMULATED_VECTORS(float, float, 8, 16)
EMULATED_VECTORS(double, double, 16, 16)
EMULATED_VECTORS(long long, longlong, 16, 16)
EMULATED_VECTORS(unsigned long long, ulonglong, 16, 16)
EMULATED_VECTORS(short, short, 4, 8)
EMULATED_VECTORS(unsigned short, ushort, 4, 8)
EMULATED_VECTORS(signed char, char, 2, 4)
EMULATED_VECTORS(unsigned char, uchar, 2, 4)
#undef EMULATED_VECTORS
struct int3 { int x, y, z; };
struct float3 { float x, y, z; };
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }

// ---------------------------------------------------------------- waiting
// Kinds of what a fiber waits for; their names are in cuda_emulator.cpp.
enum EmulatedWait : int {
    EMULATED_SYNCTHREADS = 1, EMULATED_SYNCTHREADS_COUNT, EMULATED_SYNCTHREADS_AND,
    EMULATED_SYNCTHREADS_OR, EMULATED_NAMED_BARRIER, EMULATED_SYNCWARP, EMULATED_BALLOT,
    EMULATED_SHFL, EMULATED_MATCH, EMULATED_REDUCE_ADD, EMULATED_REDUCE_MIN, EMULATED_REDUCE_MAX,
    EMULATED_REDUCE_AND, EMULATED_REDUCE_OR,
};
extern "C" {
// All threads of the block that have not exited; returns what the kind says of the predicates.
int emulated_barrier(int kind, int predicate, const char* file, int line);
// `threads` threads of the block, as PTX's bar.sync; arriving without waiting is bar.arrive.
void emulated_named_barrier(int id, int threads, int wait, const char* file, int line);
// All lanes of the mask that have not exited. `lane` is the one read from, for a shuffle.
uint64_t emulated_collective(int kind, unsigned mask, uint64_t value, int lane, const char* file,
                             int line);
// Let the other threads run: every loop that waits for a value in memory must call it.
void emulated_yield(const char* file, int line);
void* emulated_dynamic_shared();
// As cp.async: the bytes arrive when the thread waits for its copies, not before.
void emulated_copy_async(void* shared, const void* global, size_t nbytes);
void emulated_wait_for_copies();
unsigned long long emulated_nanoseconds();  // grows with every call
unsigned emulated_active_mask();
unsigned emulated_lane();
[[noreturn]] void emulated_fail(const char* message, const char* file, int line);
}
#define EMULATED_HERE __FILE__, __LINE__

#define __syncthreads() emulated_barrier(EMULATED_SYNCTHREADS, 0, EMULATED_HERE)
#define __syncthreads_count(p) emulated_barrier(EMULATED_SYNCTHREADS_COUNT, !!(p), EMULATED_HERE)
#define __syncthreads_and(p) emulated_barrier(EMULATED_SYNCTHREADS_AND, !!(p), EMULATED_HERE)
#define __syncthreads_or(p) emulated_barrier(EMULATED_SYNCTHREADS_OR, !!(p), EMULATED_HERE)
#define __nanosleep(ns) emulated_yield(EMULATED_HERE)

#define EMULATED_MASK_OR_ALL(...) emulated_mask(__VA_ARGS__)
inline unsigned emulated_mask(unsigned mask = 0xffffffffu) { return mask; }
#define __syncwarp(...)                                                                           \
    (void)emulated_collective(EMULATED_SYNCWARP, EMULATED_MASK_OR_ALL(__VA_ARGS__), 0, 0,         \
                              EMULATED_HERE)
#define __ballot_sync(mask, p)                                                                    \
    ((unsigned)emulated_collective(EMULATED_BALLOT, mask, !!(p), 0, EMULATED_HERE))
#define __any_sync(mask, p) ((int)(__ballot_sync(mask, p) != 0))
#define __all_sync(mask, p) ((int)(__ballot_sync(mask, !(p)) == 0))
#define __activemask() emulated_active_mask()

template <typename T>
inline T emulated_exchange(int kind, unsigned mask, T value, int lane, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warp functions take 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulated_collective(kind, mask, bits, lane, file, line);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
// The lane that a shuffle reads from, or its own where CUDA gives a thread its own value back.
inline int emulated_source(int source, int width, bool inside) {
    int lane = (int)emulated_lane();
    return inside ? (lane & ~(width - 1)) + source : lane;
}
inline int emulated_shfl(int lane, int width = 32) {
    return emulated_source(lane & (width - 1), width, true);
}
inline int emulated_shfl_up(unsigned delta, int width = 32) {
    int source = (int)(emulated_lane() & (width - 1)) - (int)delta;
    return emulated_source(source, width, source >= 0);
}
inline int emulated_shfl_down(unsigned delta, int width = 32) {
    int source = (int)(emulated_lane() & (width - 1)) + (int)delta;
    return emulated_source(source, width, source < width);
}
inline int emulated_shfl_xor(int mask, int width = 32) {
    int lane = (int)emulated_lane(), source = lane ^ mask;
    // Lanes of earlier groups may be read, those of later ones may not.
    return source / width <= lane / width ? source : lane;
}
#define __shfl_sync(mask, value, ...)                                                             \
    emulated_exchange(EMULATED_SHFL, mask, value, emulated_shfl(__VA_ARGS__), EMULATED_HERE)
#define __shfl_up_sync(mask, value, ...)                                                          \
    emulated_exchange(EMULATED_SHFL, mask, value, emulated_shfl_up(__VA_ARGS__), EMULATED_HERE)
#define __shfl_down_sync(mask, value, ...)                                                        \
    emulated_exchange(EMULATED_SHFL, mask, value, emulated_shfl_down(__VA_ARGS__), EMULATED_HERE)
#define __shfl_xor_sync(mask, value, ...)                                                         \
    emulated_exchange(EMULATED_SHFL, mask, value, emulated_shfl_xor(__VA_ARGS__), EMULATED_HERE)
#define __match_any_sync(mask, value)                                                             \
    ((unsigned)emulated_collective(EMULATED_MATCH, mask, emulated_bits(value), 0, EMULATED_HERE))
template <typename T> inline uint64_t emulated_bits(T value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <typename T>  // unsigned is compared as such, int with its sign
inline T emulated_reduce(int kind, unsigned mask, T value, const char* file, int line) {
    static_assert(sizeof(T) == 4, "warp reductions take int and unsigned");
    int64_t wide = (int64_t)value;
    return (T)emulated_collective(kind, mask, (uint64_t)wide, 0, file, line);
}
#define __reduce_add_sync(m, v) emulated_reduce(EMULATED_REDUCE_ADD, m, v, EMULATED_HERE)
#define __reduce_min_sync(m, v) emulated_reduce(EMULATED_REDUCE_MIN, m, v, EMULATED_HERE)
#define __reduce_max_sync(m, v) emulated_reduce(EMULATED_REDUCE_MAX, m, v, EMULATED_HERE)
#define __reduce_and_sync(m, v) emulated_reduce(EMULATED_REDUCE_AND, m, v, EMULATED_HERE)
#define __reduce_or_sync(m, v) emulated_reduce(EMULATED_REDUCE_OR, m, v, EMULATED_HERE)

// ---------------------------------------------------------------- memory
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
template <typename T> inline T __ldg(const T* p) { return *p; }
template <typename T> inline T __ldcg(const T* p) { return *p; }
template <typename T> inline T __ldca(const T* p) { return *p; }
template <typename T> inline T __ldcs(const T* p) { return *p; }
template <typename T> inline T __ldlu(const T* p) { return *p; }
template <typename T> inline T __ldcv(const T* p) { return *p; }
template <typename T> inline void __stcs(T* p, T v) { *p = v; }
template <typename T> inline void __stcg(T* p, T v) { *p = v; }
template <typename T> inline void __stwb(T* p, T v) { *p = v; }
template <typename T> inline void __stwt(T* p, T v) { *p = v; }

// One fiber runs at a time and changes only where it waits, so plain operations are atomic.
template <typename T> struct emulated_same { using type = T; };
template <typename T> using emulated_as = typename emulated_same<T>::type;
#define EMULATED_ATOMIC(name, expression)                                                         \
    template <typename T> inline T name(T* p, emulated_as<T> v) {                                 \
        T old = *p;                                                                               \
        *p = expression;                                                                          \
        return old;                                                                               \
    }                                                                                             \
    template <typename T> inline T name##_block(T* p, emulated_as<T> v) { return name(p, v); }
EMULATED_ATOMIC(atomicAdd, (T)(old + v))
EMULATED_ATOMIC(atomicSub, (T)(old - v))
EMULATED_ATOMIC(atomicExch, v)
EMULATED_ATOMIC(atomicMin, old < v ? old : v)
EMULATED_ATOMIC(atomicMax, old > v ? old : v)
EMULATED_ATOMIC(atomicAnd, (T)(old & v))
EMULATED_ATOMIC(atomicOr, (T)(old | v))
EMULATED_ATOMIC(atomicXor, (T)(old ^ v))
EMULATED_ATOMIC(atomicInc, (T)(old >= v ? 0 : old + 1))
EMULATED_ATOMIC(atomicDec, (T)(old == 0 || old > v ? v : old - 1))
#undef EMULATED_ATOMIC
template <typename T> inline T atomicCAS(T* p, emulated_as<T> expected, emulated_as<T> v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}

// ---------------------------------------------------------------- numbers
template <typename To, typename From> inline To emulated_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}
inline int __float_as_int(float v) { return emulated_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return emulated_cast<unsigned>(v); }
inline float __int_as_float(int v) { return emulated_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return emulated_cast<float>(v); }
inline long long __double_as_longlong(double v) { return emulated_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return emulated_cast<double>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
inline unsigned __brev(unsigned v) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (v >> bit & 1u) << (31 - bit);
    return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned choice = selector >> (4 * i), byte = bytes >> (8 * (choice & 7)) & 0xffu;
        if (choice & 8) byte = byte & 0x80u ? 0xffu : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)((((uint64_t)hi << 32 | lo) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned shift) {
    return (unsigned)(((uint64_t)hi << 32 | lo) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return std::exp(v); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(unsigned v) { return (float)v; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
using std::fma;
using std::isfinite;
using std::isinf;
using std::isnan;

// ---------------------------------------------------------------- compiler
inline size_t __cvta_generic_to_shared(const void* p) { return (size_t)p; }
inline void __trap_at(const char* file, int line) { emulated_fail("__trap()", file, line); }
#define __trap() __trap_at(EMULATED_HERE)
#undef assert
#define assert(condition)                                                                         \
    ((condition) ? (void)0 : emulated_fail("assert(" #condition ")", EMULATED_HERE))
#define __builtin_assume(condition)                                                               \
    ((condition) ? (void)0 : emulated_fail("__builtin_assume(" #condition ")", EMULATED_HERE))
#define cudaGridDependencySynchronize() ((void)0)
#define cudaTriggerProgrammaticLaunchCompletion() ((void)0)
