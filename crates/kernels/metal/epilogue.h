// What follows a product's sums: bias, gate, residual.
//
// A file that includes this declares, before the include, the element type T and the specialisation constants
// GATED, ACTIVATION, ACCUMULATE and HAS_BIAS as gemm.metal does.

static inline float gate_activation(float x) {
    if (ACTIVATION == 0u) {
        return x / (1.0f + exp(-x));
    }
    float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}

// From sums (of gate and up) to what is stored, or added to the residual.
static inline float finished(DEVICE(const float) bias, uint rows, uint row, float first, float second) {
    if (HAS_BIAS) {
        first = first + bias[row];
        if (GATED) {
            second = second + bias[(rows + 15u) / 16u * 16u + row];
        }
    }
    return GATED ? gate_activation(first) * second : first;
}

// From sums (of gate and up) to element `row` of a row of y, of `rows`.
static inline void finish(
    DEVICE(T) y, ulong at, DEVICE(const float) bias, uint rows, uint row, float first, float second) {
    float value = finished(bias, rows, row, first, second);
    if (ACCUMULATE) {
        value = value + load_float(y, at);
    }
    store_float(y, at, value);
}
