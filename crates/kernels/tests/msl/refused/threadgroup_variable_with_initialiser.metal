// refused by clang: cannot have an initializer

kernel void sum(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    threadgroup float total = 0.0f;
    if (thread_index == 0u) {
        total = y[0];
    }
    barrier_threadgroup();
    y[thread_index] = total;
}
