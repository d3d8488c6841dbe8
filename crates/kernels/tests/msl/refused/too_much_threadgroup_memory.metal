// refused by the search: 36864 bytes of threadgroup memory, at most 32768

kernel void reverse(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint4, tiles, 2048);
    THREADGROUP_ARRAY(float, shared, 1024);
    tiles[thread_index] = make_uint4(0u, 0u, 0u, thread_index);
    shared[thread_index] = y[thread_index];
    barrier_threadgroup();
    y[thread_index] = shared[tiles[31u - thread_index].w];
}
