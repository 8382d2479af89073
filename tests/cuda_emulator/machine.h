// What there is on the emulated machine: stacks and how to switch them, fibers, memory; and how a
// launch fails. Only for cuda_emulator.cpp.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "cuda_emulator.h"
#undef assert

extern "C" {
uint3 emulated_thread, emulated_block;
dim3 emulated_block_size, emulated_grid_size;
}

namespace {

const char* const WAITS[] = {
    "", "__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or",
    "a named barrier", "__syncwarp", "__ballot_sync", "__shfl_sync", "__match_any_sync",
    "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
    "__reduce_or_sync",
};
constexpr size_t STACK = 256 << 10, PAGE = 4096, FENCE = 256 << 10, ALIGN = 256;
constexpr unsigned char GARBAGE = 0xff;  // NaN as a float, -1 as an integer
constexpr unsigned char GUARD = 0xa5;
constexpr int MOST_THREADS = 1024, NAMED_BARRIERS = 16;
constexpr uint64_t SPINS = 1 << 16;  // rounds in which everybody only spins

// ---------------------------------------------------------------- switching between stacks
#if defined(__x86_64__)
// Pushes what a function must keep, changes stacks, pops: about ten instructions.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
struct Context {
    void* top = nullptr;
    void start(char* stack, void (*entry)()) {
        void** at = reinterpret_cast<void**>(stack + STACK) - 1;  // aligned as after a call
        *at = nullptr;                                            // nowhere to return to
        *--at = reinterpret_cast<void*>(entry);
        at -= 6;
        std::memset(at, 0, 6 * sizeof(void*));
        top = at;
    }
    void enter(Context& from) { emulated_switch(&from.top, top); }
};
#else
struct Context {
    ucontext_t state;
    void start(char* stack, void (*entry)()) {
        getcontext(&state);
        state.uc_stack.ss_sp = stack;
        state.uc_stack.ss_size = STACK;
        state.uc_link = nullptr;
        makecontext(&state, entry, 0);
    }
    void enter(Context& from) { swapcontext(&from.state, &state); }
};
#endif

struct Fiber {
    Context context;
    uint3 index;
    int number;     // linear, x fastest
    int wait;       // EmulatedWait, 0 if it can run
    bool done, spins;
    unsigned mask;  // of a warp function
    uint64_t value, result;
    int lane, barrier;  // lane read from; barrier: id and predicate
    const char* file;
    int line;
};
struct Copy { void* to; const void* from; size_t nbytes; };
struct NamedBarrier { int arrived, threads; };

struct Allocation { char* base; size_t mapped; char* start; size_t nbytes, padded; };

using Function = void (*)();
struct Machine {
    std::mutex lock;
    std::vector<Allocation> memory;
    char* stacks = nullptr;
    char* shared = nullptr;  // dynamic shared memory ends where a page without access begins
    size_t shared_room = 0;
    Fiber fibers[MOST_THREADS];
    int threads = 0, alive = 0, at_barrier = 0;
    NamedBarrier named[NAMED_BARRIERS];
    std::vector<Copy> copies[MOST_THREADS];  // of each fiber, on their way
    Fiber* current = nullptr;
    Context scheduler;
    sigjmp_buf failed;
    std::string error;
    uint64_t random = 1;
    // of the launch
    Function function;
    int count;
    const uint64_t* arguments;
    size_t dynamic_bytes, dynamic_padded;
    std::vector<uint64_t> blocks;  // here since a failure jumps over destructors
    std::vector<int> order;
};
Machine machine;

uint64_t next_random() {  // splitmix64
    uint64_t z = machine.random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

template <typename T> void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random() % i]);
}

// ---------------------------------------------------------------- failing
[[noreturn]] void fail() { siglongjmp(machine.failed, 1); }

std::string format(const char* text, ...) {
    char buffer[600];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(buffer, sizeof buffer, text, arguments);
    va_end(arguments);
    return buffer;
}

const char* base_name(const char* file) {
    const char* slash = file ? std::strrchr(file, '/') : nullptr;
    return slash ? slash + 1 : file ? file : "?";
}

std::string where(const Fiber& fiber) {
    return format("block (%u, %u, %u), thread (%u, %u, %u)", emulated_block.x, emulated_block.y,
                  emulated_block.z, fiber.index.x, fiber.index.y, fiber.index.z);
}

std::string waiting(const Fiber& fiber) {
    if (fiber.done) return format("thread %d has exited", fiber.number);
    std::string text = format("thread %d waits in %s at %s:%d", fiber.number,
                              fiber.wait ? WAITS[fiber.wait] : "a loop", base_name(fiber.file),
                              fiber.line);
    if (fiber.wait >= EMULATED_SYNCWARP) text += format(" with mask %#x", fiber.mask);
    return text;
}

}  // namespace
