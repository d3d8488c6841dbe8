// refused by clang: casts away qualifiers

kernel void clear(
    IN(float) x [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    DEVICE(uint) words = device_cast(uint, x);
    words[thread_index] = 0u;
}
