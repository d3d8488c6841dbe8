// refused by clang: unknown attribute 'thread_index'

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint at [[thread_index]]) {
    y[at] = x[at];
}
