// refused by clang: array size is not a constant expression

SPECIALISE(uint, WIDTH, 0);

kernel void sum(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float values[WIDTH];
    values[0] = 1.0f;
    y[thread_index] = values[0];
}
