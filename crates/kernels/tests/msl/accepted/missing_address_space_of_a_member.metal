struct Row {
    DEVICE(const float) values;
    uint length;
};

kernel void last(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    Row row;
    row.values = x;
    row.length = thread_index + 1u;
    y[thread_index] = row.values[row.length - 1u];
}
