kernel void countdown(
    INOUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint n = y[thread_index];
    while (n > 10u) {
        n -= 10u;
    }
    y[thread_index] = n;
}
