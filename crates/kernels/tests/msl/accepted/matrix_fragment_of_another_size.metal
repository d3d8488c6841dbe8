REQUIRES_SIMD_WIDTH(32)
kernel void square(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]]) {
    simdgroup_float8x8 a;
    simdgroup_float8x8 product;
    simdgroup_load(a, x, 8);
    simdgroup_multiply(product, a, a);
    simdgroup_store(product, y, 8);
}
