// refused by clang: use of undeclared identifier 'get_global_id'

kernel void copy(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]]) {
    uint at = uint(get_global_id(0));
    y[at] = x[at];
}
