// refused by clang: undeclared identifier 'bfloat'

kernel void widen(
    IN(bf16) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    bfloat value = as_type<bfloat>(x[thread_index].bits);
    y[thread_index] = float(value);
}
