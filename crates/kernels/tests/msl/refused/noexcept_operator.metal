// refused by the search: the noexcept operator is not in Metal

static inline float twice(float x) {
    return x + x;
}

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (noexcept(twice(1.0f))) {
        y[thread_index] = twice(y[thread_index]);
    }
}
