kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(float, values, 32);
    values[thread_index] = 1.0f;
    y[thread_index] = values[thread_index];
}
