// What a device can multiply at most, for the benchmarks to compare with.

// Of matrix fragments.
typedef half Operand;

#include "fragment.h"

// Sizes of one call.
struct MultiplyCeilingArgs {
    uint rounds;
};

// sums[thread] = some of the sums of `rounds` rounds of eight products of fragments, 16 × 8 × 16 multiply-adds each.
//
// x: one fragment of tokens, 8 × 16; sums: one a thread. Nothing is loaded in the loop, and eight sums that do not wait
// for each other keep the multipliers busy: nothing is between this and them. Two operands alternate, so that no
// compiler takes the products out of the loop.
REQUIRES_SIMD_WIDTH(32)
kernel void multiply_ceiling(
    IN(half) x [[buffer(0)]],
    OUT(float) sums [[buffer(1)]],
    INLINE(MultiplyCeilingArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
    TokenFragment tokens;
    load_tokens(x, token_place(16u, 8u, lane), &tokens);
    WeightFragment weights[2];
    for (uint i = 0u; i < 4u; ++i) {
        // 1 and -1: sums stay small.
        weights[0].pair[i] = 0x3c003c00u;
        weights[1].pair[i] = 0xbc00bc00u;
    }
    SumFragment held[8];
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        clear_sums(&held[i]);
    }
    for (uint round = 0u; round < args.rounds; ++round) {
        UNROLL
        for (uint i = 0u; i < 8u; ++i) {
            multiply_accumulate(&held[i], &weights[i % 2u], &tokens);
        }
    }
    float sum = 0.0f;
    UNROLL
    for (uint i = 0u; i < 8u; ++i) {
        sum = sum + sum_element(&held[i], 0u) + sum_element(&held[i], 3u);
    }
    sums[group.x * threads.x + thread_index] = sum;
}
