// refused by the search: `fragment` is a word of Metal

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float fragment = y[thread_index];
    y[thread_index] = fragment + fragment;
}
