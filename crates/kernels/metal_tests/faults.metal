// Kernels that are wrong in one way each; the emulated device must say so.

struct FaultArgs {
    uint index; // What it reads or writes.
};

// y[i] = x[index].
kernel void read_at(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    INLINE(FaultArgs) args [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = x[args.index];
}

// y[index] = 1 from the first thread.
kernel void write_at(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (thread_index == 0u) {
        y[args.index] = 1u;
    }
}

// Four words at once from where four words need not start.
kernel void misaligned_read(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    INLINE(FaultArgs) args [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint4 words = *device_cast(const uint4, x + args.index);
    y[thread_index] = words.x + words.w;
}

// y[i] = x[0], or 0 where nothing is bound and the constant says so.
SPECIALISE(bool, HAS_X, 0);
kernel void read_optional(
    IN_OPTIONAL(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = HAS_X ? uint(x[thread_index]) : 0u;
}

// Reads its output before it writes it.
kernel void read_output(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint before = y[thread_index];
    y[thread_index] = before + 1u;
}

// Adds one to each element: right as long as all were written before.
kernel void increment(
    INOUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] += 1u;
}

// Casts the constness of its input away.
kernel void write_input(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    device_cast(uint, x)[thread_index] = 0u;
    y[thread_index] = 0u;
}

// How the kernels below meet. 0: not at all, 1: barrier_threadgroup, 2: barrier_device,
// 3: barrier_simdgroup.
SPECIALISE(uint, MEETING, 1);

static inline void meet() {
    if (MEETING == 1u) {
        barrier_threadgroup();
    } else if (MEETING == 2u) {
        barrier_device();
    } else if (MEETING == 3u) {
        barrier_simdgroup();
    }
}

// y[i] = the next thread's number, through threadgroup memory.
kernel void neighbour_in_threadgroup(
    OUT(uint) y [[buffer(0)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint, numbers, 1024);
    numbers[thread_index] = thread_index;
    meet();
    y[thread_index] = numbers[(thread_index + 1u) % threads.x];
}

// The same, but the slot is used again for the next number. The first barrier is there.
kernel void slot_used_again(
    OUT(uint) y [[buffer(0)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint, numbers, 1024);
    numbers[thread_index] = thread_index;
    barrier_threadgroup();
    uint next = numbers[(thread_index + 1u) % threads.x];
    meet();
    numbers[thread_index] = next;
    y[thread_index] = next;
}

// y[i] = the next thread's number, through device memory.
kernel void neighbour_in_device(
    OUT(uint) numbers [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    numbers[thread_index] = thread_index;
    meet();
    y[thread_index] = numbers[(thread_index + 1u) % threads.x];
}

// Every thread writes the same number to one place.
kernel void same_place(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[0] = 7u;
}

// One thread of each threadgroup writes to a place that all threadgroups share.
kernel void same_place_between_groups(
    OUT(uint) y [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (thread_index == 0u) {
        y[0] = group.x;
    }
}

// Each threadgroup reads what the one before it wrote.
kernel void read_other_group(
    INOUT(uint) y [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (thread_index == 0u) {
        uint before = group.x == 0u ? 0u : uint(y[group.x - 1u]);
        y[group.x] = before + 1u;
    }
}

// Counts threads: right.
kernel void count_atomically(
    INOUT(atomic_uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    atomic_add(y, 1u);
}

// Reads plainly what other threads count atomically.
kernel void count_and_look(
    INOUT(atomic_uint) y [[buffer(0)]],
    OUT(uint) seen [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    atomic_add(y, 1u);
    if (thread_index == 0u) {
        seen[0] = *device_cast(uint, y);
    }
}

// Threadgroup memory that nobody wrote.
kernel void read_fresh_threadgroup(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint, fresh, 64);
    if (thread_index < 32u) {
        fresh[thread_index] = thread_index;
    }
    barrier_threadgroup();
    y[thread_index] = fresh[thread_index];
}

// Past the end of a threadgroup array that another follows.
kernel void overrun_threadgroup(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint, first, 16);
    THREADGROUP_ARRAY(uint, second, 16);
    if (thread_index == 0u) {
        for (uint i = 0u; i < 16u; ++i) {
            first[i] = i;
            second[i] = i;
        }
        y[0] = first[args.index];
    }
}

// More threadgroup memory than there is.
kernel void too_much_threadgroup(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint, first, 4096);
    THREADGROUP_ARRAY(uint, second, 4097);
    first[thread_index] = 0u;
    second[thread_index] = 0u;
    y[thread_index] = 0u;
}

// The first `index` threads come to a barrier, the others return.
kernel void some_return(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 0u;
    if (thread_index >= args.index) {
        return;
    }
    barrier_threadgroup();
}

// Half of the threads come to one barrier, half to another.
kernel void different_barriers(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 0u;
    if (thread_index < args.index) {
        barrier_threadgroup();
    } else {
        barrier_threadgroup();
    }
}

// Some lanes take part in a sum, the others in a maximum.
kernel void different_operations(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (thread_index < args.index) {
        y[thread_index] = simd_sum(thread_index);
    } else {
        y[thread_index] = simd_max(thread_index);
    }
}

// Some lanes take part in a sum, the others have returned.
kernel void some_lanes(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 0u;
    if (thread_index < args.index) {
        y[thread_index] = simd_sum(thread_index);
    }
}

// Reads from a lane.
kernel void read_lane(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = simd_shuffle(thread_index, args.index);
}

// What the threads copy arrives when they wait for it; without a wait it must not be read.
SPECIALISE(uint, WAITS, 2);
kernel void copy_through_threadgroup(
    IN(uint4) x [[buffer(0)]],
    OUT(uint4) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint4, tile, 64);
    copy_async(tile + thread_index, x + thread_index);
    copy_async_commit();
    if (WAITS != 0u) {
        copy_async_wait<0>();
    }
    y[thread_index] = tile[thread_index];
}

// Two copies under way, the older one waited for: right.
kernel void copy_two_stages(
    IN(uint4) x [[buffer(0)]],
    OUT(uint4) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint4, tile, 128);
    for (uint stage = 0u; stage < 2u; ++stage) {
        copy_async(tile + 64u * stage + thread_index, x + 64u * stage + thread_index);
        copy_async_commit();
    }
    copy_async_wait<1>();
    y[thread_index] = tile[thread_index];
    copy_async_wait<0>();
    y[64u + thread_index] = tile[64u + thread_index];
}

// Needs SIMD-groups of 32.
REQUIRES_SIMD_WIDTH(32)
kernel void needs_width(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = thread_index;
}

// What touches memory before the dispatch before is done. 0: nothing, 1: x is read, 2: y is written.
SPECIALISE(uint, EARLY, 3);
kernel void touch_early(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint value = 0u;
    allow_next();
    if (EARLY == 1u) {
        value = x[thread_index];
    } else if (EARLY == 2u) {
        y[thread_index] = 0u;
    }
    wait_for_previous();
    y[thread_index] = value + x[thread_index];
}

// y[i] = the next thread's number after `index` barriers, and once more by meet().
kernel void many_barriers(
    OUT(uint) y [[buffer(0)]],
    INLINE(FaultArgs) args [[buffer(1)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = thread_index;
    for (uint i = 0u; i < args.index; ++i) {
        barrier_device();
    }
    uint next = y[(thread_index + 1u) % threads.x];
    meet();
    y[thread_index] = next;
}
