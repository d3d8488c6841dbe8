// refused by clang: use of type 'double'

kernel void scale(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    double x = y[thread_index];
    y[thread_index] = float(x * x);
}
