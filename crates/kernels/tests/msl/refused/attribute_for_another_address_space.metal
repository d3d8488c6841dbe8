// refused by the search: [[buffer]] on `threadgroup float *`

kernel void copy(
    THREADGROUP(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = x[thread_index];
}
