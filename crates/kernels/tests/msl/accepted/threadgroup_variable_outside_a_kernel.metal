static inline float through_shared(THREADGROUP(float) shared, float x, uint at) {
    shared[at] = x;
    barrier_threadgroup();
    return shared[31u - at];
}

kernel void reverse(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(float, shared, 32);
    y[thread_index] = through_shared(shared, y[thread_index], thread_index);
}
