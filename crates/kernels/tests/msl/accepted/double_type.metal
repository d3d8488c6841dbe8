kernel void scale(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float x = y[thread_index];
    y[thread_index] = x * x;
}
