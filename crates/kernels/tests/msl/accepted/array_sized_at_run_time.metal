SPECIALISE(uint, WIDTH, 0);

kernel void sum(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float values[8];
    for (uint i = 0u; i < min(WIDTH, 8u); i++) {
        values[i] = 1.0f;
    }
    y[thread_index] = values[0];
}
