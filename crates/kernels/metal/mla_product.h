// Products of a few tokens with rows of a matrix in the fragment layout, whose sizes differ from call to call.
//
// A file that includes this declares, before the include, what weights.h wants declared.

#include "weights.h"

// The most tokens of a product.
#define MAX_TOKENS 4u

// What finds a matrix's values.
struct MlaMatrix {
    DEVICE(const uint) codes;
    DEVICE(const uchar) scales;
    DEVICE(const uchar) mins;
    uint blocks;  // Of a row block.
    uint groups;  // Scales of a row.
    uint columns; // Columns that share a scale.
};

static inline MlaMatrix mla_matrix(
    DEVICE(const uint) codes, DEVICE(const uchar) scales, DEVICE(const uchar) mins, uint blocks,
    uint groups, uint columns) {
    MlaMatrix matrix;
    matrix.codes = codes;
    matrix.scales = scales;
    matrix.mins = mins;
    matrix.blocks = blocks;
    matrix.groups = groups;
    matrix.columns = columns;
    return matrix;
}

struct MlaSums {
    float value[2][4]; // Row g or g + 8, token.
};

// Scale (x, y) and minimum (z, w) of rows g and g + 8 for the columns of step s (16 columns) of a block.
static inline float4 step_scale(
    THREAD(const MlaMatrix) matrix, uint row_block, uint block, uint s, uint g) {
    uint place = (row_block * matrix->groups + (block * 64u + s * 16u) / matrix->columns) * 8u + g;
    StoredScale stored;
    load_scale(matrix->scales, matrix->mins, device_cast(const half, matrix->scales), place, 0u, &stored);
    float2 scale = scale_of(&stored);
    float2 least = min_of(&stored);
    return make_float4(scale.x, scale.y, least.x, least.y);
}

// sums = rows g and g + 8 of row block `row_block` times `tokens` rows of x, whole in the slots t = 0.
//
// 32 threads, slot = 4 · g + t, whatever the SIMD width: four neighbours hold the same rows.
template <typename P>
static inline void multiply_row_block(
    THREAD(const MlaMatrix) matrix, P x, uint x_stride, uint x_columns, uint tokens, uint row_block,
    uint slot, THREAD(MlaSums) sums) {
    uint g = slot / 4u;
    uint t = slot % 4u;
    UNROLL
    for (uint m = 0u; m < MAX_TOKENS; ++m) {
        sums->value[0][m] = 0.0f;
        sums->value[1][m] = 0.0f;
    }
    for (uint block = 0u; block < matrix->blocks; ++block) {
        Slot held;
        load_slot(matrix->codes + ulong(row_block * matrix->blocks + block) * ulong(32u * code_bits()),
            slot, &held);
        UNROLL
        for (uint s = 0u; s < 4u; ++s) {
            float4 scale = step_scale(matrix, row_block, block, s, g);
            float2 low[2];
            float2 high[2];
            UNROLL
            for (uint p = 0u; p < 2u; ++p) {
                low[p] = slot_pair_float(&held, 0u, 2u * s + p);
                high[p] = slot_pair_float(&held, 1u, 2u * s + p);
            }
            uint k = block * 64u + s * 16u + 4u * t;
            UNROLL
            for (uint m = 0u; m < MAX_TOKENS; ++m) {
                if (m < tokens) {
                    float v[4];
                    UNROLL
                    for (uint i = 0u; i < 4u; ++i) {
                        v[i] = k + i < x_columns ? load_float(x, m * x_stride + k + i) : 0.0f;
                    }
                    float all = (v[0] + v[1]) + (v[2] + v[3]);
                    float a = fma(low[0].x, v[0], fma(low[0].y, v[1], fma(low[1].x, v[2], low[1].y * v[3])));
                    float b =
                        fma(high[0].x, v[0], fma(high[0].y, v[1], fma(high[1].x, v[2], high[1].y * v[3])));
                    sums->value[0][m] = fma(scale.x, a, fma(scale.z, all, sums->value[0][m]));
                    sums->value[1][m] = fma(scale.y, b, fma(scale.w, all, sums->value[1][m]));
                }
            }
        }
    }
    UNROLL
    for (uint m = 0u; m < MAX_TOKENS; ++m) {
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            float sum = sums->value[h][m];
            sum = sum + simd_shuffle_xor(sum, 1u);
            sums->value[h][m] = sum + simd_shuffle_xor(sum, 2u);
        }
    }
}
