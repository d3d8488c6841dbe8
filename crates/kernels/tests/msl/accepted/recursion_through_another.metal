static inline bool odd(uint n);

static inline bool even(uint n) {
    return !odd(n);
}

static inline bool odd(uint n) {
    return (n & 1u) != 0u;
}

kernel void parities(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = even(thread_index) ? 0u : 1u;
}
