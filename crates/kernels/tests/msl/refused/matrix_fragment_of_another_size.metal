// refused by clang: undefined template

REQUIRES_SIMD_WIDTH(32)
kernel void square(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]]) {
    simdgroup_matrix<float, 16, 16> a;
    y[0] = x[0];
}
