// refused by the search: derived classes are not in Metal

struct Point {
    float x;
};

struct Weighted : Point {
    float weight;
};

kernel void apply(
    INOUT(float) y [[buffer(0)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    Weighted point;
    point.x = y[thread_index];
    point.weight = 2.0f;
    y[thread_index] = point.x * point.weight;
}
