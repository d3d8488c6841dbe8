// refused by the search: is called (§5.1)

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 1.0f;
}

kernel void fill_again(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    fill(y, thread_index);
}
