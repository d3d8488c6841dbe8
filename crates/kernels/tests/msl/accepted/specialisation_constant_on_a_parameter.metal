SPECIALISE(uint, WIDE, 0);

kernel void fill(
    OUT(uint) y [[buffer(0)]],
    uint lane [[thread_index_in_simdgroup]]) {
    y[lane] = WIDE;
}
