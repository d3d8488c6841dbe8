// refused by the search: pointer or reference without an address space: `float &`

static inline void add_one(float &x) {
    x += 1.0f;
}

kernel void increment(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float x = y[thread_index];
    add_one(x);
    y[thread_index] = x;
}
