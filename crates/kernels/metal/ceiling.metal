// What a device can read at most, for the benchmarks to compare with.

// Sizes of one call.
struct ReadCeilingArgs {
    uint pieces; // 16-byte pieces of x.
};

// sums[thread] = the exclusive or of the pieces that the thread reads.
//
// x: [pieces], sums: one word a thread. Eight loads of 16 bytes are under way in each thread before the first is used, and
// neighbouring threads read neighbouring pieces: nothing is between this and the memory.
kernel void read_ceiling(
    IN(uint4) x [[buffer(0)]],
    OUT(uint) sums [[buffer(1)]],
    INLINE(ReadCeilingArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint all = groups.x * threads.x;
    uint mine = group.x * threads.x + thread_index;
    uint sum = 0u;
    uint i = mine;
    for (; i + 7u * all < args.pieces; i += 8u * all) {
        uint4 held[8];
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            held[j] = load_streaming(x + i + j * all);
        }
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            sum = sum ^ held[j].x ^ held[j].y ^ held[j].z ^ held[j].w;
        }
    }
    for (; i < args.pieces; i += all) {
        uint4 held = load_streaming(x + i);
        sum = sum ^ held.x ^ held.y ^ held.z ^ held.w;
    }
    sums[mine] = sum;
}
