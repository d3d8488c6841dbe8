#include <metal_stdlib>
using namespace metal;
kernel void reduce(device const float *in [[buffer(0)]], device float *partial [[buffer(1)]],
                   device float *out [[buffer(2)]], device float *table [[buffer(3)]],
                   constant float &scale [[buffer(4)]], uint i [[thread_position_in_grid]]) {
    partial[i] = in[i] * scale;
    table[i % 64] += partial[i];
    out[i] = partial[i];
}
