// refused by clang: read-only variable is not assignable

kernel void clear(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = x[thread_index];
    x[thread_index] = 0.0f;
}
