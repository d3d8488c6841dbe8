kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint at [[thread_index_in_threadgroup]]) {
    y[at] = x[at];
}
