// Writing keys and values of new tokens into the cache, quantised.

#include "kv_cache.h"

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct KvAppendArgs {
    uint tokens;       // Tokens.
    uint kv_heads;     // Heads of keys and values.
    uint key_stride;   // Elements from one token's keys to the next one's.
    uint value_stride; // Elements from one token's values to the next one's.
    uint stride;       // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
};

// Values per head, a multiple of 8.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16, KV_INT8, KV_FP4, KV_F32.
SPECIALISE(uint, KV_FORMAT, 1);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 2);

// E2M1 code nearest to x, ties to even, saturating at 6 (crates/formats/src/fp4.rs): a comparison with each
// midpoint, exclusive where the lower neighbour is even.
static inline uint kv_encode_e2m1(float x) {
    float a = abs(x);
    uint code = (a > 0.25f ? 1u : 0u) + (a >= 0.75f ? 1u : 0u) + (a > 1.25f ? 1u : 0u)
        + (a >= 1.75f ? 1u : 0u) + (a > 2.5f ? 1u : 0u) + (a >= 3.5f ? 1u : 0u)
        + (a > 5.0f ? 1u : 0u);
    return code | ((as_uint(x) >> 31u) << 3u);
}

// f16 with magnitudes past its range kept at the largest: an infinity would turn every later score into NaN.
static inline half kv_half(float x) { return half(clamp(x, -65504.0f, 65504.0f)); }

// Stores 8 dimensions from `unit · 8` of one position, already divided by the scale.
static inline void kv_store_unit(
    DEVICE(uint) words, bool values, uint unit, uint position, THREAD(const float) x) {
    uint words_per_unit = 32u / kv_elements(KV_FORMAT); // 8 dimensions: 8, 4, 2 or 1 words.
    uint at;
    if (KV_FORMAT == KV_F32) {
        // Two pieces of four dimensions.
        UNROLL
        for (uint half_unit = 0u; half_unit < 2u; ++half_unit) {
            uint piece = 2u * unit + half_unit;
            at = values ? position * (HEAD_DIM / 4u) + piece : piece * KV_BLOCK + position;
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                words[4u * at + i] = as_uint(x[4u * half_unit + i]);
            }
        }
        return;
    }
    if (values) {
        uint positions = 4u / words_per_unit; // Of a piece.
        at = (position / positions * (HEAD_DIM / 8u) + unit) * 4u
            + position % positions * words_per_unit;
    } else {
        uint units = 4u / words_per_unit; // Of a piece.
        at = (unit / units * KV_BLOCK + position) * 4u + unit % units * words_per_unit;
    }
    if (KV_FORMAT == KV_F16) {
        UNROLL
        for (uint i = 0u; i < 4u; ++i) {
            words[at + i] = as_uint(make_half2(kv_half(x[2u * i]), kv_half(x[2u * i + 1u])));
        }
    } else if (KV_FORMAT == KV_INT8) {
        UNROLL
        for (uint i = 0u; i < 2u; ++i) {
            uint word = 0u;
            UNROLL
            for (uint j = 0u; j < 4u; ++j) {
                int code = int(clamp(rint(x[4u * i + j]), -127.0f, 127.0f));
                word = word | ((uint(code) & 255u) << (8u * j));
            }
            words[at + i] = word;
        }
    } else {
        uint word = 0u;
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            word = word | (kv_encode_e2m1(x[j]) << (4u * j));
        }
        words[at] = word;
    }
}

// keys, values: [tokens][kv_heads · HEAD_DIM], rows key_stride and value_stride apart; sequences, positions: [tokens];
// pages: see kv_cache.h; cache: blocks of kv_cache.h.
//
// One SIMD-group writes the key or the value of one token and head, a lane 8 dimensions at a time: a scale is then one
// reduction in the SIMD-group (int8) or two exchanges (fp4: 32 dimensions are four neighbouring lanes).
kernel void kv_append(
    IN(T) keys [[buffer(0)]],
    IN(T) values [[buffer(1)]],
    IN(uint) sequences [[buffer(2)]],
    IN(uint) positions [[buffer(3)]],
    IN_OPTIONAL(uint) pages [[buffer(4)]],
    INOUT(uint4) cache [[buffer(5)]],
    INLINE(KvAppendArgs) args [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    uint item = group.x * simdgroups + simdgroup;
    bool is_value = item % 2u == 1u;
    uint head = item / 2u % args.kv_heads;
    uint token = item / 2u / args.kv_heads;
    if (token >= args.tokens || sequences[token] == KV_NO_SEQUENCE) {
        return;
    }
    uint position = positions[token] % KV_BLOCK;
    uint block = kv_physical_block(
        pages, BLOCKS_PER_PAGE, args.stride, sequences[token], positions[token] / KV_BLOCK);
    DEVICE(uint4) base = cache
        + ulong(block * args.kv_heads + head) * ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
    DEVICE(uint4) codes = is_value ? base + kv_key_pieces(KV_FORMAT, HEAD_DIM) : base;
    DEVICE(uint4) scales = base + kv_key_pieces(KV_FORMAT, HEAD_DIM)
        + kv_value_pieces(KV_FORMAT, HEAD_DIM)
        + (is_value ? kv_scale_pieces(KV_FORMAT, HEAD_DIM) : 0u);
    ulong row = is_value ? ulong(token) * ulong(args.value_stride)
                         : ulong(token) * ulong(args.key_stride);
    row = row + ulong(head * HEAD_DIM);

    // Keys are padded to whole pieces, values are not.
    uint padded = is_value ? HEAD_DIM : kv_key_row(KV_FORMAT, HEAD_DIM) * kv_elements(KV_FORMAT);
    uint units = padded / 8u;
    uint rounds = (units + simd_width - 1u) / simd_width;

    float inverse = 1.0f;
    if (KV_FORMAT == KV_INT8) {
        float largest = 0.0f;
        for (uint round = 0u; round < rounds; ++round) {
            uint unit = round * simd_width + lane;
            for (uint i = 0u; i < 8u; ++i) {
                uint d = unit * 8u + i;
                float x = 0.0f;
                if (d < HEAD_DIM) {
                    x = is_value ? load_float(values, row + ulong(d)) : load_float(keys, row + ulong(d));
                }
                largest = max(largest, abs(x));
            }
        }
        float scale = simd_max(largest) / 127.0f;
        inverse = scale > 1.17549435e-38f ? 1.0f / scale : 0.0f;
        if (lane == 0u) {
            device_cast(float, scales)[position] = scale;
        }
    }
    for (uint round = 0u; round < rounds; ++round) {
        uint unit = round * simd_width + lane;
        float x[8];
        float largest = 0.0f;
        UNROLL
        for (uint i = 0u; i < 8u; ++i) {
            uint d = unit * 8u + i;
            x[i] = 0.0f;
            if (d < HEAD_DIM) {
                x[i] = is_value ? load_float(values, row + ulong(d)) : load_float(keys, row + ulong(d));
            }
            largest = max(largest, abs(x[i]));
        }
        if (KV_FORMAT == KV_FP4) {
            largest = max(largest, simd_shuffle_xor(largest, 1u));
            largest = max(largest, simd_shuffle_xor(largest, 2u));
            half scale = kv_half(largest / 6.0f);
            float rounded = float(scale);
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                x[i] = rounded > 0.0f ? x[i] / rounded : 0.0f;
            }
            if (unit % 4u == 0u && unit < units) {
                device_cast(half, scales)[unit / 4u * KV_BLOCK + position] = scale;
            }
        } else {
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                x[i] = x[i] * inverse;
            }
        }
        if (unit < units) {
            kv_store_unit(device_cast(uint, codes), is_value, unit, position, x);
        }
    }
}
