// Gated activations of feed-forward layers, where they are not fused into a product.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct GatedActivationArgs {
    uint rows;    // Tokens.
    uint columns; // Features of the output.
};

// 0: SiLU (x · sigmoid(x)), 1: GELU with tanh (Hendrycks & Gimpel 2016, eq. 2), 2: ReLU.
SPECIALISE(uint, ACTIVATION, 0);
// Gate, up and output rows start at multiples of 16 bytes and have a multiple of 8 columns.
SPECIALISE(bool, WHOLE, 1);

#include "vector.h"

static inline float activate(float x) {
    if (ACTIVATION == 0u) {
        return x / (1.0f + exp(-x));
    }
    if (ACTIVATION == 1u) {
        float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
        return 0.5f * x * (1.0f + tanh(inner));
    }
    return max(x, 0.0f);
}

// out[row, c] = activation(gate_up[row, c]) · gate_up[row, columns + c]
//
// gate_up: [rows, 2 · columns], the gate first; out: [rows, columns]. A thread takes eight columns; the
// rows' eights are numbered through, because grids are long only along x. Bytes bound it: 6 bytes an
// output of half, some 20 instructions.
kernel void gated_activation(
    IN(T) gate_up [[buffer(0)]],
    OUT(T) out [[buffer(1)]],
    INLINE(GatedActivationArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint eights = (args.columns + 7u) / 8u;
    uint place = group.x * threads.x + thread_index;
    uint row = place / eights;
    if (row >= args.rows) {
        return;
    }
    uint column = (place - row * eights) * 8u;
    uint left = args.columns - column;
    ulong start = ulong(row) * args.columns;
    float gate[8];
    float up[8];
    load_eight(gate_up + 2u * start + column, left, WHOLE, gate);
    load_eight(gate_up + 2u * start + args.columns + column, left, WHOLE, up);
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        gate[j] = activate(gate[j]) * up[j];
    }
    store_eight(out + start + column, left, WHOLE, gate);
}
