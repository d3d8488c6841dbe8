// refused by the search: recursion:

static inline bool odd(uint n);

static inline bool even(uint n) {
    return n == 0u || odd(n - 1u);
}

static inline bool odd(uint n) {
    return n != 0u && even(n - 1u);
}

kernel void parities(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = even(thread_index) ? 0u : 1u;
}
