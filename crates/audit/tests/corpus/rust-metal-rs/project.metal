#include <metal_stdlib>
using namespace metal;
kernel void project(const device float *w [[buffer(0)]], device float *h [[buffer(1)]],
                    constant uint &n [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    h[i] = h[i] + w[i % n];
}
