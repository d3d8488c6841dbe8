// refused by the search: implicit conversion to `float`

kernel void count(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = thread_index;
}
