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

// Have a line brought near, for a load that is to come.
__device__ __forceinline__ void touch(const void *global) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
}

// Nanoseconds of a clock that all blocks share.
__device__ __forceinline__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

#else

__device__ __forceinline__ void copy_async(void *shared, const void *global) {
    emulated_copy_async(shared, global, 16); // arrives when it is waited for
}

__device__ __forceinline__ void wait_for_copies() { emulated_wait_for_copies(); }

__device__ __forceinline__ void end_group() {}

template <int LEFT> __device__ __forceinline__ void wait_for_groups() { emulated_wait_for_copies(); }

__device__ __forceinline__ void touch(const void *) {}

__device__ __forceinline__ unsigned long long nanoseconds() { return emulated_nanoseconds(); }

#endif
