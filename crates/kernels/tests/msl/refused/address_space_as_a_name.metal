// refused by clang: expected unqualified-id

kernel void shift(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float constant = 2.0f;
    y[thread_index] += constant;
}
