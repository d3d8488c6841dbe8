// refused by clang: mismatching address spaces

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = ((THREADGROUP(const float))x)[thread_index];
}
