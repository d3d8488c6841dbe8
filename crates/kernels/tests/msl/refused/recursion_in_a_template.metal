// refused by the search: recursion: halvings calls halvings

template <typename N>
static inline N halvings(N n) {
    return n == N(0) ? N(0) : N(1) + halvings(n / N(2));
}

kernel void logarithms(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = halvings(thread_index);
}
