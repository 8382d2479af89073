// The machine under cuda_emulator.h: launches, blocks, memory with guards.
//
// One launch runs at a time. A block's threads are fibers that run until they wait; the scheduler
// goes round them in an order that is shuffled anew for every block, so that code which needs a
// barrier and has none gives other results. What goes wrong ends the launch with one line.
#include <utility>

#include "machine.h"
#include "waiting.h"

namespace {

constexpr size_t MOST_ARGUMENTS = 24;

// A kernel is a function of so many 64-bit words, whatever it calls them.
template <size_t> using Word = uint64_t;
template <size_t... I> void call(std::index_sequence<I...>) {
    reinterpret_cast<void (*)(Word<I>...)>(machine.function)(machine.arguments[I]...);
}
template <size_t N> void call_with() { call(std::make_index_sequence<N>()); }
template <size_t... I> void call_any(std::index_sequence<I...>) {
    static constexpr Function calls[] = {call_with<I>...};
    calls[machine.count]();
}

void fiber_main() {
    call_any(std::make_index_sequence<MOST_ARGUMENTS + 1>());
    Fiber& fiber = *machine.current;
    fiber.done = true;
    --machine.alive;
    release_barrier();  // those that exited are waited for no more
    release_warp(fiber);
    to_scheduler();
    std::abort();
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
                machine.copies[i].clear();
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
        machine.error =
            format("access %td bytes from the start of %zu bytes of dynamic shared memory",
                   at - static_cast<char*>(emulated_dynamic_shared()), machine.dynamic_bytes);
    if (machine.current) {
        Fiber& fiber = *machine.current;
        machine.error += " by " + where(fiber);
        if (fiber.file)
            machine.error += format(", after %s:%d", base_name(fiber.file), fiber.line);
    }
    fail();
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

void emulated_yield(const char* file, int line) {
    machine.current->spins = true;
    machine.current->file = file;
    machine.current->line = line;
    to_scheduler();
}

void emulated_copy_async(void* shared, const void* global, size_t nbytes) {
    bool size = nbytes == 4 || nbytes == 8 || nbytes == 16;
    if (!size || (uintptr_t(shared) | uintptr_t(global)) % nbytes)
        emulated_fail("a copy of cp.async that is not 4, 8 or 16 aligned bytes", "", 0);
    machine.copies[machine.current->number].push_back({shared, global, nbytes});
}

void emulated_wait_for_copies() {
    std::vector<Copy>& copies = machine.copies[machine.current->number];
    for (const Copy& copy : copies) std::memcpy(copy.to, copy.from, copy.nbytes);
    copies.clear();
}

unsigned long long emulated_nanoseconds() {
    static unsigned long long now = 0;
    return ++now;
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

// Returns nullptr or what went wrong. `statics`: the static shared memory of the kernel's library.
const char* emulate(void (*function)(), const unsigned* grid, const unsigned* block,
                    uint64_t dynamic_bytes, char* statics, uint64_t static_bytes, uint64_t seed,
                    int count, const uint64_t* arguments) {
    static thread_local std::string error;
    std::lock_guard<std::mutex> guard(machine.lock);
    machine.error.clear();
    if (size_t(count) > MOST_ARGUMENTS) return "more arguments than the emulator can pass";
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
