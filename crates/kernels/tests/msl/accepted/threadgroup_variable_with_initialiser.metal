kernel void sum(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(float, total, 1);
    if (thread_index == 0u) {
        total[0] = y[0];
    }
    barrier_threadgroup();
    y[thread_index] = total[0];
}
