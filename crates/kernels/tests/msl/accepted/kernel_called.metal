static inline void fill_one(DEVICE(float) y, uint at) {
    y[at] = 1.0f;
}

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    fill_one(y, thread_index);
}

kernel void fill_again(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    fill_one(y, thread_index);
}
