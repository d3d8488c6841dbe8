// refused by the search: [[function_constant]] on

kernel void fill(
    OUT(uint) y [[buffer(0)]],
    uint lane [[thread_index_in_simdgroup]],
    uint wide [[function_constant(0)]]) {
    y[lane] = wide;
}
