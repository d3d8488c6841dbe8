// refused by clang: cannot be declared in local address space

static inline float through_shared(float x, uint at) {
    THREADGROUP_ARRAY(float, shared, 32);
    shared[at] = x;
    barrier_threadgroup();
    return shared[31u - at];
}

kernel void reverse(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = through_shared(y[thread_index], thread_index);
}
