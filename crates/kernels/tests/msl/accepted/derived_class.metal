struct Point {
    float x;
};

struct Weighted {
    Point point;
    float weight;
};

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    Weighted weighted;
    weighted.point.x = y[thread_index];
    weighted.weight = 2.0f;
    y[thread_index] = weighted.point.x * weighted.weight;
}
