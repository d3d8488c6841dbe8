template <bool square>
static inline float power(float x) {
    if (square) {
        return x * x;
    }
    return x;
}

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = power<true>(y[thread_index]);
}
