// refused by clang: use of undeclared identifier 'nextafter'

kernel void step_up(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = nextafter(y[thread_index], INFINITY);
}
