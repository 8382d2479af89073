// What fibers wait for: barriers of the block, warp functions, and when they are let go. Only for
// cuda_emulator.cpp.
#pragma once

#include <algorithm>

#include "machine.h"

namespace {

void to_scheduler() {
    Fiber& fiber = *machine.current;
    machine.scheduler.enter(fiber.context);
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

}  // namespace

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

}  // extern "C"
