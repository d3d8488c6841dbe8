// Attention of new tokens over their sequences' caches, for decoding and any mix of tokens (and for prefill where
// attention_prefill.metal cannot be used), and the reduction after a split context.
//
// out[t, h] = Σ_j softmax_j(scale · q[t, h] · K[j, h / G]) · V[j, h / G] over the positions j that token t sees: up to its
// own, and with a window only the last `window` of them. The softmax is computed online (Milakov & Gimelshein 2018, algorithm 3; Dao 2023,
// "FlashAttention-2", algorithm 1); a long context is split among threadgroups whose partial results a second kernel
// adds up (Dao et al. 2023, "Flash-Decoding").

#include "kv_cache.h"

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct AttentionArgs {
    uint kv_heads;     // Heads of keys and values.
    uint group;        // Query heads to each of them.
    uint query_stride; // Elements from one token's queries to the next one's.
    uint out_stride;   // Elements from one token's outputs to the next one's.
    uint stride;       // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    uint window;       // Positions that a token sees, itself included; 0: all.
    float scale;       // Factor on the scores.
    float softcap;     // cap · tanh(score / cap), where SOFTCAP.
};

// Sizes of a reduction.
struct AttentionReduceArgs {
    uint heads;      // Query heads.
    uint splits;     // Parts of the context.
    uint out_stride; // Elements from one token's outputs to the next one's.
    uint unused;
};

// Values per head: a multiple of 8 up to 256.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16, KV_INT8, KV_FP4, KV_F32.
SPECIALISE(uint, KV_FORMAT, 1);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 2);
// Query heads of one key head that a threadgroup takes.
SPECIALISE(uint, ROW_HEADS, 3);
// Tokens of one sequence that a threadgroup takes; ROW_HEADS · ROW_TOKENS is 8 at most.
SPECIALISE(uint, ROW_TOKENS, 4);
// Columns of values that a thread owns: ⌈HEAD_DIM / 8 / SIMD width⌉ (f32 cache: HEAD_DIM / 4), 1, 2, 4 or 8.
SPECIALISE(uint, COLUMNS, 5);
// Whether the context is split and `partial` is written, not `out`.
SPECIALISE(bool, SPLIT, 6);
// Whether scores are capped.
SPECIALISE(bool, SOFTCAP, 7);

// Query rows of a threadgroup, and rounded up for four at a time.
#define ROWS (ROW_HEADS * ROW_TOKENS)
#define ROWS4 ((ROWS + 3u) / 4u * 4u)
#define MAX_ROWS 8u
// Below every score, and finite: (-∞) - (-∞) would be NaN.
#define LOWEST -3.0e38f

// What a token sees: positions begin … last.
static inline uint first_visible(uint position, uint window) {
    return window != 0u && position >= window ? position + 1u - window : 0u;
}

// Sums of a thread: the rows' values in its columns of up to 8 dimensions.
struct AttentionSums {
    float value[8][8][8]; // [column][row][dimension]
};

// Adds the products of one piece of the key with all rows' queries. `queries`: [row][padded dimension].
static inline void score_piece(
    THREADGROUP(const float4) queries, uint row_pieces, uint piece, uint4 words, float factor,
    THREAD(float) scores) {
    uint elements = kv_elements(KV_FORMAT);
    float key[32];
    kv_unpack(KV_FORMAT, words, key);
    UNROLL
    for (uint r = 0u; r < MAX_ROWS; ++r) {
        if (r < ROWS) {
            float sum = KV_FORMAT == KV_FP4 ? 0.0f : scores[r];
            UNROLL
            for (uint e = 0u; e < 8u; ++e) {
                if (4u * e < elements) {
                    float4 q = queries[(r * row_pieces + piece) * (elements / 4u) + e];
                    sum = fma(q.x, key[4u * e], sum);
                    sum = fma(q.y, key[4u * e + 1u], sum);
                    sum = fma(q.z, key[4u * e + 2u], sum);
                    sum = fma(q.w, key[4u * e + 3u], sum);
                }
            }
            scores[r] = KV_FORMAT == KV_FP4 ? fma(sum, factor, scores[r]) : sum;
        }
    }
}

// The scores of one position with all rows.
static inline void score_position(
    DEVICE(const uint4) block, uint position, THREADGROUP(const float4) queries,
    THREAD(float) scores) {
    uint pieces = kv_key_row(KV_FORMAT, HEAD_DIM);
    DEVICE(const uint4) scales = block + kv_key_pieces(KV_FORMAT, HEAD_DIM)
        + kv_value_pieces(KV_FORMAT, HEAD_DIM);
    UNROLL
    for (uint r = 0u; r < MAX_ROWS; ++r) {
        scores[r] = 0.0f;
    }
    // Eight loads at a time are under way before the first is needed: bytes in flight are what the bandwidth
    // costs (Little's law).
    UNROLL
    for (uint batch = 0u; batch < 8u; ++batch) {
        uint4 words[8];
        float factors[8];
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            uint piece = 8u * batch + j;
            if (piece < pieces) {
                words[j] = load_streaming(block + piece * KV_BLOCK + position);
                if (KV_FORMAT == KV_FP4) {
                    factors[j] = float(device_cast(const half, scales)[piece * KV_BLOCK + position]);
                }
            }
        }
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            uint piece = 8u * batch + j;
            if (piece < pieces) {
                score_piece(queries, pieces, piece, words[j],
                    KV_FORMAT == KV_FP4 ? factors[j] * KV_FP4_UNIT : 1.0f, scores);
            }
        }
    }
    if (KV_FORMAT == KV_INT8) {
        float scale = device_cast(const float, scales)[position];
        UNROLL
        for (uint r = 0u; r < MAX_ROWS; ++r) {
            scores[r] = scores[r] * scale;
        }
    }
}

// Adds weight · value for the positions of one piece, one column. `weights`: [position of the tile][ROWS4].
static inline void add_values(
    uint4 words, THREADGROUP(const float) weights, uint first, THREAD(const float) factors, uint column,
    THREAD(AttentionSums) sums) {
    uint unit = kv_unit(KV_FORMAT);
    uint positions = kv_elements(KV_FORMAT) / unit;
    float value[32];
    kv_unpack(KV_FORMAT, words, value);
    UNROLL
    for (uint p = 0u; p < 4u; ++p) {
        if (p < positions) {
            float weight[8];
            UNROLL
            for (uint quad = 0u; quad < 2u; ++quad) {
                if (4u * quad < ROWS) {
                    float4 w = threadgroup_cast(const float4, weights)[((first + p) * ROWS4) / 4u + quad];
                    weight[4u * quad] = w.x;
                    weight[4u * quad + 1u] = w.y;
                    weight[4u * quad + 2u] = w.z;
                    weight[4u * quad + 3u] = w.w;
                }
            }
            UNROLL
            for (uint d = 0u; d < 8u; ++d) {
                if (d < unit) {
                    float v = value[p * unit + d];
                    if (KV_FORMAT == KV_FP4) {
                        v = v * factors[p];
                    }
                    UNROLL
                    for (uint r = 0u; r < MAX_ROWS; ++r) {
                        if (r < ROWS) {
                            sums->value[column][r][d] = fma(weight[r], v, sums->value[column][r][d]);
                        }
                    }
                }
            }
        }
    }
}

// query: [tokens][heads · HEAD_DIM], heads = kv_heads · group; cache, pages: kv_cache.h; sequences, positions: [tokens];
// tiles: [tiles][2] first token and number of tokens (≤ ROW_TOKENS) of one sequence at consecutive positions; without it tile i
// is token i; out: [tokens][heads · HEAD_DIM]; partial, for s splits: [tokens][heads][s][HEAD_DIM] sums of weighted values,
// then [tokens][heads][s][2] greatest score (times log2 e) and sum of weights.
//
// Grid: x splits, y kv_heads · ⌈group / ROW_HEADS⌉, z tiles. The threadgroup's rows share one key head, so each byte of the
// cache is read once for all of them. Each SIMD-group has a softmax of its own and takes every n-th tile of
// as many positions as it has lanes: no threadgroup barrier stands between the loads, and one merge ends it. A lane first
// owns a position (scores), then dimensions (weighted sum); only the weights pass through threadgroup memory.
//
// `shared`: max(ROWS · ⌈padded dimension⌉ + threads · ROWS4, SIMD-groups · ROWS · (HEAD_DIM + 2)) floats.
kernel void attention(
    IN(T) query [[buffer(0)]],
    IN(uint4) cache [[buffer(1)]],
    IN_OPTIONAL(uint) pages [[buffer(2)]],
    IN(uint) sequences [[buffer(3)]],
    IN(uint) positions [[buffer(4)]],
    IN_OPTIONAL(uint) tiles [[buffer(5)]],
    OUT(T) out [[buffer(6)]],
    OUT(float) partial [[buffer(7)]],
    INLINE(AttentionArgs) args [[buffer(8)]],
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
    uint chunks = (args.group + ROW_HEADS - 1u) / ROW_HEADS;
    uint kv_head = group.y / chunks;
    uint first_head = kv_head * args.group + group.y % chunks * ROW_HEADS;
    uint head_count = min(ROW_HEADS, (kv_head + 1u) * args.group - first_head);
    uint first_token = group.z;
    uint token_count = 1u;
    if (ROW_TOKENS > 1u) {
        first_token = tiles[2u * group.z];
        token_count = tiles[2u * group.z + 1u];
    }
    uint sequence = sequences[first_token];
    bool present = sequence != KV_NO_SEQUENCE;
    uint first_position = positions[first_token];

    // The rows' queries, as f32 and with everything that scales a score. Row r is token r / ROW_HEADS, head r % ROW_HEADS.
    // Scores are in units of log2 e from here on: exp2 is the hardware's exponential.
    uint padded = kv_key_row(KV_FORMAT, HEAD_DIM) * kv_elements(KV_FORMAT);
    float factor = SOFTCAP ? args.scale / args.softcap : args.scale * 1.44269504f;
    for (uint i = thread_index; i < ROWS * padded; i += threads.x) {
        uint r = i / padded;
        uint d = i % padded;
        float q = 0.0f;
        if (d < HEAD_DIM && r / ROW_HEADS < token_count && r % ROW_HEADS < head_count) {
            ulong at = ulong(first_token + r / ROW_HEADS) * ulong(args.query_stride)
                + ulong((first_head + r % ROW_HEADS) * HEAD_DIM + d);
            q = load_float(query, at) * factor;
        }
        shared[i] = q;
    }
    // The weights that are read four at a time but belong to no row.
    THREADGROUP(float) weights = shared + ROWS * padded + simdgroup * simd_width * ROWS4;
    for (uint r = ROWS; r < ROWS4; ++r) {
        weights[lane * ROWS4 + r] = 0.0f;
    }
    barrier_threadgroup();

    // The blocks of this split: what the tile's first token sees to what its last one does, in equal parts.
    uint tile_begin = first_visible(first_position, args.window);
    uint tile_last = first_position + token_count - 1u;
    uint first_block = tile_begin / KV_BLOCK;
    uint blocks = present ? tile_last / KV_BLOCK + 1u - first_block : 0u;
    uint begin = (first_block + blocks * group.x / groups.x) * KV_BLOCK;
    uint end = (first_block + blocks * (group.x + 1u) / groups.x) * KV_BLOCK;

    uint unit = kv_unit(KV_FORMAT);
    uint units = HEAD_DIM / unit;
    uint piece_positions = kv_elements(KV_FORMAT) / unit;
    // Lanes in rows of `units`: so many pieces of consecutive positions at a time.
    uint parallel = COLUMNS == 1u ? simd_width / units : 1u;
    uint lane_row = COLUMNS == 1u ? lane / units : 0u;
    uint lane_column = COLUMNS == 1u ? lane % units : lane;
    ulong block_pieces = ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
    uint value_pieces = kv_key_pieces(KV_FORMAT, HEAD_DIM);
    uint value_scales = value_pieces + kv_value_pieces(KV_FORMAT, HEAD_DIM)
        + kv_scale_pieces(KV_FORMAT, HEAD_DIM);

    float greatest[8];
    float total[8];
    AttentionSums sums;
    UNROLL
    for (uint r = 0u; r < MAX_ROWS; ++r) {
        greatest[r] = LOWEST;
        total[r] = 0.0f;
        UNROLL
        for (uint c = 0u; c < 8u; ++c) {
            if (c < COLUMNS) {
                UNROLL
                for (uint d = 0u; d < 8u; ++d) {
                    sums.value[c][r][d] = 0.0f;
                }
            }
        }
    }

    for (uint tile = begin + simdgroup * simd_width; tile < end; tile += simdgroups * simd_width) {
        // Scores: this lane's position.
        uint position = tile + lane;
        bool inside = position < end && position >= tile_begin && position <= tile_last;
        float scores[8];
        float value_scale = 1.0f;
        UNROLL
        for (uint r = 0u; r < MAX_ROWS; ++r) {
            scores[r] = LOWEST;
        }
        if (inside) {
            uint physical = kv_physical_block(
                pages, BLOCKS_PER_PAGE, args.stride, sequence, position / KV_BLOCK);
            DEVICE(const uint4) block =
                cache + ulong(physical * args.kv_heads + kv_head) * block_pieces;
            score_position(
                block, position % KV_BLOCK, threadgroup_cast(const float4, shared), scores);
            if (KV_FORMAT == KV_INT8) {
                value_scale = device_cast(const float, block + value_scales)[position % KV_BLOCK];
            }
        }
        bool grew = false;
        float correction[8];
        UNROLL
        for (uint r = 0u; r < MAX_ROWS; ++r) {
            if (r < ROWS) {
                uint own = first_position + r / ROW_HEADS;
                bool visible = inside && position <= own
                    && position >= first_visible(own, args.window);
                float score = scores[r];
                if (SOFTCAP) {
                    score = tanh(score) * (args.softcap * 1.44269504f);
                }
                float bound = max(greatest[r], simd_max(visible ? score : LOWEST));
                correction[r] = exp2(greatest[r] - bound);
                grew = grew || bound > greatest[r];
                greatest[r] = bound;
                float weight = visible ? exp2(score - bound) : 0.0f;
                total[r] = fma(total[r], correction[r], weight);
                // The values' scale goes with the weight: one product instead of eight.
                weights[lane * ROWS4 + r] = weight * value_scale;
            }
        }
        // The same in all lanes: greatest is.
        if (grew) {
            UNROLL
            for (uint c = 0u; c < 8u; ++c) {
                if (c < COLUMNS) {
                    UNROLL
                    for (uint r = 0u; r < MAX_ROWS; ++r) {
                        if (r < ROWS) {
                            UNROLL
                            for (uint d = 0u; d < 8u; ++d) {
                                sums.value[c][r][d] = sums.value[c][r][d] * correction[r];
                            }
                        }
                    }
                }
            }
        }
        barrier_simdgroup();

        // Weighted sum: this lane's dimensions, all positions of the tile.
        uint rows = simd_width / piece_positions;
        if (lane_row < parallel) {
            for (uint row = lane_row; row < rows; row += 8u * parallel) {
                UNROLL
                for (uint c = 0u; c < 8u; ++c) {
                    uint column = lane_column + c * simd_width;
                    if (c < COLUMNS && column < units) {
                        uint4 words[8];
                        float factors[32];
                        UNROLL
                        for (uint j = 0u; j < 8u; ++j) {
                            uint at = tile + (row + j * parallel) * piece_positions;
                            words[j] = make_uint4(0u, 0u, 0u, 0u);
                            UNROLL
                            for (uint p = 0u; p < 4u; ++p) {
                                factors[4u * j + p] = 0.0f;
                            }
                            // Rows that no token of the tile sees may be another sequence's leavings.
                            if (row + j * parallel < rows && at < end && at <= tile_last
                                && at + piece_positions > tile_begin) {
                                // A tile of up to 32 positions lies in one block.
                                uint physical = kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride,
                                    sequence, (simd_width <= KV_BLOCK ? tile : at) / KV_BLOCK);
                                DEVICE(const uint4) block =
                                    cache + ulong(physical * args.kv_heads + kv_head) * block_pieces;
                                uint in_block = at % KV_BLOCK;
                                words[j] = load_streaming(block + value_pieces
                                    + in_block / piece_positions * units + column);
                                if (KV_FORMAT == KV_FP4) {
                                    // Four positions' scales of this column's group are neighbours.
                                    DEVICE(const half) scales =
                                        device_cast(const half, block + value_scales)
                                        + column / 4u * KV_BLOCK + in_block;
                                    UNROLL
                                    for (uint p = 0u; p < 4u; ++p) {
                                        factors[4u * j + p] = float(scales[p]) * KV_FP4_UNIT;
                                    }
                                }
                            }
                        }
                        UNROLL
                        for (uint j = 0u; j < 8u; ++j) {
                            if (row + j * parallel < rows) {
                                add_values(words[j], weights, (row + j * parallel) * piece_positions,
                                    factors + 4u * j, c, &sums);
                            }
                        }
                    }
                }
            }
        }
        barrier_simdgroup();
    }

    // Merge: first the lane rows of each SIMD-group, in turn, then the SIMD-groups.
    UNROLL
    for (uint r = 0u; r < MAX_ROWS; ++r) {
        if (r < ROWS) {
            total[r] = simd_sum(total[r]);
        }
    }
    barrier_threadgroup();
    THREADGROUP(float) merged = shared + simdgroup * ROWS * HEAD_DIM;
    THREADGROUP(float) stats = shared + simdgroups * ROWS * HEAD_DIM;
    for (uint turn = 0u; turn < parallel; ++turn) {
        if (lane_row == turn) {
            UNROLL
            for (uint c = 0u; c < 8u; ++c) {
                uint column = lane_column + c * simd_width;
                if (c < COLUMNS && column < units) {
                    UNROLL
                    for (uint r = 0u; r < MAX_ROWS; ++r) {
                        if (r < ROWS) {
                            UNROLL
                            for (uint quad = 0u; quad < 2u; ++quad) {
                                if (4u * quad < unit) {
                                    THREADGROUP(float4) at = threadgroup_cast(float4,
                                        merged + r * HEAD_DIM + column * unit + 4u * quad);
                                    float4 sum = make_float4(
                                        sums.value[c][r][4u * quad], sums.value[c][r][4u * quad + 1u],
                                        sums.value[c][r][4u * quad + 2u],
                                        sums.value[c][r][4u * quad + 3u]);
                                    if (turn > 0u) {
                                        float4 before = *at;
                                        sum = sum + before;
                                    }
                                    *at = sum;
                                }
                            }
                        }
                    }
                }
            }
        }
        barrier_simdgroup();
    }
    if (lane == 0u) {
        UNROLL
        for (uint r = 0u; r < MAX_ROWS; ++r) {
            if (r < ROWS) {
                stats[(simdgroup * ROWS + r) * 2u] = greatest[r];
                stats[(simdgroup * ROWS + r) * 2u + 1u] = total[r];
            }
        }
    }
    barrier_threadgroup();
    uint heads = args.kv_heads * args.group;
    for (uint i = thread_index; i < ROWS * HEAD_DIM; i += threads.x) {
        uint r = i / HEAD_DIM;
        uint d = i % HEAD_DIM;
        if (r / ROW_HEADS < token_count && r % ROW_HEADS < head_count) {
            float bound = LOWEST;
            for (uint s = 0u; s < simdgroups; ++s) {
                bound = max(bound, stats[(s * ROWS + r) * 2u]);
            }
            float sum = 0.0f;
            float weight = 0.0f;
            for (uint s = 0u; s < simdgroups; ++s) {
                float share = exp2(stats[(s * ROWS + r) * 2u] - bound);
                sum = fma(share, shared[(s * ROWS + r) * HEAD_DIM + d], sum);
                weight = fma(share, stats[(s * ROWS + r) * 2u + 1u], weight);
            }
            uint token = first_token + r / ROW_HEADS;
            uint head = first_head + r % ROW_HEADS;
            if (SPLIT) {
                uint place = (token * heads + head) * groups.x + group.x;
                partial[ulong(place) * ulong(HEAD_DIM) + ulong(d)] = sum;
                if (d == 0u) {
                    ulong all = ulong(groups.z * heads * groups.x) * ulong(HEAD_DIM);
                    partial[all + ulong(2u * place)] = bound;
                    partial[all + ulong(2u * place + 1u)] = weight;
                }
            } else {
                store_float(out, ulong(token) * ulong(args.out_stride) + ulong(head * HEAD_DIM + d),
                    weight > 0.0f ? sum / weight : 0.0f);
            }
        }
    }
}

// partial: what `attention` wrote for each token; out: [tokens][heads · HEAD_DIM]. Grid: x heads, y tokens.
//
// The sums lie in the second-level cache, and latency is what this costs: a thread asks for four dimensions of every n-th
// split, eight at a time, before it looks at the weights, which pass through threadgroup memory meanwhile. `shared`:
// 4 · threads + 2 · splits floats.
kernel void attention_reduce(
    IN(float) partial [[buffer(0)]],
    OUT(T) out [[buffer(1)]],
    INLINE(AttentionReduceArgs) args [[buffer(2)]],
    THREADGROUP(float) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    uint quads = HEAD_DIM / 4u;
    uint quad = thread_index % quads;
    uint row = thread_index / quads;
    uint rows = threads.x / quads;
    uint place = (group.y * args.heads + group.x) * args.splits;
    DEVICE(const float2) all_stats = device_cast(const float2,
        partial + ulong(groups.y * args.heads * args.splits) * ulong(HEAD_DIM)) + place;
    DEVICE(const float4) sums =
        device_cast(const float4, partial + ulong(place) * ulong(HEAD_DIM)) + quad;
    THREADGROUP(float2) stats = threadgroup_cast(float2, shared + 4u * threads.x);

    float4 held[8];
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        held[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < rows && row + j * rows < args.splits) {
            held[j] = sums[(row + j * rows) * quads];
        }
    }
    for (uint s = thread_index; s < args.splits; s += threads.x) {
        float2 stat = all_stats[s];
        stats[s] = stat;
    }
    barrier_threadgroup();

    // The greatest score of all splits and the weight below it: each SIMD-group finds them for itself.
    float bound = LOWEST;
    for (uint s = lane; s < args.splits; s += simd_width) {
        float2 stat = stats[s];
        bound = max(bound, stat.x);
    }
    bound = simd_max(bound);
    float weight = 0.0f;
    for (uint s = lane; s < args.splits; s += simd_width) {
        float2 stat = stats[s];
        weight = fma(exp2(stat.x - bound), stat.y, weight);
    }
    weight = simd_sum(weight);

    if (row < rows) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (uint first = row; first < args.splits; first += 8u * rows) {
            UNROLL
            for (uint j = 0u; j < 8u; ++j) {
                uint s = first + j * rows;
                if (s < args.splits) {
                    float2 stat = stats[s];
                    // The first eight are here already.
                    if (first != row) {
                        held[j] = sums[s * quads];
                    }
                    sum = sum + held[j] * exp2(stat.x - bound);
                }
            }
        }
        threadgroup_cast(float4, shared)[row * quads + quad] = sum;
    }
    barrier_threadgroup();
    for (uint d = thread_index; d < HEAD_DIM; d += threads.x) {
        float value = 0.0f;
        for (uint r = 0u; r < rows; ++r) {
            value = value + shared[r * HEAD_DIM + d];
        }
        store_float(out, ulong(group.y) * ulong(args.out_stride) + ulong(group.x * HEAD_DIM + d),
            weight > 0.0f ? value / weight : 0.0f);
    }
}
