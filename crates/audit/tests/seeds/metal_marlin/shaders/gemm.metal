#include <metal_stdlib>
using namespace metal;

kernel void marlin_gemm(device const half *A [[buffer(0)]],
                        device const uint *B [[buffer(1)]],
                        device const half *scales [[buffer(2)]],
                        device half *C [[buffer(3)]],
                        constant uint &M [[buffer(4)]],
                        constant uint &N [[buffer(5)]],
                        constant uint &K [[buffer(6)]],
                        constant uint &group_size [[buffer(7)]],
                        uint2 at [[thread_position_in_grid]]) {
    float sum = 0;
    for (uint k = 0; k < K; ++k) {
        sum += float(A[at.y * K + k]) * float((B[(k / 8) * N + at.x] >> (4 * (k % 8))) & 15u)
             * float(scales[(k / group_size) * N + at.x]);
    }
    if (at.y < M) C[at.y * N + at.x] = half(sum);
}

struct GemmParams { uint M; uint N; uint K; uint group_size; };

kernel void marlin_gemm_fp4_kernel(device const half *A [[buffer(0)]], device const uint *B [[buffer(1)]],
                                   device const half *S [[buffer(2)]], device half *C [[buffer(3)]],
                                   constant GemmParams &p [[buffer(4)]], uint2 at [[thread_position_in_grid]]) {
    C[at.y * p.N + at.x] = A[at.y * p.K] * half(B[at.x]) * S[at.x / p.group_size];
}

kernel void marlin_gemm_int4_kernel(device const half *A [[buffer(0)]], device const uint *B [[buffer(1)]],
                                    device const half *S [[buffer(2)]], device half *C [[buffer(3)]],
                                    constant GemmParams &p [[buffer(4)]], uint2 at [[thread_position_in_grid]]) {
    C[at.y * p.N + at.x] = A[at.y * p.K] * half(B[at.x]) * S[at.x / p.group_size];
}

kernel void dequant_fp4_kernel(device const uint *packed [[buffer(0)]], device const half *S [[buffer(1)]],
                               device half *out [[buffer(2)]], constant uint *params [[buffer(3)]],
                               uint i [[thread_position_in_grid]]) {
    out[i] = half(packed[i / 8]) * S[i / params[2]];
}

kernel void hadamard_kernel(device const half *x [[buffer(0)]], device half *y [[buffer(1)]],
                            constant uint2 &params [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    y[i] = x[i ^ 1] * half(params.x);
}

kernel void decode_gemv_kernel(device const half *x [[buffer(0)]], device const uint *w [[buffer(1)]],
                               device const half *s [[buffer(2)]], device half *y [[buffer(3)]],
                               constant uint *params [[buffer(4)]], uint i [[thread_position_in_grid]]) {
    y[i] = x[0] * half(w[i]) * s[i / params[2]];
}

kernel void mla_decode_kernel(device const half *q [[buffer(0)]], device const uint *w [[buffer(1)]],
                              device const half *s [[buffer(2)]], device half *out [[buffer(3)]],
                              constant uint &K [[buffer(4)]], constant uint &N [[buffer(5)]],
                              constant uint &gs [[buffer(6)]], uint i [[thread_position_in_grid]]) {
    if (i < N) out[i] = q[i % K] * half(w[i]) * s[i / gs];
}

kernel void mla_fused_kernel(device const half *x [[buffer(0)]], device const uint *wa [[buffer(1)]],
                             device const uint *wb [[buffer(2)]], device half *out [[buffer(3)]],
                             constant uint &M [[buffer(4)]], constant uint &Kh [[buffer(5)]],
                             constant uint &Kl [[buffer(6)]], constant uint &Nout [[buffer(7)]],
                             constant uint &gsa [[buffer(8)]], constant uint &gsb [[buffer(9)]],
                             uint i [[thread_position_in_grid]]) {
    if (i < M * Nout) out[i] = x[i % Kh] * half(wa[i / gsa]) * half(wb[i / gsb]) * half(Kl);
}
