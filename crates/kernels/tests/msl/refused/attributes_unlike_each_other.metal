// refused by the search: differ in components

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    y[group.x * threads + thread_index] = 1.0f;
}
