// Pairs of token and expert brought into order of experts: a counting sort, stable and without a race, so
// that a token's rows lie where they lay in every other run.

#include "order.h"

// The most experts of a layer.
#define MOE_EXPERTS 512u
// Pairs that a threadgroup ranks at once, and threads of these kernels.
#define MOE_BLOCK 256u

// Sizes of one call.
struct GroupArgs {
    uint pairs;   // Tokens × experts of a token.
    uint experts; // Experts.
    uint tile;    // Rows that a threadgroup of the product takes.
    uint blocks;  // Blocks of MOE_BLOCK pairs.
};

// Adds the pairs first…past − 1 to `counts`, which is cleared first.
static inline void count_experts(
    DEVICE(const uint) chosen, uint first, uint past, uint experts, THREADGROUP(atomic_uint) counts,
    Place place) {
    for (uint e = place.index; e < experts; e += place.threads) {
        atomic_store(&counts[e], 0u);
    }
    barrier_threadgroup();
    for (uint i = first + place.index; i < past; i += place.threads) {
        atomic_add(&counts[chosen[i]], 1u);
    }
    barrier_threadgroup();
}

// The first row and the first tile of each expert, and the ends, from the experts' counts.
static inline void place_experts(
    THREADGROUP(atomic_uint) counts, uint experts, uint tile, DEVICE(uint) offsets, DEVICE(uint) tiles,
    THREADGROUP(uint) starts, THREADGROUP(ulong) partial, Place place) {
    // Rows in the lower half, tiles in the upper: one prefix sum for both.
    ulong before = 0u;
    for (uint base = 0u; base < experts; base += place.threads) {
        uint e = base + place.index;
        ulong both = 0u;
        if (e < experts) {
            uint count = atomic_load(&counts[e]);
            both = (ulong((count + tile - 1u) / tile) << 32u) | ulong(count);
        }
        Prefix sums = threadgroup_prefix_ulong(both, partial, place);
        ulong start = before + sums.inclusive - both;
        if (e < experts) {
            offsets[e] = uint(start & 0xffffffffu);
            tiles[e] = uint(start >> 32u);
            starts[e] = uint(start & 0xffffffffu);
        }
        before = before + sums.total;
    }
    if (place.index == 0u) {
        offsets[experts] = uint(before & 0xffffffffu);
        tiles[experts] = uint(before >> 32u);
    }
    barrier_threadgroup();
}

// How many of the threads before this one have the same expert. block: [MOE_BLOCK].
static inline uint rank_in_block(uint expert, THREADGROUP(uint) block, Place place) {
    block[place.index] = expert;
    barrier_threadgroup();
    uint rank = 0u;
    for (uint i = 0u; i < place.index; ++i) {
        rank = rank + (block[i] == expert ? 1u : 0u);
    }
    barrier_threadgroup();
    return rank;
}

// The whole sort in one threadgroup, for few pairs: one dispatch instead of three.
//
// chosen: [pairs], expert of each pair, token by token; offsets: [experts + 1], first row of each expert; tiles:
// [experts + 1], first tile of `tile` rows; order: [pairs], row to pair; places: [pairs], pair to row.
kernel void moe_group(
    IN(uint) chosen [[buffer(0)]],
    OUT(uint) offsets [[buffer(1)]],
    OUT(uint) tiles [[buffer(2)]],
    OUT(uint) order [[buffer(3)]],
    OUT(uint) places [[buffer(4)]],
    INLINE(GroupArgs) args [[buffer(5)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(atomic_uint, counts, MOE_EXPERTS);
    THREADGROUP_ARRAY(uint, starts, MOE_EXPERTS);
    THREADGROUP_ARRAY(uint, block, MOE_BLOCK);
    THREADGROUP_ARRAY(ulong, partial, 128);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    count_experts(chosen, 0u, args.pairs, args.experts, counts, place);
    place_experts(counts, args.experts, args.tile, offsets, tiles, starts, partial, place);
    // The counts become the rows already given out.
    for (uint e = place.index; e < args.experts; e += place.threads) {
        atomic_store(&counts[e], starts[e]);
    }
    barrier_threadgroup();
    for (uint base = 0u; base < args.pairs; base += MOE_BLOCK) {
        uint pair = base + place.index;
        bool inside = pair < args.pairs;
        uint expert = MOE_EXPERTS;
        if (inside) {
            expert = chosen[pair];
        }
        uint rank = rank_in_block(expert, block, place);
        if (inside) {
            uint row = atomic_load(&counts[expert]) + rank;
            order[row] = pair;
            places[pair] = row;
        }
        barrier_threadgroup();
        if (inside) {
            atomic_add(&counts[expert], 1u);
        }
        barrier_threadgroup();
    }
}

// First of three steps for many pairs: how many pairs of each expert are in each block.
//
// chosen: [pairs]; block_counts: [blocks, experts].
kernel void moe_count_blocks(
    IN(uint) chosen [[buffer(0)]],
    OUT(uint) block_counts [[buffer(1)]],
    INLINE(GroupArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(atomic_uint, counts, MOE_EXPERTS);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint first = group.x * MOE_BLOCK;
    uint past = min(first + MOE_BLOCK, args.pairs);
    count_experts(chosen, first, past, args.experts, counts, place);
    for (uint e = place.index; e < args.experts; e += place.threads) {
        block_counts[group.x * args.experts + e] = atomic_load(&counts[e]);
    }
}

// Second: where each expert begins, and each block's pairs within it. One threadgroup; threads along the
// experts, so that each step down the blocks reads consecutive counts.
//
// block_counts, block_starts: [blocks, experts]; offsets, tiles: [experts + 1].
kernel void moe_place_blocks(
    IN(uint) block_counts [[buffer(0)]],
    OUT(uint) block_starts [[buffer(1)]],
    OUT(uint) offsets [[buffer(2)]],
    OUT(uint) tiles [[buffer(3)]],
    INLINE(GroupArgs) args [[buffer(4)]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(atomic_uint, counts, MOE_EXPERTS);
    THREADGROUP_ARRAY(uint, starts, MOE_EXPERTS);
    THREADGROUP_ARRAY(ulong, partial, 128);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    for (uint e = place.index; e < args.experts; e += place.threads) {
        uint sum = 0u;
        for (uint b = 0u; b < args.blocks; ++b) {
            sum = sum + block_counts[b * args.experts + e];
        }
        atomic_store(&counts[e], sum);
    }
    barrier_threadgroup();
    place_experts(counts, args.experts, args.tile, offsets, tiles, starts, partial, place);
    for (uint e = place.index; e < args.experts; e += place.threads) {
        uint row = starts[e];
        for (uint b = 0u; b < args.blocks; ++b) {
            block_starts[b * args.experts + e] = row;
            row = row + block_counts[b * args.experts + e];
        }
    }
}

// Third: every pair to its row.
//
// chosen: [pairs]; block_starts: [blocks, experts]; order: [pairs], row to pair; places: [pairs], pair to row.
kernel void moe_place_pairs(
    IN(uint) chosen [[buffer(0)]],
    IN(uint) block_starts [[buffer(1)]],
    OUT(uint) order [[buffer(2)]],
    OUT(uint) places [[buffer(3)]],
    INLINE(GroupArgs) args [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(uint, block, MOE_BLOCK);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint pair = group.x * MOE_BLOCK + place.index;
    bool inside = pair < args.pairs;
    uint expert = MOE_EXPERTS;
    if (inside) {
        expert = chosen[pair];
    }
    uint rank = rank_in_block(expert, block, place);
    if (inside) {
        uint row = block_starts[group.x * args.experts + expert] + rank;
        order[row] = pair;
        places[pair] = row;
    }
}
