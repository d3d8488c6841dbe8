kernel void shuffle(
    IN(ulong) x [[buffer(0)]],
    OUT(ulong) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint low = simd_shuffle(uint(x[thread_index]), 0u);
    uint high = simd_shuffle(uint(x[thread_index] >> 32), 0u);
    y[thread_index] = (ulong(high) << 32) | ulong(low);
}
