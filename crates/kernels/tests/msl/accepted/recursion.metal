static inline uint factorial(uint n) {
    uint product = 1u;
    for (uint i = 2u; i <= n; i++) {
        product *= i;
    }
    return product;
}

kernel void factorials(
    OUT(uint) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = factorial(thread_index);
}
