kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float local = y[thread_index];
    float global = local + local;
    y[thread_index] = global;
}
