// refused by the search: implicit conversion to `half`

kernel void scale(
    IN(half) x [[buffer(0)]],
    OUT(half) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = float(x[thread_index]) * 2.0f;
}
