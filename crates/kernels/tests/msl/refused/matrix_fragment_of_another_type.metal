// refused by clang: no matching function

REQUIRES_SIMD_WIDTH(32)
kernel void load(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]]) {
    simdgroup_half8x8 a;
    simdgroup_load(a, x, 8);
    y[0] = float(a.thread_elements()[0]);
}
