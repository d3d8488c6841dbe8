// refused by the search: [[function_constant]] on `constant float4`

SPECIALISE(float4, SCALES, 0);

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[thread_index] = SCALES.x;
}
