kernel void widen(
    IN(bf16) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    bf16 value = x[thread_index];
    y[thread_index] = float_from_bf16(value);
}
