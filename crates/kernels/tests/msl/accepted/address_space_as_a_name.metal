kernel void shift(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float offset = 2.0f;
    y[thread_index] += offset;
}
