// Products of the experts' quantised matrices with the tokens that chose them, in f32: whatever the SIMD width.
//
// y[s, n] = Σ_k W[expert of row s][n, k] · x[s, k] for rows s in order of experts (moe_group.metal), gate and up
// fused with their activation.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct MoeProductArgs {
    uint rows;    // Rows of an expert's matrix; of the gate alone where GATED.
    uint columns; // Columns of it.
    uint blocks;  // Blocks of 64 columns, padding included.
    uint groups;  // Scales of a row.
    uint experts; // Experts.
    uint chosen;  // Experts of a token.
    float factor; // Of all weights.
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
// Rows of x of a tile: 1, 2, 4 or 8.
SPECIALISE(uint, TILE, 5);
// y = activation(gate) · up; each expert has both matrices, one after the other, from a multiple of 16 rows.
SPECIALISE(bool, GATED, 6);
// 0: SiLU, 1: GELU with tanh (where GATED).
SPECIALISE(uint, ACTIVATION, 7);
// x has a row per token, which `order` finds; otherwise it is in order of experts itself.
SPECIALISE(bool, GATHER, 8);

#include "weights.h"
#include "moe_tiles.h"

// The rows of x of a tile's rows.
struct TileRows {
    uint x[8];
};

// Sums of one slot: row g and row g + 8 of a row block, per row of the tile.
struct MoeSums {
    float value[2][8];
};

static inline void clear_moe_sums(THREAD(MoeSums) sums) {
    UNROLL
    for (uint m = 0u; m < 8u; ++m) {
        sums->value[0][m] = 0.0f;
        sums->value[1][m] = 0.0f;
    }
}

// This thread's share of 16 rows: the blocks first, first + step, … of row block `row_block`, counted through
// all experts. Scales and minimums are applied to the f32 sums of a group, so dequantising rounds nothing.
static inline void multiply_expert(
    DEVICE(const uint) codes, DEVICE(const uchar) scales, DEVICE(const uchar) mins,
    DEVICE(const half) supers, DEVICE(const T) x, THREAD(const MoeProductArgs) args,
    THREAD(const TileRows) rows, uint count, uint row_block, uint slot, uint first, uint step, THREAD(MoeSums) sums) {
    uint g = slot / 4u;
    uint t = slot % 4u;
    uint supers_per_row = (args->blocks + 3u) / 4u;
    for (uint block = first; block < args->blocks; block += step) {
        Slot held;
        load_slot(codes + (row_block * args->blocks + block) * 32u * code_bits(), slot, &held);
        MoeSums products;
        float x_sums[8];
        UNROLL
        for (uint s = 0u; s < 4u; ++s) {
            uint column = block * 64u + s * 16u;
            bool begins = s == 0u || GROUP == 16u || (GROUP == 32u && s == 2u);
            bool ends = s == 3u || GROUP == 16u || (GROUP == 32u && s == 1u);
            if (begins) {
                clear_moe_sums(&products);
                UNROLL
                for (uint m = 0u; m < 8u; ++m) {
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
                if (m < TILE && m < count) {
                    float v[4];
                    UNROLL
                    for (uint i = 0u; i < 4u; ++i) {
                        v[i] = 0.0f;
                        if (k + i < args->columns) {
                            v[i] = load_float(x, rows->x[m] * args->columns + k + i);
                        }
                    }
                    float low = fma(w0.x, v[0], products.value[0][m]);
                    low = fma(w0.y, v[1], low);
                    low = fma(w1.x, v[2], low);
                    products.value[0][m] = fma(w1.y, v[3], low);
                    float high = fma(w2.x, v[0], products.value[1][m]);
                    high = fma(w2.y, v[1], high);
                    high = fma(w3.x, v[2], high);
                    products.value[1][m] = fma(w3.y, v[3], high);
                    x_sums[m] = x_sums[m] + ((v[0] + v[1]) + (v[2] + v[3]));
                }
            }
            if (ends) {
                uint group = GROUP == 0u ? 0u : column / GROUP;
                StoredScale stored;
                load_scale(
                    scales, mins, supers, (row_block * args->groups + group) * 8u + g,
                    super_place(row_block, supers_per_row, column, g), &stored);
                float2 scale = scale_of(&stored);
                float2 min = min_of(&stored);
                UNROLL
                for (uint m = 0u; m < 8u; ++m) {
                    if (m < TILE) {
                        float low = fma(scale.x, products.value[0][m], sums->value[0][m]);
                        float high = fma(scale.y, products.value[1][m], sums->value[1][m]);
                        if (MIN != MIN_NONE) {
                            low = fma(min.x, x_sums[m], low);
                            high = fma(min.y, x_sums[m], high);
                        }
                        sums->value[0][m] = low;
                        sums->value[1][m] = high;
                    }
                }
            }
        }
    }
}

// codes, scales, mins, supers: the experts' matrices in the fragment layout, one after the other; x: [tokens, columns]
// (GATHER) or [pairs, columns]; offsets, tiles: [experts + 1]; order: [pairs]; y: [pairs, rows].
//
// Grid: x = row blocks of 16 rows of an expert, y = the most tiles that the pairs can make: which expert a tile
// belongs to is on the device alone, and threadgroups past the last tile return at once. Threads are 32 slots ×
// shares of the columns. Weights bound it while an expert has fewer rows than TILE; then multiplications do.
kernel void moe_product(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(T) x [[buffer(4)]],
    IN(uint) offsets [[buffer(5)]],
    IN(uint) tiles [[buffer(6)]],
    IN(uint) order [[buffer(7)]],
    OUT(T) y [[buffer(8)]],
    INLINE(MoeProductArgs) args [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    // [gate or up][share][row of the block][row of the tile]
    THREADGROUP_ARRAY(float, partial, 2048);
    MoeProductArgs sizes = args;
    if (group.y >= tiles[sizes.experts]) {
        return;
    }
    MoeTile tile = tile_at(tiles, offsets, sizes.experts, TILE, group.y);
    TileRows rows;
    UNROLL
    for (uint m = 0u; m < 8u; ++m) {
        rows.x[m] = 0u;
        if (m < TILE && m < tile.count) {
            rows.x[m] = GATHER ? order[tile.first + m] / sizes.chosen : tile.first + m;
        }
    }
    uint shares = threads.x / 32u;
    uint share = thread_index / 32u;
    uint slot = thread_index % 32u;
    uint parts = GATED ? 2u : 1u;
    uint row_blocks = (sizes.rows + 15u) / 16u;

    for (uint part = 0u; part < parts; ++part) {
        MoeSums sums;
        clear_moe_sums(&sums);
        uint row_block = (tile.expert * parts + part) * row_blocks + group.x;
        multiply_expert(
            codes, scales, mins, supers, x, &sizes, &rows, tile.count, row_block, slot, share, shares, &sums);
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            UNROLL
            for (uint m = 0u; m < 8u; ++m) {
                if (m < TILE) {
                    float sum = sums.value[h][m];
                    sum = sum + simd_shuffle_xor(sum, 1u);
                    sum = sum + simd_shuffle_xor(sum, 2u);
                    if (slot % 4u == 0u) {
                        uint row = slot / 4u + 8u * h;
                        partial[((part * shares + share) * 16u + row) * TILE + m] = sum;
                    }
                }
            }
        }
    }
    barrier_threadgroup();

    for (uint i = thread_index; i < 16u * TILE; i += threads.x) {
        uint row = group.x * 16u + i / TILE;
        uint m = i % TILE;
        if (row < sizes.rows && m < tile.count) {
            float result[2];
            for (uint part = 0u; part < parts; ++part) {
                float sum = 0.0f;
                for (uint s = 0u; s < shares; ++s) {
                    sum = sum + partial[(part * shares + s) * 16u * TILE + i];
                }
                result[part] = sum * sizes.factor;
            }
            float value = GATED ? gate_activation(ACTIVATION, result[0]) * result[1] : result[0];
            store_float(y, (tile.first + m) * sizes.rows + row, value);
        }
    }
}
