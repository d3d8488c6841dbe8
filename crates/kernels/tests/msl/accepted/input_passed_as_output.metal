static inline void clear_at(DEVICE(float) p, uint at) {
    p[at] = 0.0f;
}

kernel void clear(
    INOUT(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    clear_at(y, thread_index);
    clear_at(x, thread_index);
}
