// refused by the search: pointer or reference without an address space

static inline const float *past(DEVICE(const float) p, uint n);

kernel void copy_past(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = *past(x, thread_index);
}

static inline const float *past(DEVICE(const float) p, uint n) {
    return p + n;
}
