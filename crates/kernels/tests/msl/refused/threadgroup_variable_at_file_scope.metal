// refused by clang: program scope variable must reside in constant address space

THREADGROUP_ARRAY(float, shared, 32);

kernel void reverse(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    shared[thread_index] = y[thread_index];
    barrier_threadgroup();
    y[thread_index] = shared[31u - thread_index];
}
