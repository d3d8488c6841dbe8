kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    DEVICE(const float) p = x;
    y[thread_index] = p[thread_index];
}
