kernel void bits(
    IN(float) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = ((device const uint *)x)[thread_index];
}
