// refused by clang: read-only

SPECIALISE(float, SCALE, 0);

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    SCALE = 2.0f;
    y[thread_index] = SCALE;
}
