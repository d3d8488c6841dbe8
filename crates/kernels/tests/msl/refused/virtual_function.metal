// refused by clang: virtual functions are not supported

struct Scale {
    float factor;
    virtual float of(float x) {
        return factor * x;
    }
};

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    Scale scale;
    scale.factor = 2.0f;
    y[thread_index] = scale.of(y[thread_index]);
}
