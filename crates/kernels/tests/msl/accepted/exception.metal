kernel void check(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (isnan(y[thread_index])) {
        y[thread_index] = 0.0f;
    }
}
