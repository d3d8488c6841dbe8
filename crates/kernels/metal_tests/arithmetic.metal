// Arithmetic of the 16-bit formats, against which the emulated device's is tested.

// For each half: its value and the half of that value.
kernel void convert_halves(
    IN(half) x [[buffer(0)]],
    OUT(float) values [[buffer(1)]],
    OUT(half) back [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint i = group.x * threads.x + thread_index;
    values[i] = float(x[i]);
    back[i] = half(float(x[i]));
}

// Each float as a half and as a bf16.
kernel void round_floats(
    IN(float) x [[buffer(0)]],
    OUT(half) halves [[buffer(1)]],
    OUT(bf16) brains [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint i = group.x * threads.x + thread_index;
    halves[i] = half(x[i]);
    brains[i] = bf16_from_float(x[i]);
}

// out: [n, 4]: a + b, a - b, a · b, a · b + c rounded once.
kernel void combine_halves(
    IN(half) a [[buffer(0)]],
    IN(half) b [[buffer(1)]],
    IN(half) c [[buffer(2)]],
    OUT(half) out [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint i = group.x * threads.x + thread_index;
    half x = a[i];
    half y = b[i];
    half z = c[i];
    out[4u * i] = x + y;
    out[4u * i + 1u] = x - y;
    out[4u * i + 2u] = x * y;
    half2 fused = half2_fma(make_half2(x, y), make_half2(y, x), make_half2(z, z));
    out[4u * i + 3u] = fused.y;
}
