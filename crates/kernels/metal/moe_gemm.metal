// Products of the experts' quantised matrices with many tokens each, by matrix fragments: moe_product.metal for
// prompts. x is in order of experts already (moe_gather).
//
// As in gemm.metal, 16 rows of W are the 16 rows of a fragment and 8 tokens its columns; scales are applied to f32
// sums. What differs is that threadgroups look their expert up, and that x is not staged: SIMD-groups of a
// threadgroup take different rows of W and the same x, which the first-level cache keeps for them.

ELEMENTS(T, half, bf16);

// Sizes of one call.
struct MoeGemmArgs {
    uint rows;    // Rows of an expert's matrix; of the gate alone where GATED.
    uint columns; // Columns of it, a multiple of 4.
    uint blocks;  // Blocks of 64 columns, padding included.
    uint groups;  // Scales of a row.
    uint experts; // Experts.
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
// Fragments of 8 rows of x of a tile: 1, 2 or 4.
SPECIALISE(uint, TILES, 5);
// SIMD-groups along the rows of W.
SPECIALISE(uint, ROW_GROUPS, 6);
// SIMD-groups along k: each takes every K_GROUPS-th block.
SPECIALISE(uint, K_GROUPS, 7);
// y = activation(gate) · up; each expert has both matrices, one after the other, from a multiple of 16 rows.
SPECIALISE(bool, GATED, 8);
// 0: SiLU, 1: GELU with tanh (where GATED).
SPECIALISE(uint, ACTIVATION, 9);

// Of matrix fragments.
typedef T Operand;

#include "weights.h"
#include "fragment.h"
#include "operands.h"
#include "moe_tiles.h"

static inline uint moe_parts() { return GATED ? 2u : 1u; }

// One block of the gate (or the only matrix) and of the up projection, as it comes from memory, for one lane.
struct MoeFetched {
    Slot slot[2];
    StoredScale scale[2][4];
};

struct MoeWeights {
    DEVICE(const uint) codes;
    DEVICE(const uchar) scales;
    DEVICE(const uchar) mins;
    DEVICE(const half) supers;
};

// row_block: the gate's, counted through all experts; the up projection's is `apart` further.
static inline void fetch_block(
    MoeWeights weights, THREAD(const MoeGemmArgs) args, uint row_block, uint apart, uint block, uint lane,
    THREAD(MoeFetched) out) {
    uint g = fragment_row(lane);
    uint slot = g * 4u + fragment_quad(lane);
    uint supers_per_row = (args->blocks + 3u) / 4u;
    uint column = block * 64u;
    uint groups = GROUP == 16u ? 4u : GROUP == 32u ? 2u : 1u;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < moe_parts()) {
            uint here = row_block + r * apart;
            load_slot(
                weights.codes + (here * args->blocks + block) * 32u * code_bits(), slot, &out->slot[r]);
            uint first = here * args->groups + (GROUP == 0u ? 0u : column / GROUP);
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                if (i < groups) {
                    load_scale(
                        weights.scales, weights.mins, weights.supers, (first + i) * 8u + g,
                        super_place(here, supers_per_row, column, g), &out->scale[r][i]);
                }
            }
        }
    }
}

// What a lane keeps: per matrix and fragment of x, the four sums of fragment.h.
struct MoeTotals {
    float element[2][4][4];
};

struct MoeProducts {
    SumFragment tile[2][4];
    SumFragment x_sums[4];
};

static inline void clear_products(THREAD(MoeProducts) products) {
    UNROLL
    for (uint n = 0u; n < 4u; ++n) {
        if (n < TILES) {
            clear_sums(&products->tile[0][n]);
            if (GATED) {
                clear_sums(&products->tile[1][n]);
            }
            if (MIN != MIN_NONE) {
                clear_sums(&products->x_sums[n]);
            }
        }
    }
}

// totals += scale · products + min · Σ x; the sums of x come from a product with ones, in the lanes that need them.
static inline void scale_products(
    THREAD(MoeTotals) totals, THREAD(MoeProducts) products, THREAD(const MoeFetched) fetched, uint group) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < moe_parts()) {
            float2 scale = scale_of(&fetched->scale[r][group]);
            float2 min = min_of(&fetched->scale[r][group]);
            UNROLL
            for (uint n = 0u; n < 4u; ++n) {
                UNROLL
                for (uint e = 0u; e < 4u; ++e) {
                    if (n < TILES) {
                        float total = fma(
                            e < 2u ? scale.x : scale.y, sum_element(&products->tile[r][n], e),
                            totals->element[r][n][e]);
                        if (MIN != MIN_NONE) {
                            total = fma(
                                e < 2u ? min.x : min.y, sum_element(&products->x_sums[n], e), total);
                        }
                        totals->element[r][n][e] = total;
                    }
                }
            }
        }
    }
}

// Where the fragments of a tile's x lie: 8 rows each, from `start` on.
struct MoePlaces {
    TokenPlace place[4];
    uint start[4];
};

// Multiplies one block. x: the block's first column of the tile's first row; `columns` columns are left there.
static inline void multiply_fetched(
    THREAD(const MoeFetched) fetched, DEVICE(const T) x, THREAD(const MoePlaces) places, uint columns,
    THREAD(MoeTotals) totals) {
    MoeProducts products;
    WeightFragment ones;
    UNROLL
    for (uint i = 0u; i < 4u; ++i) {
        ones.pair[i] = operand_one(T());
    }
    UNROLL
    for (uint s = 0u; s < 4u; ++s) {
        bool begins = s == 0u || GROUP == 16u || (GROUP == 32u && s == 2u);
        bool ends = s == 3u || GROUP == 16u || (GROUP == 32u && s == 1u);
        if (begins) {
            clear_products(&products);
        }
        WeightFragment weights[2];
        UNROLL
        for (uint r = 0u; r < 2u; ++r) {
            if (r < moe_parts()) {
                UNROLL
                for (uint i = 0u; i < 4u; ++i) {
                    weights[r].pair[i] =
                        operand_pair(&fetched->slot[r], i % 2u, 2u * s + i / 2u, T());
                }
            }
        }
        uint left = columns > s * 16u ? columns - s * 16u : 0u;
        UNROLL
        for (uint n = 0u; n < 4u; ++n) {
            if (n < TILES) {
                TokenFragment tokens;
                load_tokens_before(x + places->start[n] + s * 16u, places->place[n], left, &tokens);
                multiply_accumulate(&products.tile[0][n], &weights[0], &tokens);
                if (GATED) {
                    multiply_accumulate(&products.tile[1][n], &weights[1], &tokens);
                }
                if (MIN != MIN_NONE) {
                    multiply_accumulate(&products.x_sums[n], &ones, &tokens);
                }
            }
        }
        if (ends) {
            scale_products(totals, &products, fetched, GROUP == 16u ? s : GROUP == 32u ? s / 2u : 0u);
        }
    }
}

// codes, scales, mins, supers: the experts' matrices in the fragment layout, one after the other; x: [pairs, columns] in order of
// experts; offsets, tiles: [experts + 1], for tiles of 8 · TILES rows; y: [pairs, rows].
//
// Grid: x = an expert's row blocks over ROW_GROUPS, y = the most tiles that the pairs can make: which expert a tile
// belongs to is on the device alone, and threadgroups past the last tile return at once. Threadgroup memory
// (floats): K_GROUPS · ROW_GROUPS · 16 · (2 where GATED) · 8 · TILES, at most 32 KiB with 8 SIMD-groups.
REQUIRES_SIMD_WIDTH(32)
kernel void moe_gemm(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(T) x [[buffer(4)]],
    IN(uint) offsets [[buffer(5)]],
    IN(uint) tiles [[buffer(6)]],
    OUT(T) y [[buffer(7)]],
    INLINE(MoeGemmArgs) args [[buffer(8)]],
    THREADGROUP(float) scratch [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    MoeGemmArgs sizes = args;
    if (group.y >= tiles[sizes.experts]) {
        return;
    }
    MoeTile tile = tile_at(tiles, offsets, sizes.experts, 8u * TILES, group.y);
    uint k_group = simd_group % K_GROUPS;
    uint row_group = simd_group / K_GROUPS;
    uint row_blocks = (sizes.rows + 15u) / 16u;
    uint parts = moe_parts();
    // A SIMD-group past the last rows repeats them, and stores nothing.
    uint mine = min(group.x * ROW_GROUPS + row_group, row_blocks - 1u);
    uint row_block = tile.expert * parts * row_blocks + mine;
    MoeWeights weights;
    weights.codes = codes;
    weights.scales = scales;
    weights.mins = mins;
    weights.supers = supers;

    // Rows past the last repeat one, and store nothing either.
    MoePlaces places;
    UNROLL
    for (uint n = 0u; n < 4u; ++n) {
        uint before = min(8u * n, tile.count - 1u);
        places.place[n] = token_place(sizes.columns, tile.count - before, lane);
        places.start[n] = before * sizes.columns;
    }
    MoeTotals totals;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 4u; ++n) {
            UNROLL
            for (uint e = 0u; e < 4u; ++e) {
                totals.element[r][n][e] = 0.0f;
            }
        }
    }
    DEVICE(const T) first_row = x + tile.first * sizes.columns;
    // The next block is on its way while one is multiplied.
    MoeFetched fetched[2];
    if (k_group < sizes.blocks) {
        fetch_block(weights, &sizes, row_block, row_blocks, k_group, lane, &fetched[0]);
    }
    for (uint block = k_group; block < sizes.blocks; block += 2u * K_GROUPS) {
        UNROLL
        for (uint d = 0u; d < 2u; ++d) {
            uint here = block + d * K_GROUPS;
            if (here < sizes.blocks) {
                if (here + K_GROUPS < sizes.blocks) {
                    fetch_block(
                        weights, &sizes, row_block, row_blocks, here + K_GROUPS, lane, &fetched[1u - d]);
                }
                uint left = sizes.columns > here * 64u ? sizes.columns - here * 64u : 0u;
                multiply_fetched(&fetched[d], first_row + here * 64u, &places, left, &totals);
            }
        }
    }

    // The SIMD-groups along k add up through threadgroup memory: [k group][part][row][row of the tile].
    uint group_rows = ROW_GROUPS * 16u;
    uint height = 8u * TILES;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 4u; ++n) {
            UNROLL
            for (uint e = 0u; e < 4u; ++e) {
                if (r < parts && n < TILES) {
                    uint row = row_group * 16u + fragment_row(lane) + 8u * (e / 2u);
                    uint m = 8u * n + 2u * fragment_quad(lane) + e % 2u;
                    scratch[((k_group * parts + r) * group_rows + row) * height + m] =
                        totals.element[r][n][e];
                }
            }
        }
    }
    barrier_threadgroup();
    float factor = sizes.factor * operand_factor(T());
    for (uint i = thread_index; i < group_rows * height; i += threads.x) {
        // Neighbouring threads store neighbouring rows of W.
        uint row = i % group_rows;
        uint m = i / group_rows;
        uint out = group.x * group_rows + row;
        if (out < sizes.rows && m < tile.count) {
            float result[2];
            for (uint r = 0u; r < parts; ++r) {
                float sum = 0.0f;
                for (uint k = 0u; k < K_GROUPS; ++k) {
                    sum = sum + scratch[((k * parts + r) * group_rows + row) * height + m];
                }
                result[r] = sum * factor;
            }
            float value = GATED ? gate_activation(ACTIVATION, result[0]) * result[1] : result[0];
            store_float(y, (tile.first + m) * sizes.rows + out, value);
        }
    }
}
