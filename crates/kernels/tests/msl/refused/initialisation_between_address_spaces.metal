// refused by clang: cannot initialize a variable of type 'const __private float

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREAD(const float) p = x;
    y[thread_index] = p[thread_index];
}
