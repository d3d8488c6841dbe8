// Rotary position embedding of queries and keys (Su et al. 2021, "RoFormer", eq. 34), with the norm of each
// head that some models do before it (Qwen 3, Gemma 3), in place.

ELEMENTS(T, half, bf16, float);

// Sizes of one call. Strides are in elements, so that queries and keys may lie in one product's rows.
struct RopeArgs {
    uint q_heads;        // Query heads.
    uint k_heads;        // Key heads.
    uint head_dim;       // Values of a head.
    uint pairs;          // Pairs that are rotated: the first 2 · pairs values of a head.
    uint q_first;        // Element of the first token's first query head.
    uint k_first;        // Element of the first token's first key head.
    uint q_token_stride; // From a token's queries to the next one's.
    uint q_head_stride;  // From a query head to the next.
    uint k_token_stride; // From a token's keys to the next one's.
    uint k_head_stride;  // From a key head to the next.
    float magnitude;     // Factor on rotated values: YaRN's attention factor, otherwise 1.
    float q_epsilon;     // Of the query norm.
    float k_epsilon;     // Of the key norm.
    float q_offset;      // Added to the query norm's weight: 1 for Gemma's files, otherwise 0.
    float k_offset;      // Added to the key norm's weight.
};

// Pair i is (x[2i], x[2i + 1]); otherwise (x[i], x[i + pairs]).
SPECIALISE(bool, INTERLEAVED, 0);
// Queries are normed first.
SPECIALISE(bool, Q_NORM, 1);
// Keys are normed first.
SPECIALISE(bool, K_NORM, 2);
// Keys are in q's buffer, and none is bound to k: two parameters must not share memory.
SPECIALISE(bool, TOGETHER, 3);

// The most pairs of a head.
#define MAX_PAIRS 512u

#include "rotate.h"

// q, k: heads of head_dim values of T where the strides say; positions: [tokens]; inverse_frequencies: [pairs], scaling
// applied; q_weight, k_weight: [head_dim] of f32 where Q_NORM, K_NORM.
//
// A threadgroup turns one token's heads (grid x: tokens; y: shares of the heads), a SIMD-group a head. Sines and
// cosines depend on the position alone: they are made once a threadgroup, in threadgroup memory.
kernel void rope(
    INOUT(T) q [[buffer(0)]],
    INOUT_OPTIONAL(T) k [[buffer(1)]],
    IN(uint) positions [[buffer(2)]],
    IN(float) inverse_frequencies [[buffer(3)]],
    IN_OPTIONAL(float) q_weight [[buffer(4)]],
    IN_OPTIONAL(float) k_weight [[buffer(5)]],
    INLINE(RopeArgs) args [[buffer(6)]],
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
    wait_for_previous();
    uint pairs = args.pairs;
    float position = float(positions[group.x]);
    for (uint i = thread_index; i < pairs; i += threads.x) {
        float angle = reduced_angle(position, inverse_frequencies[i]);
        cosines[i] = cos(angle) * args.magnitude;
        sines[i] = sin(angle) * args.magnitude;
    }
    barrier_threadgroup();

    uint heads = args.q_heads + args.k_heads;
    for (uint h = group.y * simd_groups + simd_index; h < heads; h += groups.y * simd_groups) {
        bool query = h < args.q_heads;
        DEVICE(T) head = query || TOGETHER ? q : k;
        head = head + (query
            ? ulong(group.x) * args.q_token_stride + (args.q_first + h * args.q_head_stride)
            : ulong(group.x) * args.k_token_stride
                + (args.k_first + (h - args.q_heads) * args.k_head_stride));
        bool normed = query ? Q_NORM : K_NORM;
        DEVICE(const float) weight = query ? q_weight : k_weight;
        float offset = query ? args.q_offset : args.k_offset;
        float scale = 1.0f;
        if (normed) {
            float epsilon = query ? args.q_epsilon : args.k_epsilon;
            scale = head_scale(head, args.head_dim, pairs, epsilon, lane, simd_width);
        }

        for (uint i = lane; i < pairs; i += simd_width) {
            uint first = pair_first(i, pairs);
            uint second = pair_second(i, pairs);
            float a = load_float(head, first);
            float b = load_float(head, second);
            if (normed) {
                a = a * scale * (offset + weight[first]);
                b = b * scale * (offset + weight[second]);
            }
            store_float(head, first, turned_first(a, b, cosines[i], sines[i]));
            store_float(head, second, turned_second(a, b, cosines[i], sines[i]));
        }
        // Values that are not rotated change only by the norm.
        if (normed) {
            for (uint i = 2u * pairs + lane; i < args.head_dim; i += simd_width) {
                float a = load_float(head, i);
                store_float(head, i, a * scale * (offset + weight[i]));
            }
        }
    }
}
