// Quantised matrix × a few vectors, in f32: the small-batch product that any SIMD width can run.
//
// y[m, n] = epilogue(Σ_k W[n, k] · x[m, k] + bias[n]), m = 0…tokens − 1 (at most 8).

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct GemvArgs {
    uint rows;         // Rows of W; of the gate alone where GATED.
    uint columns;      // Columns of W.
    uint tokens;       // Rows of x.
    uint x_stride;     // Elements from one row of x to the next.
    uint y_stride;     // Elements from one row of y to the next.
    uint blocks;       // Blocks of 64 columns, padding included.
    uint groups;       // Scales of a row.
    float factor;      // Of all weights.
};

// What a code is: FragmentCode.
SPECIALISE(uint, CODE, 0);
// Subtracted from integer codes.
SPECIALISE(int, OFFSET, 1);
// What scales are: FragmentScale.
SPECIALISE(uint, SCALE, 2);
// What minimums are: FragmentMin.
SPECIALISE(uint, MIN, 3);
// Columns per scale; 0 where a row has one.
SPECIALISE(uint, GROUP, 4);
// The most tokens that one launch takes: 1, 2, 4 or 8.
SPECIALISE(uint, TOKENS, 5);
// y = silu(gate) · up, where W's first `rows` rows are the gate and the next, from a multiple of 16, the up projection.
SPECIALISE(bool, GATED, 6);
// y is added to, not overwritten: the residual.
SPECIALISE(bool, ACCUMULATE, 7);
// 0: SiLU, 1: GELU with tanh (where GATED).
SPECIALISE(uint, ACTIVATION, 8);
// Whether there is a bias.
SPECIALISE(bool, HAS_BIAS, 9);

#include "weights.h"

// Sums of one slot: row g and row g + 8, per token.
struct GemvSums {
    float value[2][8];
};

// Adds one slot's products of one group to the sums: Σ code · x scaled, and Σ x times the minimum.
static inline void add_group(
    THREAD(GemvSums) sums, THREAD(const GemvSums) products, THREAD(const float) x_sums,
    float2 scales, float2 mins) {
    UNROLL
    for (uint m = 0u; m < 8u; ++m) {
        if (m < TOKENS) {
            sums->value[0][m] = fma(scales.x, products->value[0][m], sums->value[0][m]);
            sums->value[1][m] = fma(scales.y, products->value[1][m], sums->value[1][m]);
            if (MIN != MIN_NONE) {
                sums->value[0][m] = fma(mins.x, x_sums[m], sums->value[0][m]);
                sums->value[1][m] = fma(mins.y, x_sums[m], sums->value[1][m]);
            }
        }
    }
}

// This thread's share of 16 rows: the blocks first, first + step, … of row block `row_block`.
static inline void multiply_row_block(
    DEVICE(const uint) codes, DEVICE(const uchar) scales, DEVICE(const uchar) mins,
    DEVICE(const half) supers, DEVICE(const T) x, THREAD(const GemvArgs) args, uint row_block,
    uint slot, uint first, uint step, THREAD(GemvSums) sums) {
    uint words = 32u * code_bits();
    uint g = slot / 4u;
    uint t = slot % 4u;
    uint supers_per_row = (args->blocks + 3u) / 4u;
    for (uint block = first; block < args->blocks; block += step) {
        Slot held;
        load_slot(codes + (row_block * args->blocks + block) * words, slot, &held);
        GemvSums products;
        float x_sums[8];
        UNROLL
        for (uint s = 0u; s < 4u; ++s) {
            uint column = block * 64u + s * 16u;
            // Products and sums of x begin anew at each group: at every step for groups of 16, every
            // other for 32, once a block for the rest.
            bool begins = s == 0u || GROUP == 16u || (GROUP == 32u && s == 2u);
            bool ends = s == 3u || GROUP == 16u || (GROUP == 32u && s == 1u);
            if (begins) {
                UNROLL
                for (uint m = 0u; m < 8u; ++m) {
                    products.value[0][m] = 0.0f;
                    products.value[1][m] = 0.0f;
                    x_sums[m] = 0.0f;
                }
            }
            float2 w0 = slot_pair_float(&held, 0u, 2u * s);
            float2 w1 = slot_pair_float(&held, 0u, 2u * s + 1u);
            float2 w2 = slot_pair_float(&held, 1u, 2u * s);
            float2 w3 = slot_pair_float(&held, 1u, 2u * s + 1u);
            uint k = column + 4u * t;
            UNROLL
            for (uint m = 0u; m < 8u; ++m) {
                if (m < TOKENS && m < args->tokens) {
                    float v[4];
                    UNROLL
                    for (uint i = 0u; i < 4u; ++i) {
                        v[i] = k + i < args->columns ? load_float(x, m * args->x_stride + k + i) : 0.0f;
                    }
                    float low = products.value[0][m];
                    low = fma(w0.x, v[0], low);
                    low = fma(w0.y, v[1], low);
                    low = fma(w1.x, v[2], low);
                    products.value[0][m] = fma(w1.y, v[3], low);
                    float high = products.value[1][m];
                    high = fma(w2.x, v[0], high);
                    high = fma(w2.y, v[1], high);
                    high = fma(w3.x, v[2], high);
                    products.value[1][m] = fma(w3.y, v[3], high);
                    x_sums[m] = x_sums[m] + ((v[0] + v[1]) + (v[2] + v[3]));
                }
            }
            if (ends) {
                uint group = GROUP == 0u ? 0u : column / GROUP;
                uint place = (row_block * args->groups + group) * 8u + g;
                uint super = super_place(row_block, supers_per_row, column, g);
                StoredScale stored;
                load_scale(scales, mins, supers, place, super, &stored);
                add_group(sums, &products, x_sums, scale_of(&stored), min_of(&stored));
            }
        }
    }
}

static inline float gate_activation(float x) {
    if (ACTIVATION == 0u) {
        return x / (1.0f + exp(-x));
    }
    float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}

// W in the fragment layout (codes, scales, mins, supers: crates/formats/src/fragment/mod.rs), x: [tokens, columns],
// bias: [rows] (gate and up one after the other, up from a multiple of 16), y: [tokens, rows].
//
// A threadgroup multiplies one row block of 16 rows. Its threads are 32 slots × shares of the
// columns: thread = share · 32 + slot, whatever the SIMD width, and four neighbours hold the same rows, so that two
// exchanges and one pass through threadgroup memory add everything up. Bytes bound it: 4-bit codes of one token take about 2
// instructions a weight.
kernel void gemv(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(T) x [[buffer(4)]],
    IN_OPTIONAL(float) bias [[buffer(5)]],
    INOUT(T) y [[buffer(6)]],
    INLINE(GemvArgs) args [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    // [gate or up][share][row of the block][token], at most 2 · 8 · 16 · 8 floats: 8 KiB for shares = 8.
    THREADGROUP_ARRAY(float, partial, 2048);
    uint shares = threads.x / 32u;
    uint share = thread_index / 32u;
    uint slot = thread_index % 32u;
    GemvArgs sizes = args;

    for (uint part = 0u; part < (GATED ? 2u : 1u); ++part) {
        GemvSums sums;
        UNROLL
        for (uint m = 0u; m < 8u; ++m) {
            sums.value[0][m] = 0.0f;
            sums.value[1][m] = 0.0f;
        }
        uint row_block = group.x + part * ((sizes.rows + 15u) / 16u);
        multiply_row_block(
            codes, scales, mins, supers, x, &sizes, row_block, slot, share, shares, &sums);
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            UNROLL
            for (uint m = 0u; m < 8u; ++m) {
                if (m < TOKENS) {
                    float sum = sums.value[h][m];
                    sum = sum + simd_shuffle_xor(sum, 1u);
                    sum = sum + simd_shuffle_xor(sum, 2u);
                    if (slot % 4u == 0u) {
                        uint row = slot / 4u + 8u * h;
                        partial[((part * shares + share) * 16u + row) * TOKENS + m] = sum;
                    }
                }
            }
        }
    }
    barrier_threadgroup();

    // One thread a row and token adds the shares up and finishes.
    for (uint i = thread_index; i < 16u * TOKENS; i += threads.x) {
        uint row = group.x * 16u + i / TOKENS;
        uint token = i % TOKENS;
        if (row < sizes.rows && token < sizes.tokens) {
            float result[2];
            for (uint part = 0u; part < (GATED ? 2u : 1u); ++part) {
                float sum = 0.0f;
                for (uint s = 0u; s < shares; ++s) {
                    sum = sum + partial[(part * shares + s) * 16u * TOKENS + i];
                }
                sum = sum * sizes.factor;
                if (HAS_BIAS) {
                    sum = sum + bias[part * ((sizes.rows + 15u) / 16u * 16u) + row];
                }
                result[part] = sum;
            }
            float value = GATED ? gate_activation(result[0]) * result[1] : result[0];
            uint at = token * sizes.y_stride + row;
            if (ACCUMULATE) {
                value = value + load_float(y, at);
            }
            store_float(y, at, value);
        }
    }
}
