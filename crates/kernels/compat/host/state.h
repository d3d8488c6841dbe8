// The state of one emulated device's execution: shared by fibers.cpp and check.cpp, unseen by kernels.
#pragma once

#include "execution.h"

namespace marlin {

// Apple's limits: Metal Feature Set Tables, "Maximum threads per threadgroup" and "Maximum total threadgroup
// memory allocation", Apple4 and later.
constexpr uint MAX_THREADS = 1024;
constexpr uint THREADGROUP_BYTES = 32768;

constexpr uint MIN_SIMD_WIDTH = 8;
constexpr uint MAX_GROUPS = MAX_THREADS / MIN_SIMD_WIDTH;
constexpr uint MAX_LANES = 64;
constexpr uint MAX_ARRAYS = 64;
constexpr uint MAX_PENDING_COPIES = 64;

enum class Status : uint { NotStarted, Runnable, AtBarrier, AtSimd, Returned };

struct PendingCopy {
    const MarlinRegion *region;
    uint64_t offset;
    uint number; // Of its commit.
    unsigned char data[16];
};

// What is kept of a thread while another runs.
struct ThreadState {
    void *sp;
    uint stack;
    Status status;
    uint line;
    bool device_barrier;
    SimdOp op;
    // What it touched of memory that another dispatch may be writing or reading, if it did.
    const MarlinRegion *touched;
    bool touched_by_write;
    uint arrays;        // Threadgroup arrays that it has come past.
    uint commits;       // Of asynchronous copies.
    uint first_pending; // In its ring of pending copies.
    uint pending;
};

struct Group {
    uint arrived;
    uint lanes;
    SimdOp op;
    uint line;
    uint turn;
    // By turn: a lane may come to the next meeting before the others have read this one's values.
    SimdValue values[2][MAX_LANES];
};

struct State {
    MarlinLaunch *launch;
    Body body;
    uint count;      // Threads of the threadgroup.
    uint simd_shift; // Of the SIMD width, a power of two.
    uint started;
    uint returned;
    uint at_barrier;
    bool faulted;

    void *scheduler;
    ThreadState threads[MAX_THREADS];
    Group groups[MAX_GROUPS];

    // Threads that can go on, oldest first.
    uint ready[MAX_THREADS];
    uint ready_first;
    uint ready_count;

    // Stacks; those not in use stand in the loop that starts threads.
    unsigned char *stack_memory;
    void *stack_sp[MAX_THREADS];
    uint stacks; // That were ever used.
    uint free_stacks[MAX_THREADS];
    uint free_count;

    MarlinRegion arrays[MAX_ARRAYS];
    uint array_count;
    uint threadgroup_used;
    MarlinRegion dynamic;

    // See check.cpp.
    uint clock;
    uint launch_start;
    uint group_start;
    uint device_fence;
    uint threadgroup_fence;
    uint simd_fence[MAX_GROUPS];

    PendingCopy copies[MAX_THREADS][MAX_PENDING_COPIES];

    alignas(256) unsigned char threadgroup[THREADGROUP_BYTES];
    unsigned char threadgroup_initialised[THREADGROUP_BYTES];
    uint32_t threadgroup_writes[THREADGROUP_BYTES];
    uint32_t threadgroup_reads[THREADGROUP_BYTES];
};

extern thread_local State *state;

// Describes a fault as `printf` does, adds which thread it was, and ends the launch.
[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
// The same without naming a thread.
[[noreturn]] void fault_of_group(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The next moment: what was done before it and what is done after it can be told apart.
uint tick();

} // namespace marlin
