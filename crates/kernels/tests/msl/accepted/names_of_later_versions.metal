kernel void step_up(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = as_float(as_uint(y[thread_index]) + 1u);
}
