kernel void square(
    INOUT(ulong) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    ulong x = y[thread_index];
    y[thread_index] = x * x;
}
