// refused by clang: 'default new' is not supported

kernel void sum(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREAD(float) values = new float[4];
    values[0] = 1.0f;
    y[thread_index] = values[0];
}
