// refused by clang: use of undeclared identifier 'malloc'

kernel void sum(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREAD(float) values = (THREAD(float))malloc(16);
    values[0] = 1.0f;
    y[thread_index] = values[0];
}
