// What needs PTX: copies that do not hold up the thread, hints, and the clock.
#pragma once

#ifndef TERAEDGE_EMULATED

// Copy 16 bytes from global to shared memory, without a register and without waiting.
__device__ __forceinline__ void copy_async(void *shared, const void *global) {
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
}

// Wait for all copies of this thread; a barrier then shows them to the others.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// End a group of copies of this thread; wait until at most LEFT groups are under way.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// One copy of many bytes that one thread begins and all wait for, where the GPU has such (from sm_90 on): it takes
// no turns of the load unit. Each wait for the same arrival is for the next phase, 0 and 1 in turn.
typedef unsigned long long Arrival; // in shared memory
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool BULK = true;

__device__ __forceinline__ unsigned arrival_address(Arrival *arrival) {
    return static_cast<unsigned>(__cvta_generic_to_shared(arrival));
}

__device__ __forceinline__ void begin_arrivals(Arrival *arrival) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(arrival_address(arrival)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Sizes and addresses are multiples of 16.
__device__ __forceinline__ void copy_bulk(void *shared, const void *global, unsigned bytes, Arrival *arrival) {
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(arrival_address(arrival)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
                 "l"(global), "r"(bytes), "r"(arrival_address(arrival))
                 : "memory");
}

__device__ __forceinline__ void wait_for_bulk(Arrival *arrival, unsigned phase) {
    asm volatile("{\n"
                 ".reg .pred there;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared.b64 there, [%0], %1;\n"
                 "@!there bra again;\n"
                 "}" ::"r"(arrival_address(arrival)),
                 "r"(phase)
                 : "memory");
}
#else
constexpr bool BULK = false;

__device__ __forceinline__ void begin_arrivals(Arrival *) {}

__device__ __forceinline__ void copy_bulk(void *, const void *, unsigned, Arrival *) {}

__device__ __forceinline__ void wait_for_bulk(Arrival *, unsigned) {}
#endif

// Have a line brought near, for a load that is to come.
__device__ __forceinline__ void touch(const void *global) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
}

// The same, as far as L2: much at a time.
__device__ __forceinline__ void touch_far(const void *global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// An address in shared memory, in 32 bits; `of` is what a block declares as `extern __shared__`.
__device__ __forceinline__ unsigned shared_address(const void *of, unsigned offset) {
    return static_cast<unsigned>(__cvta_generic_to_shared(of)) + offset;
}

// Copy 4, 8 or 16 bytes to such an address.
template <int BYTES> __device__ __forceinline__ void copy_async_to(void *, unsigned address, const void *global) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(BYTES) : "memory");
}

// Read from such an address.
template <class T> __device__ __forceinline__ T load_shared(const void *of, unsigned address);
template <> __device__ __forceinline__ float load_shared(const void *, unsigned address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
    return x;
}
template <> __device__ __forceinline__ unsigned load_shared(const void *, unsigned address) {
    unsigned x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address));
    return x;
}
template <> __device__ __forceinline__ unsigned short load_shared(const void *, unsigned address) {
    unsigned short x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(address));
    return x;
}
template <> __device__ __forceinline__ uint4 load_shared(const void *, unsigned address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address));
    return x;
}

// Write to one.
__device__ __forceinline__ void store_shared(void *, unsigned address, unsigned x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

__device__ __forceinline__ void store_shared(void *, unsigned address, unsigned short x) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(x) : "memory");
}

// Write to global memory what the kernel does not read again: nothing waits for it, and no address is looked at.
__device__ __forceinline__ void store_global(float4 *to, const float4 &x) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w));
}
__device__ __forceinline__ void store_global(uint2 *to, const uint2 &x) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y));
}
__device__ __forceinline__ void store_global(uint4 *to, const uint4 &x) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w));
}

// The same value, of which nothing is computed ahead of a loop: registers are short there.
template <class T> __device__ __forceinline__ T opaque(T value) {
    asm volatile("" : "+l"(value));
    return value;
}

// Nanoseconds of a clock that all blocks share.
__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Clocks of a multiprocessor, which are there at once; nanoseconds take longer to read than a small layer.
__device__ __forceinline__ unsigned long long clocks() { return clock64(); }

#else

__device__ __forceinline__ void copy_async(void *shared, const void *global) {
    emulated_copy_async(shared, global, 16); // arrives when it is waited for
}

__device__ __forceinline__ void wait_for_copies() { emulated_wait_for_copies(); }

__device__ __forceinline__ void end_group() {}

template <int LEFT> __device__ __forceinline__ void wait_for_groups() { emulated_wait_for_copies(); }

__device__ __forceinline__ void touch(const void *) {}

__device__ __forceinline__ void touch_far(const void *) {}

template <class T> T opaque(T value) { return value; }

typedef unsigned long long Arrival;
constexpr bool BULK = true;

inline void begin_arrivals(Arrival *arrival) { *arrival = 0; }

inline void copy_bulk(void *shared, const void *global, unsigned bytes, Arrival *arrival) {
    for (unsigned k = 0; k < bytes; k += 16)
        emulated_copy_async(static_cast<char *>(shared) + k, static_cast<const char *>(global) + k, 16);
    ++*arrival; // copies begun
}

inline void wait_for_bulk(const volatile Arrival *arrival, unsigned phase) {
    while (*arrival % 2 == phase) // not begun
        emulated_yield(__FILE__, __LINE__);
    emulated_wait_for_copies();
}

inline unsigned shared_address(const void *, unsigned offset) { return offset; }

template <int BYTES> inline void copy_async_to(void *of, unsigned address, const void *global) {
    emulated_copy_async(static_cast<char *>(of) + address, global, BYTES);
}

template <class T> inline T load_shared(const void *of, unsigned address) {
    return *reinterpret_cast<const T *>(static_cast<const char *>(of) + address);
}

template <class T> inline void store_shared(void *of, unsigned address, T x) {
    *reinterpret_cast<T *>(static_cast<char *>(of) + address) = x;
}

template <class T> inline void store_global(T *to, const T &x) { *to = x; }

__device__ __forceinline__ unsigned long long nanoseconds() { return emulated_nanoseconds(); }

__device__ __forceinline__ unsigned long long clocks() { return emulated_nanoseconds(); }

#endif
