kernel void fill(
    OUT(uint) y [[buffer(0)]],
    uint lane [[thread_index_in_simdgroup]],
    uint width [[threads_per_simdgroup]]) {
    y[lane] = width;
}
