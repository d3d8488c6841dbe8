// refused by clang: no matching function

kernel void count(
    INOUT(uint) counts [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    atomic_add(counts, thread_index);
}
