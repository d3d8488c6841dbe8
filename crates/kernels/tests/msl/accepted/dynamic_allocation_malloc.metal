kernel void sum(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float storage[4];
    THREAD(float) values = storage;
    values[0] = 1.0f;
    y[thread_index] = values[0];
}
