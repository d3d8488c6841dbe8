// refused by clang: conflicting types for 'fill_of_

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 1.0f;
}

kernel void fill(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = 1u;
}
