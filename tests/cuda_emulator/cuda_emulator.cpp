// The machine under cuda_emulator.h: fibers, barriers, memory with guards, launches.
//
// One launch runs at a time. A block's threads are fibers that run until they wait; the scheduler
// goes round them in an order that is shuffled anew for every block, so that code which needs a
// barrier and has none gives other results. What goes wrong ends the launch with one line.
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

void on_fault(int, siginfo_t* info, void*) {
    machine.error = "access to address " + format("%p", info->si_addr) +
                    ", which is in no allocation";
    for (const Allocation& block : machine.memory) {
        char* at = static_cast<char*>(info->si_addr);
        if (at >= block.base && at < block.base + block.mapped)
            machine.error = format("access %td bytes from the start of an allocation of %zu bytes",
                                   at - block.start, block.nbytes);
    }
    char* at = static_cast<char*>(info->si_addr);
    if (machine.shared && at >= machine.shared && at < machine.shared + machine.shared_room + PAGE)
        machine.error = format("access %td bytes from the start of %zu bytes of dynamic shared memory",
                               at - static_cast<char*>(emulated_dynamic_shared()),
                               machine.dynamic_bytes);
    if (machine.current) {
        Fiber& fiber = *machine.current;
        machine.error += " by " + where(fiber);
        if (fiber.file)
            machine.error += format(", after %s:%d", base_name(fiber.file), fiber.line);
    }
    fail();
}

// ---------------------------------------------------------------- fibers
void to_scheduler() {
    Fiber& fiber = *machine.current;
    machine.scheduler.enter(fiber.context);
}

template <int... I> struct Indices {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { using type = Indices<I...>; };
template <int> using Word = uint64_t;
template <int... I> void call(Indices<I...>) {
    reinterpret_cast<void (*)(Word<I>...)>(machine.function)(machine.arguments[I]...);
}
template <int N> void call_with() { call(typename Count<N>::type()); }
constexpr int MOST_ARGUMENTS = 24;
template <int... I> void call_any(Indices<I...>) {
    static constexpr Function calls[] = {call_with<I>...};
    calls[machine.count]();
}

void release_barrier();
void release_warp(const Fiber& arrived);

void fiber_main() {
    call_any(typename Count<MOST_ARGUMENTS + 1>::type());
    Fiber& fiber = *machine.current;
    fiber.done = true;
    --machine.alive;
    release_barrier();  // those that exited are waited for no more
    release_warp(fiber);
    to_scheduler();
    std::abort();
}

void wait(int kind, const char* file, int line) {
    Fiber& fiber = *machine.current;
    fiber.wait = kind;
    fiber.file = file;
    fiber.line = line;
}

// Let the fibers of __syncthreads go once all of the block that still run are there.
void release_barrier() {
    if (!machine.at_barrier || machine.at_barrier < machine.alive) return;
    Fiber* first = nullptr;
    int sum = 0;
    for (int i = 0; i < machine.threads; ++i) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.done) continue;
        if (!first) first = &fiber;
        if (fiber.line != first->line || fiber.wait != first->wait ||
            std::strcmp(fiber.file, first->file)) {
            machine.error = "divergent barrier: " + waiting(*first) + ", but " + waiting(fiber);
            fail();
        }
        sum += fiber.barrier;
    }
    int result = sum;
    if (first->wait == EMULATED_SYNCTHREADS_AND) result = sum == machine.at_barrier;
    if (first->wait == EMULATED_SYNCTHREADS_OR) result = sum != 0;
    for (int i = 0; i < machine.threads; ++i) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.done) continue;
        fiber.wait = 0;
        fiber.result = result;
    }
    machine.at_barrier = 0;
}

uint64_t reduce(int kind, int64_t a, int64_t b) {
    switch (kind) {
        case EMULATED_REDUCE_ADD: return a + b;
        case EMULATED_REDUCE_MIN: return a < b ? a : b;
        case EMULATED_REDUCE_MAX: return a > b ? a : b;
        case EMULATED_REDUCE_AND: return a & b;
        default: return a | b;
    }
}

// Give every lane of a mask what its warp function returns.
void finish(Fiber* lanes, unsigned mask, int kind) {
    unsigned ballot = 0;
    bool any = false;
    uint64_t total = 0;
    for (int i = 0; i < 32; ++i) {
        if (!(mask >> i & 1u)) continue;
        if (lanes[i].value) ballot |= 1u << i;
        total = any ? reduce(kind, total, lanes[i].value) : lanes[i].value;
        any = true;
    }
    for (int i = 0; i < 32; ++i) {
        if (!(mask >> i & 1u)) continue;
        Fiber& fiber = lanes[i];
        fiber.result = total;
        if (kind == EMULATED_BALLOT) fiber.result = ballot;
        if (kind == EMULATED_SHFL)  // from a lane that takes no part: undefined, so garbage
            fiber.result = mask >> fiber.lane & 1u ? lanes[fiber.lane].value : ~uint64_t(0);
        if (kind == EMULATED_MATCH) {
            fiber.result = 0;
            for (int j = 0; j < 32; ++j)
                if (mask >> j & 1u && lanes[j].value == fiber.value) fiber.result |= 1u << j;
        }
    }
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1u) lanes[i].wait = 0;
}

// Let the lanes of one lane's mask go, if all of them have come to the same warp function.
void release_mask(Fiber* lanes, int width, const Fiber& fiber) {
    unsigned there = 0;
    for (int j = 0; j < width; ++j) {
        if (!(fiber.mask >> j & 1u) || lanes[j].done) continue;
        if (lanes[j].wait != fiber.wait || lanes[j].mask != fiber.mask) return;
        there |= 1u << j;
    }
    finish(lanes, there, fiber.wait);
}

void release_warp(const Fiber& arrived) {
    int warp = arrived.number / 32, width = std::min(32, machine.threads - 32 * warp);
    Fiber* lanes = machine.fibers + 32 * warp;
    if (!arrived.done) return release_mask(lanes, width, arrived);
    for (int i = 0; i < width; ++i)  // one that exits may be the last that others wait for
        if (!lanes[i].done && lanes[i].wait >= EMULATED_SYNCWARP)
            release_mask(lanes, width, lanes[i]);
}

void release_named(int id) {
    for (int i = 0; i < machine.threads; ++i) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.wait == EMULATED_NAMED_BARRIER && fiber.barrier == id) fiber.wait = 0;
    }
    machine.named[id] = {0, 0};
}

// ---------------------------------------------------------------- blocks
void start_block() {
    int i = 0;
    for (unsigned z = 0; z < emulated_block_size.z; ++z)
        for (unsigned y = 0; y < emulated_block_size.y; ++y)
            for (unsigned x = 0; x < emulated_block_size.x; ++x, ++i) {
                Fiber& fiber = machine.fibers[i];
                fiber.index = {x, y, z};
                fiber.number = i;
                fiber.wait = 0;
                fiber.done = fiber.spins = false;
                fiber.file = nullptr;
                fiber.context.start(machine.stacks + i * (STACK + PAGE) + PAGE, fiber_main);
            }
    machine.alive = machine.threads;
    machine.at_barrier = 0;
    std::memset(machine.named, 0, sizeof machine.named);
}

// Go round the fibers until all have exited.
void run_block(const std::vector<int>& order) {
    uint64_t spins = 0;
    while (machine.alive) {
        bool ran = false, only_spun = true;
        for (int i : order) {
            Fiber& fiber = machine.fibers[i];
            if (fiber.done || fiber.wait) continue;
            ran = true;
            fiber.spins = false;
            machine.current = &fiber;
            emulated_thread = fiber.index;
            fiber.context.enter(machine.scheduler);
            machine.current = nullptr;
            only_spun &= fiber.spins;
        }
        spins = only_spun ? spins + 1 : 0;
        if (ran && spins < SPINS) continue;
        const Fiber* first = nullptr;
        std::string text;
        for (int i = 0; i < machine.threads && text.empty(); ++i) {
            const Fiber& fiber = machine.fibers[i];
            if (fiber.done) continue;
            if (!first) first = &fiber;
            if (fiber.wait != first->wait || fiber.line != first->line || fiber.mask != first->mask)
                text = ", " + waiting(fiber);
        }
        for (int i = 0; i < machine.threads && text.empty(); ++i)
            if (machine.fibers[i].done) text = ", " + waiting(machine.fibers[i]);
        machine.error = format("deadlock in block (%u, %u, %u): ", emulated_block.x,
                               emulated_block.y, emulated_block.z) + waiting(*first) + text;
        fail();
    }
}

void check_guard(char* start, size_t nbytes, size_t padded, const char* what) {
    for (size_t i = nbytes; i < padded; ++i) {
        if ((unsigned char)start[i] == GUARD) continue;
        machine.error = format("a write %zu bytes from the start of %s of %zu bytes", i, what,
                               nbytes);
        std::memset(start + nbytes, GUARD, padded - nbytes);  // say it once
        fail();
    }
}

void run_grid(dim3 grid, char* statics, size_t static_bytes) {
    std::vector<uint64_t>& blocks = machine.blocks;
    blocks.resize(uint64_t(grid.x) * grid.y * grid.z);
    for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    shuffle(blocks);
    std::vector<int>& order = machine.order;
    order.resize(machine.threads);
    for (int i = 0; i < machine.threads; ++i) order[i] = i;
    char* dynamic = static_cast<char*>(emulated_dynamic_shared());
    for (uint64_t block : blocks) {
        emulated_block = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y),
                          unsigned(block / grid.x / grid.y)};
        shuffle(order);
        std::memset(dynamic, GARBAGE, machine.dynamic_bytes);
        std::memset(dynamic + machine.dynamic_bytes, GUARD,
                    machine.dynamic_padded - machine.dynamic_bytes);
        if (static_bytes) std::memset(statics, GARBAGE, static_bytes);
        start_block();
        run_block(order);
        check_guard(dynamic, machine.dynamic_bytes, machine.dynamic_padded,
                    "dynamic shared memory");
    }
    for (const Allocation& memory : machine.memory)
        check_guard(memory.start, memory.nbytes, memory.padded, "an allocation");
}

char* map(size_t nbytes, int access) {
    void* at = mmap(nullptr, nbytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    return static_cast<char*>(at);
}

void prepare(size_t dynamic_bytes) {
    if (!machine.stacks) {
        machine.stacks = map(MOST_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE);
        for (int i = 0; i < MOST_THREADS; ++i)
            mprotect(machine.stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
    }
    if (!machine.shared) {
        machine.shared_room = 1 << 20;
        machine.shared = map(machine.shared_room + PAGE, PROT_READ | PROT_WRITE);
        mprotect(machine.shared + machine.shared_room, PAGE, PROT_NONE);
    }
    machine.dynamic_bytes = dynamic_bytes;
    machine.dynamic_padded = (dynamic_bytes + 127) / 128 * 128;
}

// Catches accesses outside of all memory while it lives.
struct Faults {
    struct sigaction old_segv, old_bus;
    stack_t old_stack;
    static char stack[1 << 16];
    Faults() {
        stack_t own = {};
        own.ss_sp = stack;
        own.ss_size = sizeof stack;
        sigaltstack(&own, &old_stack);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &old_segv);
        sigaction(SIGBUS, &action, &old_bus);
    }
    ~Faults() {
        sigaction(SIGSEGV, &old_segv, nullptr);
        sigaction(SIGBUS, &old_bus, nullptr);
        sigaltstack(&old_stack, nullptr);
    }
};
char Faults::stack[1 << 16];

}  // namespace

// ---------------------------------------------------------------- what kernels call
extern "C" {

int emulated_barrier(int kind, int predicate, const char* file, int line) {
    wait(kind, file, line);
    machine.current->barrier = predicate;
    ++machine.at_barrier;
    release_barrier();
    if (machine.current->wait) to_scheduler();
    return int(machine.current->result);
}

void emulated_named_barrier(int id, int threads, int waits, const char* file, int line) {
    if (id < 0 || id >= NAMED_BARRIERS)
        emulated_fail("a named barrier that is not 0 to 15", file, line);
    NamedBarrier& barrier = machine.named[id];
    if (barrier.arrived && barrier.threads != threads)
        emulated_fail("a named barrier with two numbers of threads", file, line);
    barrier.threads = threads;
    if (waits) {
        wait(EMULATED_NAMED_BARRIER, file, line);
        machine.current->barrier = id;
    }
    if (++barrier.arrived >= threads) release_named(id);
    if (machine.current->wait) to_scheduler();
}

uint64_t emulated_collective(int kind, unsigned mask, uint64_t value, int lane, const char* file,
                             int line) {
    Fiber& fiber = *machine.current;
    if (!(mask >> (fiber.number % 32) & 1u))
        emulated_fail("a warp function whose mask lacks the calling lane", file, line);
    wait(kind, file, line);
    fiber.mask = mask;
    fiber.value = value;
    fiber.lane = lane & 31;
    release_warp(fiber);
    if (fiber.wait) to_scheduler();
    return fiber.result;
}

void emulated_yield(const char* file, int line) {
    machine.current->spins = true;
    machine.current->file = file;
    machine.current->line = line;
    to_scheduler();
}

void* emulated_dynamic_shared() {
    return machine.shared + machine.shared_room - machine.dynamic_padded;
}

unsigned emulated_active_mask() { return 1u << emulated_lane(); }

unsigned emulated_lane() { return unsigned(machine.current->number) % 32; }

void emulated_fail(const char* message, const char* file, int line) {
    machine.error = format("%s at %s:%d by ", message, base_name(file), line);
    machine.error += where(*machine.current);
    fail();
}

// ---------------------------------------------------------------- what device.py calls

// Returns nullptr or what went wrong. `statics` is the static shared memory of the kernel's library.
const char* emulate(void (*function)(), const unsigned* grid, const unsigned* block,
                    uint64_t dynamic_bytes, char* statics, uint64_t static_bytes, uint64_t seed,
                    int count, const uint64_t* arguments) {
    static thread_local std::string error;
    std::lock_guard<std::mutex> guard(machine.lock);
    machine.error.clear();
    if (count > MOST_ARGUMENTS) return "more arguments than the emulator can pass";
    prepare(dynamic_bytes);
    machine.function = function;
    machine.count = count;
    machine.arguments = arguments;
    machine.random = seed;
    emulated_grid_size = {grid[0], grid[1], grid[2]};
    emulated_block_size = {block[0], block[1], block[2]};
    machine.threads = int(block[0] * block[1] * block[2]);
    Faults faults;
    if (sigsetjmp(machine.failed, 1) == 0) run_grid(emulated_grid_size, statics, static_bytes);
    machine.current = nullptr;
    if (machine.error.empty()) return nullptr;
    error = machine.error;
    return error.c_str();
}

// Device memory: ends at a page without access but for padding to 256 bytes, which is checked.
void* emulated_allocate(uint64_t nbytes) {
    std::lock_guard<std::mutex> guard(machine.lock);
    size_t padded = (std::max<uint64_t>(nbytes, 1) + ALIGN - 1) / ALIGN * ALIGN;
    size_t room = (padded + PAGE - 1) / PAGE * PAGE, mapped = room + 2 * FENCE;
    char* base = map(mapped, PROT_NONE);
    if (!base || mprotect(base + FENCE, room, PROT_READ | PROT_WRITE)) return nullptr;
    char* start = base + FENCE + room - padded;
    std::memset(start, GARBAGE, nbytes);
    std::memset(start + nbytes, GUARD, padded - nbytes);
    machine.memory.push_back({base, mapped, start, nbytes, padded});
    return start;
}

// Returns 0, 1 if bytes after the end were written to, 2 if there is no such memory.
int emulated_free(void* address) {
    std::lock_guard<std::mutex> guard(machine.lock);
    for (size_t i = 0; i < machine.memory.size(); ++i) {
        Allocation block = machine.memory[i];
        if (block.start != address) continue;
        machine.memory.erase(machine.memory.begin() + long(i));
        bool written = false;
        for (size_t j = block.nbytes; j < block.padded; ++j)
            written |= (unsigned char)block.start[j] != GUARD;
        munmap(block.base, block.mapped);
        return written;
    }
    return 2;
}

// Bytes from `address` to the end of the allocation it lies in, or -1.
long long emulated_room(const void* address) {
    std::lock_guard<std::mutex> guard(machine.lock);
    const char* at = static_cast<const char*>(address);
    for (const Allocation& block : machine.memory)
        if (at >= block.start && at <= block.start + block.nbytes)
            return block.start + block.nbytes - at;
    return -1;
}

}  // extern "C"
