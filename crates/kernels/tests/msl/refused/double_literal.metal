// refused by clang: double precision constant

kernel void scale(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] *= 2.0;
}
