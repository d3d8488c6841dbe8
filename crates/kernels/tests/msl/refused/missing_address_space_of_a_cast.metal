// refused by the search: pointer or reference without an address space: `const uint *`

kernel void bits(
    IN(float) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = ((const uint *)x)[thread_index];
}
