kernel void count(
    INOUT(atomic_uint) counts [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    atomic_add(counts, thread_index);
}
