// refused by clang: read-only

struct FillArgs {
    float value;
};

kernel void fill(
    OUT(float) y [[buffer(0)]],
    INLINE(FillArgs) args [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    args.value = 2.0f;
    y[thread_index] = args.value;
}
