// refused by the search: recursion: factorial calls factorial

static inline uint factorial(uint n) {
    return n < 2u ? 1u : n * factorial(n - 1u);
}

kernel void factorials(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = factorial(thread_index);
}
