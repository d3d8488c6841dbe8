// refused by the search: assembly is not in Metal

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    __asm__("");
    y[thread_index] = 1.0f;
}
