// refused by clang: use of undeclared identifier 'erf'

kernel void apply(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = erf(x[thread_index]);
}
