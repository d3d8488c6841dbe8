// Gated activations of feed-forward layers, where they are not fused into a product.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct GatedActivationArgs {
    uint rows;    // Tokens.
    uint columns; // Features of the output.
};

// 0: SiLU (x · sigmoid(x)), 1: GELU with tanh (Hendrycks & Gimpel 2016, eq. 2), 2: ReLU.
SPECIALISE(uint, ACTIVATION, 0);

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
// gate_up: [rows, 2 · columns], the gate first; out: [rows, columns]. One thread an element along x,
// one threadgroup row a token along y.
kernel void gated_activation(
    IN(T) gate_up [[buffer(0)]],
    OUT(T) out [[buffer(1)]],
    INLINE(GatedActivationArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint column = group.x * threads.x + thread_index;
    if (column >= args.columns) {
        return;
    }
    uint row = group.y;
    float gate = load_float(gate_up, row * 2u * args.columns + column);
    float up = load_float(gate_up, row * 2u * args.columns + args.columns + column);
    store_float(out, row * args.columns + column, activate(gate) * up);
}
