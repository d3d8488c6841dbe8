// refused by the search: [[thread_index_in_threadgroup]] on `float`, expected one of uint, ushort

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    float thread_index [[thread_index_in_threadgroup]]) {
    y[uint(thread_index)] = x[uint(thread_index)];
}
