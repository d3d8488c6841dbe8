// refused by clang: no matching function for call to 'as_type'

kernel void bits(
    IN(half) x [[buffer(0)]],
    OUT(uint) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = as_type<uint>(x[thread_index]);
}
