// Attention of runs of tokens by matrix fragments: what `attention` computes, for 64 query rows at a time.
//
// FlashAttention-2 (Dao 2023, algorithm 1) with f16 operands and f32 sums: queries, keys, weights and values are rounded
// to f16 on their way into a fragment, and kept within its range, scores and results are not.

// Of matrix fragments.
typedef half Operand;

#include "fragment.h"
#include "kv_cache.h"

ELEMENTS(T, half, bf16);

// Sizes of one call.
struct AttentionPrefillArgs {
    uint kv_heads;     // Heads of keys and values.
    uint group;        // Query heads to each of them.
    uint query_stride; // Elements from one token's queries to the next one's.
    uint out_stride;   // Elements from one token's outputs to the next one's.
    uint stride;       // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    uint window;       // Positions that a token sees, itself included; 0: all.
    float scale;       // Factor on the scores.
    float softcap;     // cap · tanh(score / cap), where SOFTCAP.
};

// Values per head: a multiple of 8 up to 192.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16, KV_INT8, KV_FP4, KV_F32.
SPECIALISE(uint, KV_FORMAT, 1);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 2);
// Query heads of one key head that a threadgroup takes.
SPECIALISE(uint, ROW_HEADS, 3);
// Tokens of one sequence that a threadgroup takes; ROW_HEADS · ROW_TOKENS is 16 a SIMD-group at most.
SPECIALISE(uint, ROW_TOKENS, 4);
// Whether scores are capped.
SPECIALISE(bool, SOFTCAP, 5);

// Steps of 16 dimensions, and tiles of 8.
#define STEPS ((HEAD_DIM + 15u) / 16u)
#define MAX_STEPS 12u
#define MAX_TILES 24u
// Halves from one position's key to the next, and from one dimension's values to the next: eight words past a multiple of 16, so
// that the eight rows of a fragment lie in different banks.
#define KEY_STRIDE (STEPS * 16u + 16u)
#define VALUE_STRIDE 48u
#define LOWEST -3.0e38f

// Where position p of 16 goes in a row of values. A lane's weights are positions 2t, 2t + 1, 2t + 8 and 2t + 9 as the scores' fragment
// gives them to it; the fragment of the next product wants four neighbours. Any order of k will do if both agree.
static inline uint value_slot(uint p) {
    return p / 16u * 16u + p % 8u / 2u * 4u + p % 16u / 8u * 2u + p % 2u;
}

static inline half prefill_half(float x) { return half(clamp(x, -65504.0f, 65504.0f)); }

// The lane that differs from this one in bit `bit` of its fragment_quad alone: the exclusive-or of their numbers.
static inline uint quad_mask(uint bit) {
    uint mask = 0u;
    UNROLL
    for (uint b = 0u; b < 5u; ++b) {
        if (fragment_row(1u << b) == 0u && fragment_quad(1u << b) == (1u << bit)) {
            mask = 1u << b;
        }
    }
    return mask;
}

static inline float quad_max(float v) {
    v = max(v, simd_shuffle_xor(v, quad_mask(0u)));
    return max(v, simd_shuffle_xor(v, quad_mask(1u)));
}

static inline float quad_sum(float v) {
    v = v + simd_shuffle_xor(v, quad_mask(0u));
    return v + simd_shuffle_xor(v, quad_mask(1u));
}

// One piece of a position's key, as f16, to `out`.
static inline void stage_key(
    DEVICE(const uint4) block, DEVICE(const uint4) scales, uint piece, uint position, bool inside,
    THREADGROUP(half) out) {
    uint elements = kv_elements(KV_FORMAT);
    uint4 words = make_uint4(0u, 0u, 0u, 0u);
    float scale = 1.0f;
    if (inside) {
        words = block[piece * KV_BLOCK + position];
        if (KV_FORMAT == KV_INT8) {
            scale = device_cast(const float, scales)[position];
        }
        if (KV_FORMAT == KV_FP4) {
            scale = float(device_cast(const half, scales)[piece * KV_BLOCK + position]) * KV_FP4_UNIT;
        }
    }
    if (KV_FORMAT == KV_F16) {
        *threadgroup_cast(uint4, out) = words;
        return;
    }
    float value[32];
    kv_unpack(KV_FORMAT, words, value);
    UNROLL
    for (uint e = 0u; e < 16u; ++e) {
        if (2u * e < elements) {
            *threadgroup_cast(uint, out + 2u * e) = as_uint(make_half2(
                prefill_half(value[2u * e] * scale), prefill_half(value[2u * e + 1u] * scale)));
        }
    }
}

// Eight dimensions from 8 · unit of one position's value.
static inline void load_value(
    DEVICE(const uint4) values, DEVICE(const uint4) scales, uint unit, uint position, bool inside,
    THREAD(float) out) {
    uint words = 32u / kv_elements(KV_FORMAT); // Of eight dimensions.
    float value[8];
    float scale = 1.0f;
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        value[i] = 0.0f;
    }
    if (inside) {
        uint at;
        if (KV_FORMAT == KV_F32) {
            at = position * HEAD_DIM + unit * 8u;
        } else {
            uint positions = 4u / words;
            at = (position / positions * (HEAD_DIM / 8u) + unit) * 4u + position % positions * words;
        }
        UNROLL
        for (uint i = 0u; i < 8u; ++i) {
            if (i < words) {
                kv_unpack_word(KV_FORMAT, device_cast(const uint, values)[at + i], value + i * (8u / words));
            }
        }
        if (KV_FORMAT == KV_INT8) {
            scale = device_cast(const float, scales)[position];
        }
        if (KV_FORMAT == KV_FP4) {
            scale = float(device_cast(const half, scales)[unit / 4u * KV_BLOCK + position]) * KV_FP4_UNIT;
        }
    }
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        out[i] = value[i] * scale;
    }
}

// Buffers as in `attention`; tiles: [tiles][2] first token and number of tokens (≤ ROW_TOKENS) of one sequence at consecutive
// positions. Grid: x kv_heads · ⌈group / ROW_HEADS⌉, y tiles.
//
// A SIMD-group owns 16 rows (token, head) of one key head, its queries as fragments and its results as sums in registers; the
// threadgroup stages one block of 32 keys and values at a time, values transposed, so that each byte of the cache
// is decoded once for all rows. The weights never leave registers: the sums of the first product are the
// operand of the second. `shared`: 32 · KEY_STRIDE + HEAD_DIM · VALUE_STRIDE halves, 21 KiB for 128 values.
REQUIRES_SIMD_WIDTH(32)
kernel void attention_prefill(
    IN(T) query [[buffer(0)]],
    IN(uint4) cache [[buffer(1)]],
    IN_OPTIONAL(uint) pages [[buffer(2)]],
    IN(uint) sequences [[buffer(3)]],
    IN(uint) positions [[buffer(4)]],
    IN(uint) tiles [[buffer(5)]],
    OUT(T) out [[buffer(6)]],
    INLINE(AttentionPrefillArgs) args [[buffer(7)]],
    THREADGROUP(half) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint chunks = (args.group + ROW_HEADS - 1u) / ROW_HEADS;
    uint kv_head = group.x / chunks;
    uint first_head = kv_head * args.group + group.x % chunks * ROW_HEADS;
    uint head_count = min(ROW_HEADS, (kv_head + 1u) * args.group - first_head);
    // Later tokens see more: they start first, and the light ones fill the end.
    uint tile_index = groups.y - 1u - group.y;
    uint first_token = tiles[2u * tile_index];
    uint token_count = tiles[2u * tile_index + 1u];
    uint sequence = sequences[first_token];
    uint first_position = positions[first_token];
    uint t = fragment_quad(lane);

    // This lane's rows: g and g + 8 of the SIMD-group's sixteen.
    bool valid[2];
    uint own[2];
    ulong query_at[2];
    ulong out_at[2];
    UNROLL
    for (uint h = 0u; h < 2u; ++h) {
        uint row = simdgroup * 16u + fragment_row(lane) + 8u * h;
        uint token = row / ROW_HEADS;
        uint head = row % ROW_HEADS;
        valid[h] = token < token_count && head < head_count;
        own[h] = first_position + token;
        query_at[h] = ulong(first_token + token) * ulong(args.query_stride)
            + ulong((first_head + head) * HEAD_DIM);
        out_at[h] = ulong(first_token + token) * ulong(args.out_stride)
            + ulong((first_head + head) * HEAD_DIM);
    }
    WeightFragment q[12];
    UNROLL
    for (uint s = 0u; s < MAX_STEPS; ++s) {
        if (s < STEPS) {
            UNROLL
            for (uint p = 0u; p < 4u; ++p) {
                uint d = 16u * s + 4u * t + p / 2u * 2u;
                half low = half(0.0f);
                half high = half(0.0f);
                if (valid[p % 2u] && d < HEAD_DIM) {
                    low = prefill_half(load_float(query, query_at[p % 2u] + ulong(d)));
                    high = prefill_half(load_float(query, query_at[p % 2u] + ulong(d + 1u)));
                }
                q[s].pair[p] = as_uint(make_half2(low, high));
            }
        }
    }

    SumFragment sums[24];
    UNROLL
    for (uint n = 0u; n < MAX_TILES; ++n) {
        if (n < HEAD_DIM / 8u) {
            clear_sums(&sums[n]);
        }
    }
    float greatest[2];
    float total[2];
    UNROLL
    for (uint h = 0u; h < 2u; ++h) {
        greatest[h] = LOWEST;
        total[h] = 0.0f;
    }
    float factor = SOFTCAP ? args.scale / args.softcap : args.scale * 1.44269504f;
    uint tile_begin = args.window != 0u && first_position >= args.window
        ? first_position + 1u - args.window
        : 0u;
    uint tile_last = first_position + token_count - 1u;
    uint end = sequence == KV_NO_SEQUENCE ? 0u : tile_last / KV_BLOCK + 1u;
    uint key_pieces = kv_key_row(KV_FORMAT, HEAD_DIM);
    THREADGROUP(half) keys = shared;
    THREADGROUP(half) values = shared + KV_BLOCK * KEY_STRIDE;
    TokenPlace key_place = token_place(KEY_STRIDE, 8u, lane);
    TokenPlace value_place = token_place(VALUE_STRIDE, 8u, lane);

    for (uint b = tile_begin / KV_BLOCK; b < end; ++b) {
        uint tile = b * KV_BLOCK;
        uint physical = kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride, sequence, b);
        DEVICE(const uint4) block = cache
            + ulong(physical * args.kv_heads + kv_head) * ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
        DEVICE(const uint4) block_values = block + kv_key_pieces(KV_FORMAT, HEAD_DIM);
        DEVICE(const uint4) scales = block_values + kv_value_pieces(KV_FORMAT, HEAD_DIM);
        barrier_threadgroup();
        for (uint i = thread_index; i < key_pieces * KV_BLOCK; i += threads.x) {
            uint p = i % KV_BLOCK;
            uint piece = i / KV_BLOCK;
            stage_key(block, scales, piece, p, tile + p >= tile_begin && tile + p <= tile_last,
                keys + p * KEY_STRIDE + piece * kv_elements(KV_FORMAT));
        }
        // Dimensions past the head's, of a step that it does not fill.
        uint padding = STEPS * 16u - min(STEPS * 16u, key_pieces * kv_elements(KV_FORMAT));
        for (uint i = thread_index; i < padding * KV_BLOCK; i += threads.x) {
            keys[i / padding * KEY_STRIDE + STEPS * 16u - padding + i % padding] = half(0.0f);
        }
        // Two positions, which are neighbours in a row of values, and eight dimensions at a time.
        for (uint i = thread_index; i < KV_BLOCK / 2u * (HEAD_DIM / 8u); i += threads.x) {
            uint p = i % (KV_BLOCK / 2u) * 2u;
            uint dims = i / (KV_BLOCK / 2u);
            DEVICE(const uint4) value_scales = scales + kv_scale_pieces(KV_FORMAT, HEAD_DIM);
            float low[8];
            float high[8];
            load_value(block_values, value_scales, dims, p,
                tile + p >= tile_begin && tile + p <= tile_last, low);
            load_value(block_values, value_scales, dims, p + 1u,
                tile + p + 1u >= tile_begin && tile + p + 1u <= tile_last, high);
            UNROLL
            for (uint d = 0u; d < 8u; ++d) {
                *threadgroup_cast(uint, values + (dims * 8u + d) * VALUE_STRIDE + value_slot(p)) =
                    as_uint(make_half2(prefill_half(low[d]), prefill_half(high[d])));
            }
        }
        barrier_threadgroup();

        SumFragment scores[4];
        UNROLL
        for (uint n = 0u; n < 4u; ++n) {
            clear_sums(&scores[n]);
        }
        UNROLL
        for (uint s = 0u; s < MAX_STEPS; ++s) {
            if (s < STEPS) {
                UNROLL
                for (uint n = 0u; n < 4u; ++n) {
                    TokenFragment key;
                    THREADGROUP(const half) from = keys + n * 8u * KEY_STRIDE + s * 16u;
                    load_tokens(from, key_place, &key);
                    multiply_accumulate(&scores[n], &q[s], &key);
                }
            }
        }

        float weight[4][4]; // [positions 8n …][element]
        float correction[2];
        UNROLL
        for (uint h = 0u; h < 2u; ++h) {
            float bound = greatest[h];
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                uint n = i / 2u;
                uint e = 2u * h + i % 2u;
                uint position = tile + 8u * n + 2u * t + i % 2u;
                float score = sum_element(&scores[n], e) * factor;
                if (SOFTCAP) {
                    score = tanh(score) * (args.softcap * 1.44269504f);
                }
                bool visible = valid[h] && position <= own[h]
                    && (args.window == 0u || position + args.window > own[h]);
                weight[n][e] = visible ? score : LOWEST;
                bound = max(bound, weight[n][e]);
            }
            bound = quad_max(bound);
            correction[h] = exp2(greatest[h] - bound);
            greatest[h] = bound;
            total[h] = total[h] * correction[h];
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                uint n = i / 2u;
                uint e = 2u * h + i % 2u;
                // A row that has seen nothing yet has LOWEST for a bound.
                weight[n][e] = weight[n][e] > LOWEST ? exp2(weight[n][e] - bound) : 0.0f;
                total[h] = total[h] + weight[n][e];
            }
        }
        UNROLL
        for (uint n = 0u; n < MAX_TILES; ++n) {
            if (n < HEAD_DIM / 8u) {
                UNROLL
                for (uint e = 0u; e < 4u; ++e) {
                    scale_sum(&sums[n], e, correction[e / 2u]);
                }
            }
        }
        UNROLL
        for (uint k = 0u; k < 2u; ++k) {
            WeightFragment weights;
            UNROLL
            for (uint p = 0u; p < 4u; ++p) {
                uint n = 2u * k + p / 2u;
                uint e = p % 2u * 2u;
                weights.pair[p] = as_uint(make_half2(half(weight[n][e]), half(weight[n][e + 1u])));
            }
            UNROLL
            for (uint n = 0u; n < MAX_TILES; ++n) {
                if (n < HEAD_DIM / 8u) {
                    TokenFragment value;
                    THREADGROUP(const half) from = values + n * 8u * VALUE_STRIDE + k * 16u;
                    load_tokens(from, value_place, &value);
                    multiply_accumulate(&sums[n], &weights, &value);
                }
            }
        }
    }

    float inverse[2];
    UNROLL
    for (uint h = 0u; h < 2u; ++h) {
        total[h] = quad_sum(total[h]);
        inverse[h] = total[h] > 0.0f ? 1.0f / total[h] : 0.0f;
    }
    UNROLL
    for (uint n = 0u; n < MAX_TILES; ++n) {
        if (n < HEAD_DIM / 8u) {
            UNROLL
            for (uint e = 0u; e < 4u; ++e) {
                if (valid[e / 2u]) {
                    store_float(out, out_at[e / 2u] + ulong(n * 8u + 2u * t + e % 2u),
                        sum_element(&sums[n], e) * inverse[e / 2u]);
                }
            }
        }
    }
}
