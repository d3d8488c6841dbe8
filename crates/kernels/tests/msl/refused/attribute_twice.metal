// refused by the search: [[buffer(0)]] twice

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = x[thread_index];
}
