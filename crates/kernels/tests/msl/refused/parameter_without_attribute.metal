// refused by the search: a parameter without an attribute

kernel void fill(
    OUT(float) y,
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 1.0f;
}
