// refused by the search: pointer or reference without an address space: `const float *`

typedef const float *Values;

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    Values values = x;
    y[thread_index] = values[thread_index];
}
