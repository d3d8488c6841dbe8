kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint3 position [[thread_position_in_grid]]) {
    uint at = position.x;
    y[at] = x[at];
}
