// refused by the search: no function of Metal

kernel void count(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = uint(__builtin_popcount(x[thread_index]));
}
