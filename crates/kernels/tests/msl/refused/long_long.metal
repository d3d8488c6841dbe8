// refused by the search: long long is not in Metal

kernel void square(
    INOUT(ulong) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    unsigned long long x = y[thread_index];
    y[thread_index] = x * x;
}
