// refused by clang: cannot initialize a variable of type '__private float4'

kernel void widen(
    IN(uint4) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float4 v = x[thread_index];
    y[thread_index] = v.x;
}
