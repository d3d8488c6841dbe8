// refused by clang: call to 'simd_shuffle' is ambiguous

kernel void shuffle(
    IN(ulong) x [[buffer(0)]],
    OUT(ulong) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = simd_shuffle(x[thread_index], 0u);
}
