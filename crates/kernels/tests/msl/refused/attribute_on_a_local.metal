// refused by the search: [[thread_index_in_threadgroup]] on something other than a parameter

kernel void fill(OUT(float) y [[buffer(0)]]) {
    uint thread_index [[thread_index_in_threadgroup]] = 0u;
    y[thread_index] = 1.0f;
}
