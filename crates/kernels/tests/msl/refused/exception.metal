// refused by clang: exceptions disabled

kernel void check(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    if (isnan(y[thread_index])) {
        throw 1;
    }
}
