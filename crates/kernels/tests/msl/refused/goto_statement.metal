// refused by the search: goto and labels are not in Metal

kernel void countdown(
    INOUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint n = y[thread_index];
again:
    if (n > 10u) {
        n -= 10u;
        goto again;
    }
    y[thread_index] = n;
}
