// Threads of a threadgroup as fibers of one OS thread. A fiber runs until it comes to a barrier or a
// SIMD-group operation whose other threads have not come yet; then the next one runs.
//
// Threads that never wait share one stack and are called one after the other, without a switch.

#include "state.h"
#include "switch.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

namespace marlin {

thread_local Context context;
thread_local State *state;

namespace {

// The lowest page of each stack is never mapped: a kernel with too large arrays stops there.
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t GUARD_BYTES = 16384;
// Stacks start at different offsets: at equal ones the same few sets of the caches would hold them all.
constexpr size_t COLOUR_BYTES = 16384;
constexpr size_t COLOUR_STEP = 448;

const char *op_name(SimdOp op) {
    static const char *const names[] = {
        "simd_sum", "simd_sum", "simd_sum", "simd_max", "simd_max", "simd_max", "simd_min",
        "simd_min", "simd_min", "simd_shuffle", "simd_shuffle_xor", "simd_shuffle_down",
        "simd_shuffle_up", "simd_broadcast", "simd_any", "simd_all", "simd_ballot",
        "simd_prefix_exclusive_sum", "barrier_simdgroup",
    };
    return names[uint(op)];
}

const char *barrier_name(bool device) { return device ? "barrier_device" : "barrier_threadgroup"; }

void describe(char *out, size_t bytes, const ThreadState &t) {
    switch (t.status) {
    case Status::AtBarrier:
        snprintf(out, bytes, "waits at %s in line %u", barrier_name(t.device_barrier), t.line);
        break;
    case Status::AtSimd:
        snprintf(out, bytes, "waits at %s in line %u", op_name(t.op), t.line);
        break;
    default:
        snprintf(out, bytes, "has returned");
    }
}

[[noreturn]] void leave() {
    State &s = *state;
    void *abandoned;
    s.faulted = true;
    marlin_fiber_switch(&abandoned, s.scheduler);
    __builtin_unreachable();
}

// Nobody can run and not all have returned: names two threads that wait for different things.
[[noreturn]] void divergence() {
    State &s = *state;
    uint first = 0;
    while (first < s.count && s.threads[first].status == Status::Returned) {
        first++;
    }
    const ThreadState &a = s.threads[first];
    // Whom the first one waits for.
    uint from = a.status == Status::AtSimd ? first / context.simd_width * context.simd_width : 0;
    uint until = a.status == Status::AtSimd ? from + context.simd_width : s.count;
    uint other = from;
    for (uint i = from; i < until && i < s.count; i++) {
        const ThreadState &b = s.threads[i];
        if (b.status != a.status || b.line != a.line || b.op != a.op
            || b.device_barrier != a.device_barrier) {
            other = i;
            break;
        }
    }
    char first_text[80];
    char other_text[80];
    describe(first_text, sizeof(first_text), a);
    describe(other_text, sizeof(other_text), s.threads[other]);
    fault_of_group("divergent control flow: thread %u %s, thread %u %s", first, first_text, other,
        other_text);
}

unsigned char *stack_end(State &s, uint stack) {
    return s.stack_memory + (size_t(stack) + 1) * STACK_BYTES - stack * COLOUR_STEP % COLOUR_BYTES;
}

void start_threads();

// A stack that stands in the loop that starts threads.
uint take_stack(State &s) {
    if (s.free_count > 0) {
        return s.free_stacks[--s.free_count];
    }
    uint stack = s.stacks++;
    s.stack_sp[stack] = marlin_fiber_prepare(stack_end(s, stack), start_threads);
    return stack;
}

void become(uint index) {
    State &s = *state;
    uint3 threads = context.threads;
    Thread &t = context.thread;
    t.index = index;
    // Divisions by what is 1 nearly always cost as much as all else here.
    t.position = threads.x == s.count
        ? make_uint3(index, 0, 0)
        : make_uint3(index % threads.x, index / threads.x % threads.y, index / (threads.x * threads.y));
    t.lane = index & (context.simd_width - 1);
    t.group = index >> s.simd_shift;
    s.threads[index].status = Status::Runnable;
}

// Leaves the running fiber, saved in `*from`, for the next thread that can run.
void switch_to_next(void **from) {
    State &s = *state;
    if (s.ready_count > 0) {
        uint index = s.ready[s.ready_first];
        s.ready_first = (s.ready_first + 1) % MAX_THREADS;
        s.ready_count--;
        become(index);
        marlin_fiber_switch(from, s.threads[index].sp);
    } else if (s.started < s.count) {
        uint stack = take_stack(s);
        marlin_fiber_switch(from, s.stack_sp[stack]);
    } else {
        divergence();
    }
}

void start_threads() {
    for (;;) {
        State &s = *state;
        uint index = s.started++;
        // Every stack in the loop is free when it is switched to, so it is known by its address.
        unsigned char *here = static_cast<unsigned char *>(__builtin_frame_address(0));
        uint stack = uint((here - s.stack_memory) / STACK_BYTES);
        ThreadState &t = s.threads[index];
        memset(&t, 0, sizeof(t));
        t.stack = stack;
        become(index);
        s.body();
        t.status = Status::Returned;
        s.returned++;
        if (s.returned == s.count) {
            marlin_fiber_switch(&s.stack_sp[stack], s.scheduler);
            __builtin_unreachable();
        }
        if (s.ready_count > 0 || s.started == s.count) {
            s.free_stacks[s.free_count++] = stack;
            switch_to_next(&s.stack_sp[stack]);
        }
    }
}

void make_ready(uint index) {
    State &s = *state;
    s.ready[(s.ready_first + s.ready_count) % MAX_THREADS] = index;
    s.ready_count++;
}

void wait_here(Status status, uint line) {
    State &s = *state;
    uint index = context.thread.index;
    ThreadState &t = s.threads[index];
    t.status = status;
    t.line = line;
    switch_to_next(&t.sp);
}

void write_fault(bool name_thread, const char *format, va_list arguments) {
    State &s = *state;
    int n = vsnprintf(s.launch->fault, s.launch->fault_bytes, format, arguments);
    size_t used = n < 0 ? 0 : size_t(n);
    if (used >= s.launch->fault_bytes) {
        return;
    }
    char *rest = s.launch->fault + used;
    size_t left = s.launch->fault_bytes - used;
    uint3 group = context.group_position;
    if (name_thread) {
        uint3 thread = context.thread.position;
        snprintf(rest, left, "; thread (%u, %u, %u) of threadgroup (%u, %u, %u)", thread.x, thread.y,
            thread.z, group.x, group.y, group.z);
    } else {
        snprintf(rest, left, "; threadgroup (%u, %u, %u)", group.x, group.y, group.z);
    }
}

void combine(Group &g, SimdOp op) {
    SimdValue *v = g.values[g.turn];
    uint lanes = g.lanes;
#define MARLIN_FOLD(member, expression) \
    for (uint i = 1; i < lanes; i++) { \
        decltype(v[0].member) a = v[0].member, b = v[i].member; \
        v[0].member = expression; \
    } \
    break
    switch (op) {
    case SimdOp::SumF32: MARLIN_FOLD(as_f32, a + b);
    case SimdOp::SumI32:
    case SimdOp::SumU32: MARLIN_FOLD(as_u32, a + b);
    case SimdOp::MaxF32: MARLIN_FOLD(as_f32, __builtin_fmaxf(a, b));
    case SimdOp::MaxI32: MARLIN_FOLD(as_i32, a > b ? a : b);
    case SimdOp::MaxU32: MARLIN_FOLD(as_u32, a > b ? a : b);
    case SimdOp::MinF32: MARLIN_FOLD(as_f32, __builtin_fminf(a, b));
    case SimdOp::MinI32: MARLIN_FOLD(as_i32, a < b ? a : b);
    case SimdOp::MinU32: MARLIN_FOLD(as_u32, a < b ? a : b);
    case SimdOp::Any: MARLIN_FOLD(bits, a | b);
    case SimdOp::All: MARLIN_FOLD(bits, a & b);
    case SimdOp::Ballot: {
        ulong ballot = 0;
        for (uint i = 0; i < lanes; i++) {
            ballot |= v[i].bits << i;
        }
        v[0].bits = ballot;
        break;
    }
    default: break;
    }
#undef MARLIN_FOLD
}

} // namespace

void fault(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_fault(true, format, arguments);
    va_end(arguments);
    leave();
}

void fault_of_group(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_fault(false, format, arguments);
    va_end(arguments);
    leave();
}

void fault_lane(SimdOp op, uint lane, uint line) {
    const Group &g = state->groups[context.thread.group];
    fault("%s in line %u reads lane %u of a SIMD-group that has %u threads", op_name(op), line, lane,
        g.lanes);
}

void barrier(bool device, uint line) {
    State &s = *state;
    uint me = context.thread.index;
    s.threads[me].device_barrier = device;
    s.at_barrier++;
    if (s.at_barrier < s.count) {
        wait_here(Status::AtBarrier, line);
        return;
    }
    for (uint i = 0; i < s.count; i++) {
        const ThreadState &t = s.threads[i];
        if (i != me && (t.line != line || t.device_barrier != device)) {
            fault("divergent control flow: it comes to %s in line %u, thread %u waits at %s in line %u",
                barrier_name(device), line, i, barrier_name(t.device_barrier), t.line);
        }
    }
    s.at_barrier = 0;
    s.threadgroup_fence = tick();
    if (device) {
        s.device_fence = s.threadgroup_fence;
    }
    for (uint i = 0; i < s.count; i++) {
        if (i != me) {
            make_ready(i);
        }
    }
}

const SimdValue *simd_exchange(SimdOp op, SimdValue value, uint line) {
    State &s = *state;
    uint me = context.thread.index;
    uint lane = context.thread.lane;
    uint group = context.thread.group;
    Group &g = s.groups[group];
    if (g.arrived == 0) {
        g.op = op;
        g.line = line;
        g.turn ^= 1;
    } else if (g.op != op || g.line != line) {
        fault("divergent control flow: it comes to %s in line %u, other threads of its SIMD-group wait at "
              "%s in line %u",
            op_name(op), line, op_name(g.op), g.line);
    }
    const SimdValue *values = g.values[g.turn];
    g.values[g.turn][lane] = value;
    g.arrived++;
    if (g.arrived < g.lanes) {
        s.threads[me].op = op;
        wait_here(Status::AtSimd, line);
        return values;
    }
    g.arrived = 0;
    combine(g, op);
    if (op == SimdOp::Barrier) {
        s.simd_fence[group] = tick();
    }
    uint first = group * context.simd_width;
    for (uint i = first; i < first + g.lanes; i++) {
        if (i != me) {
            make_ready(i);
        }
    }
    return values;
}

const MarlinRegion *threadgroup_region(uint64_t bytes, uint align, const char *name, uint line) {
    State &s = *state;
    uint index = s.threads[context.thread.index].arrays++;
    if (index < s.array_count) {
        const MarlinRegion &region = s.arrays[index];
        if (region.bytes != bytes || strcmp(region.name, name) != 0) {
            fault("divergent control flow: threadgroup array \"%s\" in line %u is declared where another "
                  "thread declared \"%s\"",
                name, line, region.name);
        }
        return &region;
    }
    if (index == MAX_ARRAYS) {
        fault("threadgroup array \"%s\" in line %u is one more than the %u that can be", name, line,
            MAX_ARRAYS);
    }
    uint start = (s.threadgroup_used + 15u) / 16u * 16u;
    if (bytes > THREADGROUP_BYTES || start + bytes > THREADGROUP_BYTES) {
        fault("threadgroup array \"%s\" in line %u has %llu bytes, %u of %u are free", name, line,
            static_cast<unsigned long long>(bytes),
            start < THREADGROUP_BYTES ? THREADGROUP_BYTES - start : 0u, THREADGROUP_BYTES);
    }
    (void)align;
    MarlinRegion &region = s.arrays[index];
    region.base = s.threadgroup + start;
    region.bytes = bytes;
    region.initialised = s.threadgroup_initialised + start;
    region.writes = s.threadgroup_writes + start;
    region.reads = s.threadgroup_reads + start;
    region.name = name;
    region.flags = MARLIN_WRITABLE | MARLIN_THREADGROUP;
    region.checked = 1;
    memset(region.initialised, 0, bytes);
    s.threadgroup_used = start + uint(bytes);
    s.array_count = index + 1;
    return &region;
}

const MarlinRegion *dynamic_region() { return &state->dynamic; }

namespace {

void start_group(State &s) {
    s.started = 0;
    s.returned = 0;
    s.at_barrier = 0;
    s.ready_first = 0;
    s.ready_count = 0;
    s.array_count = 0;
    s.group_start = tick();
    s.device_fence = s.group_start;
    s.threadgroup_fence = s.group_start;
    for (uint g = 0; g < context.simd_groups; g++) {
        uint first = g * context.simd_width;
        s.groups[g].arrived = 0;
        s.groups[g].lanes = s.count - first < context.simd_width ? s.count - first : context.simd_width;
        s.simd_fence[g] = s.group_start;
    }
    MarlinRegion &d = s.dynamic;
    d.name = "(sized by the launcher)";
    d.base = s.threadgroup;
    d.bytes = s.launch->threadgroup_bytes;
    d.initialised = s.threadgroup_initialised;
    d.writes = s.threadgroup_writes;
    d.reads = s.threadgroup_reads;
    d.flags = MARLIN_WRITABLE | MARLIN_THREADGROUP;
    d.checked = 1;
    memset(d.initialised, 0, d.bytes);
    s.threadgroup_used = uint(d.bytes);
}

void run_groups(State &s) {
    uint3 groups = context.groups;
    for (uint z = 0; z < groups.z; z++) {
        for (uint y = 0; y < groups.y; y++) {
            for (uint x = 0; x < groups.x; x++) {
                context.group_position = make_uint3(x, y, z);
                start_group(s);
                uint stack = take_stack(s);
                marlin_fiber_switch(&s.scheduler, s.stack_sp[stack]);
                if (s.faulted) {
                    return;
                }
                // All threads have returned, so all stacks but the last one's stand in the free list;
                // that one was left at its end and starts anew.
                s.stacks = 0;
                s.free_count = 0;
            }
        }
    }
}

} // namespace

int run(MarlinLaunch *launch, Body body) {
    State &s = *state;
    s.launch = launch;
    s.body = body;
    s.count = launch->threads[0] * launch->threads[1] * launch->threads[2];
    s.faulted = false;
    s.stacks = 0;
    s.free_count = 0;
    s.clock = launch->clock;
    context.launch = launch;
    context.groups =
        make_uint3(launch->threadgroups[0], launch->threadgroups[1], launch->threadgroups[2]);
    context.threads = make_uint3(launch->threads[0], launch->threads[1], launch->threads[2]);
    context.simd_width = launch->simd_width;
    s.simd_shift = uint(__builtin_ctz(launch->simd_width));
    context.simd_groups = (s.count + launch->simd_width - 1) / launch->simd_width;
    s.launch_start = tick();
    run_groups(s);
    launch->clock = s.clock;
    return s.faulted ? 1 : 0;
}

} // namespace marlin

extern "C" {

// The state of one device: large, mostly untouched memory. Null if there is none.
void *marlin_host_new() {
    size_t bytes = sizeof(marlin::State);
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return nullptr;
    }
    size_t stack_bytes = marlin::MAX_THREADS * marlin::STACK_BYTES;
    void *stacks = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
        munmap(memory, bytes);
        return nullptr;
    }
    marlin::State *s = static_cast<marlin::State *>(memory);
    s->stack_memory = static_cast<unsigned char *>(stacks);
    for (uint i = 0; i < marlin::MAX_THREADS; i++) {
        mprotect(s->stack_memory + i * marlin::STACK_BYTES, marlin::GUARD_BYTES, PROT_NONE);
    }
    return s;
}

void marlin_host_free(void *memory) {
    marlin::State *s = static_cast<marlin::State *>(memory);
    munmap(s->stack_memory, marlin::MAX_THREADS * marlin::STACK_BYTES);
    munmap(s, sizeof(marlin::State));
}

// Makes `memory` the state of what this OS thread runs next.
void marlin_host_use(void *memory) { marlin::state = static_cast<marlin::State *>(memory); }

} // extern "C"
