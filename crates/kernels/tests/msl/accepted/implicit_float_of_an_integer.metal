kernel void count(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = float(thread_index);
}
