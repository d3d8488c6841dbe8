// Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", §2.1): keys and values of all heads are products of
// one latent vector per token, which is all that the cache holds, with a rotary key that the heads share.
//
//   c = norm(W_DKV · x)                        latent, LATENT values (512), cached
//   r = rope(W_KR · x)                         rotary key, ROPE values (64), cached
//   k[h] = [W_UK[h] · c, r],  v[h] = W_UV[h] · c
//
// Decoding never makes keys or values: q[h] · W_UK[h] · c = (W_UK[h]ᵀ · q[h]) · c and Σ p · W_UV[h] · c = W_UV[h] · Σ p · c
// (§2.1.2, "absorbed" weights). So a token runs
//   mla_fused    hidden → latent → queries, two products in one dispatch
//   rope         (rope.metal) of the queries' and the key's rotary parts
//   mla_append   norm of the latent; latent and rotary key into the cache
//   mla_absorb   the queries into the latent space
//   mla_attend   attention there (and attention_reduce, where the context is split)
//   mla_expand   the result out of it
// Weights are in the fragment layout of weights.h; W_UK and W_UV are the rows of one matrix (`kv_b_proj`): of each head
// first KEY_DIM rows of keys, then VALUE_DIM rows of values.

ELEMENTS(T, half, bf16, float);

// Sizes of a two-stage projection.
struct MlaFusedArgs {
    uint tokens;        // Rows of x.
    uint hidden;        // Columns of A.
    uint latent;        // Rows of A and columns of B.
    uint out_rows;      // Rows of B.
    uint x_stride;      // Elements from one row of x to the next.
    uint out_stride;    // Elements from one row of out to the next.
    uint blocks_a;      // Blocks of 64 columns of A, padding included.
    uint groups_a;      // Scales of a row of A.
    uint columns_a;     // Columns that share a scale of A: group size a.
    uint blocks_b;      // Blocks of 64 columns of B.
    uint groups_b;      // Scales of a row of B.
    uint columns_b;     // Group size b.
    float factor_a;     // Of all weights of A.
    float factor_b;     // Of all weights of B.
    float epsilon;      // Of the norm between the stages.
    uint unused;
};

// Sizes of a product with the rows of single heads.
struct MlaHeadArgs {
    uint heads;      // Heads.
    uint key_dim;    // Rows of keys of a head, a multiple of 16.
    uint value_dim;  // Rows of values of a head, a multiple of 16.
    uint x_stride;   // Elements from one token of x to the next.
    uint out_stride; // Elements from one token of out to the next.
    uint blocks;     // Blocks of 64 columns.
    uint groups;     // Scales of a row.
    uint columns;    // Columns that share a scale.
    float factor;    // Of all weights.
};

// Sizes of an append.
struct MlaAppendArgs {
    uint x_stride; // Elements from one token's [latent, rotary key] to the next one's.
    uint stride;   // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    float epsilon; // Of the norm.
};

// Sizes of an attention.
struct MlaAttendArgs {
    uint heads;        // Query heads.
    uint query_stride; // Elements from one token's queries to the next one's.
    uint out_stride;   // Elements from one token's outputs to the next one's.
    uint stride;       // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    float scale;       // Factor on the scores.
};

// What a code is: FragmentCode.
SPECIALISE(uint, CODE, 0);
// Subtracted from integer codes.
SPECIALISE(int, OFFSET, 1);
// What scales are: FragmentScale, super-blocks excepted.
SPECIALISE(uint, SCALE, 2);
// What minimums are: FragmentMin, super-blocks excepted.
SPECIALISE(uint, MIN, 3);
// Whether there is a norm between the stages, or before the cache.
SPECIALISE(bool, NORM, 4);
// Values of the latent: a multiple of 8 up to 512.
SPECIALISE(uint, LATENT, 5);
// Values of the rotary part: a multiple of 8 up to 128.
SPECIALISE(uint, ROPE, 6);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 7);
// Heads of a SIMD-group in mla_attend, 4 at most.
SPECIALISE(uint, ROW_HEADS, 8);
// Pieces of eight latent values that a lane owns in mla_attend: ⌈LATENT / 8 / SIMD width⌉.
SPECIALISE(uint, PIECES, 9);
// Whether the context is split and `partial` is written, not `out`.
SPECIALISE(bool, SPLIT, 10);

#include "kv_cache.h"
#include "mla_product.h"
#include "mla_latent.h"

// out[m] = B · norm(A · x[m]), or without the norm.
//
// A: [latent, hidden], B: [out rows, latent], quantised alike but for their group sizes; x: [tokens, hidden]; norm_weight:
// [latent]; out: [tokens, out rows]. Grid: x shares of B's row blocks, y tiles of 4 tokens.
//
// The latent never leaves threadgroup memory: `shared`, 4 · latent floats. Every threadgroup of a tile makes the latent anew,
// which with few tokens costs more than it saves: as many threadgroups as row blocks read A. So this is for
// small A (low-rank adapters) and for many tokens, with one share; two products serve single tokens.
kernel void mla_fused(
    IN(uint) codes_a [[buffer(0)]],
    IN(uchar) scales_a [[buffer(1)]],
    IN_OPTIONAL(uchar) mins_a [[buffer(2)]],
    IN(uint) codes_b [[buffer(3)]],
    IN(uchar) scales_b [[buffer(4)]],
    IN_OPTIONAL(uchar) mins_b [[buffer(5)]],
    IN_OPTIONAL(float) norm_weight [[buffer(6)]],
    IN(T) x [[buffer(7)]],
    OUT(T) out [[buffer(8)]],
    INLINE(MlaFusedArgs) args [[buffer(9)]],
    THREADGROUP(float) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    uint share = thread_index / 32u;
    uint shares = threads.x / 32u;
    uint slot = thread_index % 32u;
    uint first_token = group.y * MAX_TOKENS;
    uint tokens = min(args.tokens - first_token, MAX_TOKENS);
    MlaSums sums;

    // Rounds are the same for all threads: the exchanges need everyone.
    MlaMatrix a =
        mla_matrix(codes_a, scales_a, mins_a, args.blocks_a, args.groups_a, args.columns_a);
    uint row_blocks = (args.latent + 15u) / 16u;
    DEVICE(const T) rows = x + ulong(first_token) * ulong(args.x_stride);
    for (uint first = 0u; first < row_blocks; first += shares) {
        uint row_block = min(first + share, row_blocks - 1u);
        multiply_row_block(&a, rows, args.x_stride, args.hidden, tokens, row_block, slot, &sums);
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            UNROLL
            for (uint m = 0u; m < MAX_TOKENS; ++m) {
                uint row = row_block * 16u + 8u * h + slot / 4u;
                if (slot % 4u == 0u && first + share < row_blocks && row < args.latent && m < tokens) {
                    shared[m * args.latent + row] = sums.value[h][m] * args.factor_a;
                }
            }
        }
    }
    barrier_threadgroup();
    if (NORM) {
        // One SIMD-group a token.
        for (uint m = simdgroup; m < tokens; m += simdgroups) {
            float squares = 0.0f;
            for (uint i = lane; i < args.latent; i += simd_width) {
                float value = shared[m * args.latent + i];
                squares = fma(value, value, squares);
            }
            float factor = 1.0f / sqrt(simd_sum(squares) / float(args.latent) + args.epsilon);
            for (uint i = lane; i < args.latent; i += simd_width) {
                shared[m * args.latent + i] = shared[m * args.latent + i] * factor * norm_weight[i];
            }
        }
        barrier_threadgroup();
    }

    MlaMatrix b =
        mla_matrix(codes_b, scales_b, mins_b, args.blocks_b, args.groups_b, args.columns_b);
    row_blocks = (args.out_rows + 15u) / 16u;
    uint begin = row_blocks * group.x / groups.x;
    uint end = row_blocks * (group.x + 1u) / groups.x;
    for (uint first = begin; first < end; first += shares) {
        uint row_block = min(first + share, end - 1u);
        multiply_row_block(&b, shared, args.latent, args.latent, tokens, row_block, slot, &sums);
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            UNROLL
            for (uint m = 0u; m < MAX_TOKENS; ++m) {
                uint row = row_block * 16u + 8u * h + slot / 4u;
                if (slot % 4u == 0u && first + share < end && row < args.out_rows && m < tokens) {
                    store_float(out, ulong(first_token + m) * ulong(args.out_stride) + ulong(row),
                        sums.value[h][m] * args.factor_b);
                }
            }
        }
    }
}

// x: [tokens][LATENT + ROPE], the rotary part already turned; norm_weight: [LATENT] where NORM; cache:
// [block][32 positions][LATENT + ROPE] f16, blocks found as in kv_cache.h. One SIMD-group a token.
//
// Positions lie row by row: mla_attend reads a position once, for score and sum, so it needs no second order.
kernel void mla_append(
    IN(T) x [[buffer(0)]],
    IN_OPTIONAL(float) norm_weight [[buffer(1)]],
    IN(uint) sequences [[buffer(2)]],
    IN(uint) positions [[buffer(3)]],
    IN_OPTIONAL(uint) pages [[buffer(4)]],
    INOUT(half) cache [[buffer(5)]],
    INLINE(MlaAppendArgs) args [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    uint token = group.x;
    uint sequence = sequences[token];
    if (sequence == KV_NO_SEQUENCE) {
        return;
    }
    uint position = positions[token];
    uint block =
        kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride, sequence, position / KV_BLOCK);
    ulong to = ulong(block * KV_BLOCK + position % KV_BLOCK) * ulong(LATENT + ROPE);
    ulong from = ulong(token) * ulong(args.x_stride);
    float factor = 1.0f;
    if (NORM) {
        float squares = 0.0f;
        for (uint i = lane; i < LATENT; i += simd_width) {
            float value = load_float(x, from + ulong(i));
            squares = fma(value, value, squares);
        }
        factor = 1.0f / sqrt(simd_sum(squares) / float(LATENT) + args.epsilon);
    }
    for (uint i = lane; i < LATENT + ROPE; i += simd_width) {
        float value = load_float(x, from + ulong(i));
        if (NORM && i < LATENT) {
            value = value * factor * norm_weight[i];
        }
        // An infinity would turn every later score into NaN.
        cache[to + ulong(i)] = half(clamp(value, -65504.0f, 65504.0f));
    }
}

// out[t, h] = [W_UK[h]ᵀ · q[t, h, .. key_dim], q[t, h, key_dim ..]]
//
// q: [tokens][heads][key_dim + ROPE], the rotary part already turned; weights: [heads · (key_dim + value_dim), LATENT];
// out: [tokens][heads][LATENT + ROPE]. Grid: x heads, y tokens.
//
// A product with the transposed matrix from the order of the plain one: a slot adds up its 16 columns over the rows it
// holds, and the eight slots with the same columns meet in threadgroup memory, [8][64 · blocks] floats.
kernel void mla_absorb(
    IN(uint) codes [[buffer(0)]],
    IN(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN(T) q [[buffer(3)]],
    OUT(T) out [[buffer(4)]],
    INLINE(MlaHeadArgs) args [[buffer(5)]],
    THREADGROUP(float) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    MlaMatrix matrix = mla_matrix(codes, scales, mins, args.blocks, args.groups, args.columns);
    uint slot = thread_index % 32u;
    uint g = slot / 4u;
    uint t = slot % 4u;
    uint first = group.x * ((args.key_dim + args.value_dim) / 16u);
    DEVICE(const T) query =
        q + ulong(group.y) * ulong(args.x_stride) + ulong(group.x * (args.key_dim + ROPE));
    for (uint block = thread_index / 32u; block < args.blocks; block += threads.x / 32u) {
        float sums[16];
        UNROLL
        for (uint i = 0u; i < 16u; ++i) {
            sums[i] = 0.0f;
        }
        for (uint r = 0u; r < args.key_dim / 16u; ++r) {
            Slot held;
            load_slot(codes + ulong((first + r) * args.blocks + block) * ulong(32u * code_bits()), slot,
                &held);
            float low = load_float(query, r * 16u + g);
            float high = load_float(query, r * 16u + g + 8u);
            UNROLL
            for (uint s = 0u; s < 4u; ++s) {
                float4 scale = step_scale(&matrix, first + r, block, s, g);
                float shift = fma(scale.z, low, scale.w * high);
                UNROLL
                for (uint p = 0u; p < 2u; ++p) {
                    float2 a = slot_pair_float(&held, 0u, 2u * s + p);
                    float2 b = slot_pair_float(&held, 1u, 2u * s + p);
                    uint at = 4u * s + 2u * p;
                    sums[at] =
                        fma(scale.x * low, a.x, fma(scale.y * high, b.x, sums[at] + shift));
                    sums[at + 1u] =
                        fma(scale.x * low, a.y, fma(scale.y * high, b.y, sums[at + 1u] + shift));
                }
            }
        }
        UNROLL
        for (uint i = 0u; i < 16u; ++i) {
            uint column = block * 64u + i / 4u * 16u + 4u * t + i % 4u;
            shared[g * args.blocks * 64u + column] = sums[i];
        }
    }
    barrier_threadgroup();
    ulong to = ulong(group.y) * ulong(args.out_stride) + ulong(group.x * (LATENT + ROPE));
    for (uint i = thread_index; i < LATENT + ROPE; i += threads.x) {
        float value = 0.0f;
        if (i < LATENT) {
            UNROLL
            for (uint r = 0u; r < 8u; ++r) {
                value = value + shared[r * args.blocks * 64u + i];
            }
            value = value * args.factor;
        } else {
            value = load_float(query, args.key_dim + i - LATENT);
        }
        store_float(out, to + ulong(i), value);
    }
}

// out[t, h] = W_UV[h] · x[t, h]
//
// x: [tokens][heads][LATENT]; weights: [heads · (key_dim + value_dim), LATENT]; out: [tokens][heads][value_dim].
// Grid: x heads, y tokens.
kernel void mla_expand(
    IN(uint) codes [[buffer(0)]],
    IN(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN(T) x [[buffer(3)]],
    OUT(T) out [[buffer(4)]],
    INLINE(MlaHeadArgs) args [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    MlaMatrix matrix = mla_matrix(codes, scales, mins, args.blocks, args.groups, args.columns);
    uint share = thread_index / 32u;
    uint shares = threads.x / 32u;
    uint slot = thread_index % 32u;
    uint head_blocks = (args.key_dim + args.value_dim) / 16u;
    uint begin = group.x * head_blocks + args.key_dim / 16u;
    uint row_blocks = args.value_dim / 16u;
    DEVICE(const T) from = x + ulong(group.y) * ulong(args.x_stride) + ulong(group.x * LATENT);
    ulong to = ulong(group.y) * ulong(args.out_stride) + ulong(group.x * args.value_dim);
    MlaSums sums;
    for (uint first = 0u; first < row_blocks; first += shares) {
        uint row_block = min(first + share, row_blocks - 1u);
        multiply_row_block(&matrix, from, LATENT, LATENT, 1u, begin + row_block, slot, &sums);
        if (slot % 4u == 0u && first + share < row_blocks) {
            uint row = row_block * 16u + slot / 4u;
            store_float(out, to + ulong(row), sums.value[0][0] * args.factor);
            store_float(out, to + ulong(row + 8u), sums.value[1][0] * args.factor);
        }
    }
}

// query: [tokens][heads][LATENT + ROPE]; cache: as mla_append writes it; out: [tokens][heads][LATENT]; partial: as in
// attention.metal, with LATENT for HEAD_DIM. Grid: x splits, y ⌈heads / (SIMD-groups · ROW_HEADS)⌉, z tokens.
//
// A SIMD-group takes ROW_HEADS heads; its lanes own the latent's values, so that what a lane has loaded serves the score
// (after a sum over the lanes) and, from the same registers, the weighted sum: a position is read once and nothing passes
// through threadgroup memory. The SIMD-groups of a threadgroup read the same positions at about the same time: the
// first-level cache serves all but the first. Two heads cost a lane 36 + 32 multiply-adds and 10 exchanges a
// position: arithmetic bounds it from some 8 heads on.
kernel void mla_attend(
    IN(T) query [[buffer(0)]],
    IN(uint4) cache [[buffer(1)]],
    IN_OPTIONAL(uint) pages [[buffer(2)]],
    IN(uint) sequences [[buffer(3)]],
    IN(uint) positions [[buffer(4)]],
    OUT(T) out [[buffer(5)]],
    OUT(float) partial [[buffer(6)]],
    INLINE(MlaAttendArgs) args [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    uint first_head = (group.y * simdgroups + simdgroup) * ROW_HEADS;
    if (first_head >= args.heads) {
        return;
    }
    uint token = group.z;
    uint sequence = sequences[token];
    uint last = positions[token];
    uint row_pieces = (LATENT + ROPE) / 8u;

    LatentRows held;
    DEVICE(const T) queries = query + ulong(token) * ulong(args.query_stride);
    start_latent_rows(
        queries, first_head, args.heads, args.scale * 1.44269504f, lane, simd_width, &held);

    uint count = sequence == KV_NO_SEQUENCE ? 0u : last / BATCH + 1u;
    uint begin = uint(ulong(count) * ulong(group.x) / ulong(groups.x)) * BATCH;
    uint end = uint(ulong(count) * ulong(group.x + 1u) / ulong(groups.x)) * BATCH;
    for (uint tile = begin; tile < end; tile += BATCH) {
        // BATCH divides the block: one look into the table.
        uint block = kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride, sequence, tile / KV_BLOCK);
        DEVICE(const uint4) rows =
            cache + ulong(block * KV_BLOCK + tile % KV_BLOCK) * ulong(row_pieces);
        LatentPieces pieces[BATCH];
        load_latent(rows, tile, last, lane, simd_width, pieces);
        LatentScores scores;
        score_latent(&held, pieces, simd_width, &scores);
        add_latent(&held, pieces, tile, last, &scores);
    }

    UNROLL
    for (uint r = 0u; r < MAX_HEADS; ++r) {
        uint head = first_head + r;
        if (r < ROW_HEADS && head < args.heads) {
            uint place = (token * args.heads + head) * groups.x + group.x;
            float inverse = held.total[r] > 0.0f ? 1.0f / held.total[r] : 0.0f;
            UNROLL
            for (uint c = 0u; c < 8u; ++c) {
                uint piece = lane + c * simd_width;
                if (c < PIECES && piece < LATENT / 8u) {
                    UNROLL
                    for (uint d = 0u; d < 8u; ++d) {
                        uint i = piece * 8u + d;
                        if (SPLIT) {
                            partial[ulong(place) * ulong(LATENT) + ulong(i)] = held.sums[r][c][d];
                        } else {
                            store_float(out,
                                ulong(token) * ulong(args.out_stride) + ulong(head * LATENT + i),
                                held.sums[r][c][d] * inverse);
                        }
                    }
                }
            }
            if (SPLIT && lane == 0u) {
                ulong all = ulong(groups.z * args.heads * groups.x) * ulong(LATENT);
                partial[all + ulong(2u * place)] = held.greatest[r];
                partial[all + ulong(2u * place + 1u)] = held.total[r];
            }
        }
    }
}
