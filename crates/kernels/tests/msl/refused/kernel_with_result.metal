// refused by clang: kernel must have void return type

kernel float fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 1.0f;
    return 1.0f;
}
