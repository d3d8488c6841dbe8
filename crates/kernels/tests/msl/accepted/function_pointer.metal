struct Twice {
    static float of(float x) {
        return x + x;
    }
};

template <typename F>
static inline float apply_once(float x) {
    return F::of(x);
}

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = apply_once<Twice>(y[thread_index]);
}
