// Reductions over a threadgroup, for any SIMD-group width and any whole number of SIMD-groups.

// Where a thread is among the SIMD-groups of its threadgroup.
struct SimdPlace {
    uint lane;   // Index in the SIMD-group.
    uint width;  // Threads of a SIMD-group.
    uint index;  // The SIMD-group's index.
    uint groups; // SIMD-groups of the threadgroup.
};

// The sum of every thread's `value`, the same bits in all of them. `partial` has room for one value a
// SIMD-group: 128 for 1024 threads in groups of 8. It may be used again after a barrier.
static inline float threadgroup_sum(float value, THREADGROUP(float) partial, SimdPlace at) {
    float sum = simd_sum(value);
    if (at.lane == 0u) {
        partial[at.index] = sum;
    }
    barrier_threadgroup();
    // Every SIMD-group adds the few sums itself: no second barrier, no broadcast.
    float total = 0.0f;
    for (uint i = at.lane; i < at.groups; i += at.width) {
        total = total + partial[i];
    }
    return simd_sum(total);
}

// As threadgroup_sum, the greatest value.
static inline uint threadgroup_max(uint value, THREADGROUP(uint) partial, SimdPlace at) {
    uint greatest = simd_max(value);
    if (at.lane == 0u) {
        partial[at.index] = greatest;
    }
    barrier_threadgroup();
    greatest = 0u;
    for (uint i = at.lane; i < at.groups; i += at.width) {
        greatest = max(greatest, partial[i]);
    }
    return simd_max(greatest);
}
