// refused by the search: the size of `Pair` is not known here

struct Pair {
    float value;
    uint index;
};

kernel void fill(
    OUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(Pair, pairs, 32);
    pairs[thread_index].value = 1.0f;
    y[thread_index] = pairs[thread_index].value;
}
