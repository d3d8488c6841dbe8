// refused by clang: call to 'min' is ambiguous

kernel void limit(
    IN(uint) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = min(x[thread_index], 7);
}
