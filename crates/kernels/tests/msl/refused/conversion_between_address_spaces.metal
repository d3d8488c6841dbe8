// refused by clang: no matching function for call to 'first'

static inline float first(THREADGROUP(const float) p) {
    return p[0];
}

kernel void copy_first(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = first(x);
}
