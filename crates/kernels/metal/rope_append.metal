// Rotary position embedding and the writing of keys and values into the cache, as one kernel: rope.metal and kv_append.metal
// after one another would cost a decode step a dispatch more in every layer, and keys a round trip through memory.

#include "kv_cache.h"

ELEMENTS(T, half, bf16, float);

// Sizes of one call. Strides are in elements, so that queries, keys and values may lie in one product's rows.
struct RopeAppendArgs {
    uint q_heads;      // Query heads.
    uint kv_heads;     // Heads of keys and of values.
    uint pairs;        // Pairs that are rotated: the first 2 · pairs values of a head.
    uint q_first;      // Element of the first token's first query head; the other heads follow it.
    uint k_first;      // Element of the first token's first key head.
    uint v_first;      // Element of the first token's first value head.
    uint q_stride;     // From a token's queries to the next one's.
    uint k_stride;     // From a token's keys to the next one's.
    uint v_stride;     // From a token's values to the next one's.
    uint cache_stride; // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    float magnitude;   // Factor on rotated values: YaRN's attention factor, otherwise 1.
    float q_epsilon;   // Of the query norm.
    float k_epsilon;   // Of the key norm.
    float q_offset;    // Added to the query norm's weight: 1 for Gemma's files, otherwise 0.
    float k_offset;    // Added to the key norm's weight.
};

// Values per head: a multiple of 8 up to 256.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16, KV_INT8, KV_FP4, KV_F32.
SPECIALISE(uint, KV_FORMAT, 1);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 2);
// Pair i is (x[2i], x[2i + 1]); otherwise (x[i], x[i + pairs]).
SPECIALISE(bool, INTERLEAVED, 3);
// Queries are normed first.
SPECIALISE(bool, Q_NORM, 4);
// Keys are normed first.
SPECIALISE(bool, K_NORM, 5);
// Keys and values are in q's buffer, and none are bound to k and v: two parameters must not share memory.
SPECIALISE(bool, TOGETHER, 6);
// Every head starts at a multiple of 16 bytes, and pairs lie whole eights apart.
SPECIALISE(bool, WHOLE, 7);

// The most pairs of a head.
#define MAX_PAIRS 128u

#include "kv_store.h"
#include "prefetch.h"
#include "rotate.h"
#include "vector.h"

// The partner of value d in a head's halves.
static inline uint partner(uint d, uint pairs) { return d < pairs ? d + pairs : d - pairs; }

// Values `first` … `first` + 7 of a head and, unless INTERLEAVED, the values that they form pairs with.
static inline void load_pairs(
    DEVICE(const T) head, uint first, uint pairs, THREAD(float) own, THREAD(float) other) {
    load_eight(head + first, 8u, WHOLE, own);
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        other[i] = 0.0f;
    }
    if (!INTERLEAVED) {
        if (WHOLE) {
            if (first < 2u * pairs) {
                load_eight(head + partner(first, pairs), 8u, WHOLE, other);
            }
        } else {
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                if (first + i < 2u * pairs) {
                    other[i] = load_float(head, partner(first + i, pairs));
                }
            }
        }
    }
}

// What load_pairs has loaded, normed: weight has a factor for each of the head's values.
static inline void norm_pairs(
    DEVICE(const float) weight, float scale, float offset, uint first, uint pairs, THREAD(float) own,
    THREAD(float) other) {
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        own[i] = own[i] * scale * (offset + weight[first + i]);
        if (!INTERLEAVED && first + i < 2u * pairs) {
            other[i] = other[i] * scale * (offset + weight[partner(first + i, pairs)]);
        }
    }
}

// The same values rotated, as they are once they were stored in T.
static inline void turn_pairs(
    THREADGROUP(const float) cosines, THREADGROUP(const float) sines, uint first, uint pairs,
    THREAD(const float) own, THREAD(const float) other, THREAD(float) out) {
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        uint d = first + i;
        float x = own[i];
        if (d < 2u * pairs) {
            bool second = INTERLEAVED ? i % 2u == 1u : d >= pairs;
            uint pair = INTERLEAVED ? d / 2u : second ? d - pairs : d;
            float there = INTERLEAVED ? own[i ^ 1u] : other[i];
            x = second ? turned_second(there, own[i], cosines[pair], sines[pair])
                       : turned_first(own[i], there, cosines[pair], sines[pair]);
        }
        out[i] = as_stored(T(), x);
    }
}

// q, k, v: heads of HEAD_DIM values of T where the arguments say; q is rotated in place, k rotated (rounded to T, as rope stores
// it) and v as it is go into the cache. sequences, positions: [tokens]; pages, cache: kv_cache.h; inverse_frequencies: [pairs],
// scaling applied; q_weight, k_weight: [HEAD_DIM] of f32 where Q_NORM, K_NORM.
//
// Grid: x tokens, y shares of a token's heads. A SIMD-group takes one head of queries, keys or values at a time, a lane 8
// of its values together with their partners, so that nothing passes between lanes. Places, sines and cosines depend on
// what the host wrote alone: they are found before the dispatch that makes q, k and v is done.
kernel void rope_append(
    INOUT(T) q [[buffer(0)]],
    IN_OPTIONAL(T) k [[buffer(1)]],
    IN_OPTIONAL(T) v [[buffer(2)]],
    IN(uint) sequences [[buffer(3)]],
    IN(uint) positions [[buffer(4)]],
    IN_OPTIONAL(uint) pages [[buffer(5)]],
    IN(float) inverse_frequencies [[buffer(6)]],
    IN_OPTIONAL(float) q_weight [[buffer(7)]],
    IN_OPTIONAL(float) k_weight [[buffer(8)]],
    INOUT(uint4) cache [[buffer(9)]],
    INLINE(RopeAppendArgs) args [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(float, cosines, MAX_PAIRS);
    THREADGROUP_ARRAY(float, sines, MAX_PAIRS);
    allow_next();
    uint pairs = args.pairs;
    uint sequence = sequences[group.x];
    uint position = positions[group.x];
    for (uint i = thread_index; i < pairs; i += threads.x) {
        float angle = reduced_angle(float(position), inverse_frequencies[i]);
        cosines[i] = cos(angle) * args.magnitude;
        sines[i] = sin(angle) * args.magnitude;
    }
    bool present = sequence != KV_NO_SEQUENCE;
    uint block = present
        ? kv_physical_block(pages, BLOCKS_PER_PAGE, args.cache_stride, sequence, position / KV_BLOCK)
        : 0u;
    barrier_threadgroup();
    wait_for_previous();

    uint first_value = args.q_heads + args.kv_heads;
    uint heads = present ? first_value + args.kv_heads : args.q_heads;
    for (uint h = group.y * simd_groups + simd_index; h < heads; h += groups.y * simd_groups) {
        bool query = h < args.q_heads;
        bool value = h >= first_value;
        uint kv_head = query ? 0u : value ? h - first_value : h - args.q_heads;
        uint first_head = query ? args.q_first + h * HEAD_DIM
                                : (value ? args.v_first : args.k_first) + kv_head * HEAD_DIM;
        uint stride = query ? args.q_stride : value ? args.v_stride : args.k_stride;
        ulong at = ulong(group.x) * ulong(stride) + ulong(first_head);
        DEVICE(const T) head = q;
        if (!TOGETHER && !query) {
            head = value ? v : k;
        }
        head = head + at;
        bool normed = query ? Q_NORM : K_NORM && !value;
        float scale = 1.0f;
        if (normed) {
            float epsilon = query ? args.q_epsilon : args.k_epsilon;
            scale = head_scale(head, HEAD_DIM, pairs, epsilon, lane, simd_width);
        }
        float x[KV_MAX_ROUNDS * 8u];
        UNROLL
        for (uint round = 0u; round < KV_MAX_ROUNDS; ++round) {
            uint first = (round * simd_width + lane) * 8u;
            THREAD(float) out = x + 8u * round;
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                out[i] = 0.0f;
            }
            if (first < HEAD_DIM) {
                if (value) {
                    load_eight(head + first, 8u, WHOLE, out);
                } else {
                    float own[8];
                    float other[8];
                    load_pairs(head, first, pairs, own, other);
                    if (normed) {
                        norm_pairs(query ? q_weight : k_weight, scale,
                            query ? args.q_offset : args.k_offset, first, pairs, own, other);
                    }
                    turn_pairs(cosines, sines, first, pairs, own, other, out);
                }
            }
        }
        if (query) {
            // Partners were read by other lanes than write them.
            barrier_simdgroup();
            UNROLL
            for (uint round = 0u; round < KV_MAX_ROUNDS; ++round) {
                uint first = (round * simd_width + lane) * 8u;
                if (first < HEAD_DIM) {
                    store_eight(q + at + first, 8u, WHOLE, x + 8u * round);
                }
            }
        } else {
            DEVICE(uint4) base = cache
                + ulong(block * args.kv_heads + kv_head) * ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
            kv_store_head(kv_place(base, value, position % KV_BLOCK), lane, simd_width, x);
        }
    }
}
