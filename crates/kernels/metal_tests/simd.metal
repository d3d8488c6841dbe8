// Every SIMD-group operation, one element a thread.

struct SimdArgs {
    uint lane;  // What simd_shuffle and simd_broadcast read.
    uint mask;  // Of simd_shuffle_xor.
    uint shift; // Of simd_shuffle_down and simd_shuffle_up.
};

// out: [threads, 12] uints.
kernel void simd_uints(
    IN(uint) x [[buffer(0)]],
    OUT(uint) out [[buffer(1)]],
    INLINE(SimdArgs) args [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    uint v = x[thread_index];
    DEVICE(uint) row = out + thread_index * 12u;
    row[0] = simd_sum(v);
    row[1] = simd_max(v);
    row[2] = simd_min(v);
    row[3] = simd_shuffle(v, args.lane);
    row[4] = simd_shuffle_xor(v, args.mask);
    row[5] = simd_shuffle_down(v, args.shift);
    row[6] = simd_shuffle_up(v, args.shift);
    row[7] = simd_broadcast(v, args.lane);
    row[8] = simd_prefix_exclusive_sum(v);
    row[9] = (simd_any(v % 7u == 3u) ? 1u : 0u) + (simd_all(v % 7u != 3u) ? 2u : 0u);
    row[10] = lane + 100u * simd_group + 10000u * simd_groups;
    row[11] = simd_width;
}

// out: [threads, 3]: sum, maximum, minimum.
kernel void simd_floats(
    IN(float) x [[buffer(0)]],
    OUT(float) out [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float v = x[thread_index];
    out[thread_index * 3u] = simd_sum(v);
    out[thread_index * 3u + 1u] = simd_max(v);
    out[thread_index * 3u + 2u] = simd_min(v);
}

// out: [threads, 3]: sum, maximum, minimum. ballot: [threads], of odd numbers.
kernel void simd_ints(
    IN(int) x [[buffer(0)]],
    OUT(int) out [[buffer(1)]],
    OUT(ulong) ballot [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    int v = x[thread_index];
    out[thread_index * 3u] = simd_sum(v);
    out[thread_index * 3u + 1u] = simd_max(v);
    out[thread_index * 3u + 2u] = simd_min(v);
    ballot[thread_index] = simd_ballot((v & 1) != 0);
}

// Each SIMD-group reverses its lanes through threadgroup memory, with no barrier but its own.
kernel void simd_barrier_orders(
    IN(uint) x [[buffer(0)]],
    OUT(uint) out [[buffer(1)]],
    THREADGROUP(uint) tile [[threadgroup(0)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    for (uint round = 0u; round < 2u; ++round) {
        tile[thread_index] = x[thread_index] + round;
        barrier_simdgroup();
        uint other = tile[thread_index - lane + simd_width - 1u - lane];
        barrier_simdgroup();
        if (round == 1u) {
            out[thread_index] = other;
        }
    }
}
