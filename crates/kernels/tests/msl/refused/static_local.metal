// refused by the search: static is for program scope only

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    static constant float scale = 2.0f;
    y[thread_index] = scale;
}
