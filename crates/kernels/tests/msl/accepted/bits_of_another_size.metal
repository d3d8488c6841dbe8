kernel void bits(
    IN(half) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = uint(as_ushort(x[thread_index]));
}
