// refused by the search: differ in type

kernel void fill(
    OUT(uint) y [[buffer(0)]],
    uint lane [[thread_index_in_simdgroup]],
    ushort width [[threads_per_simdgroup]]) {
    y[lane] = uint(width);
}
