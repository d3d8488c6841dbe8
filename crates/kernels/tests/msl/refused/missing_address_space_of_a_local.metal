// refused by the search: pointer or reference without an address space: `float *`

kernel void through_pointer(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float values[2] = {1.0f, 2.0f};
    float *p = values;
    y[thread_index] = p[1];
}
