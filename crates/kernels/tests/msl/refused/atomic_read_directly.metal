// refused by clang: no viable conversion

kernel void count(
    INOUT(atomic_uint) counts [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint count = counts[0];
    y[thread_index] = count;
}
