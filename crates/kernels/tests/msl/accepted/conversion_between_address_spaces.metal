static inline float first(THREADGROUP(const float) p) {
    return p[0];
}

kernel void copy_first(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(float, shared, 1);
    if (thread_index == 0u) {
        shared[0] = x[0];
    }
    barrier_threadgroup();
    y[thread_index] = first(shared);
}
