// Attention of single tokens over contexts so short that latency is what they cost.
//
// What is computed is attention.metal's. There a lane owns a position, and bytes in flight count; here a position's key is shared
// by SLICES lanes and every SIMD-group takes few positions, so that a whole context of some hundred positions is one
// round: all loads at once, short chains of sums, one barrier. Partial results of a split context are those of
// attention.metal, and its reduction adds them up.

#include "kv_cache.h"

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct AttentionShortArgs {
    uint kv_heads;     // Heads of keys and values.
    uint group;        // Query heads to each of them.
    uint query_stride; // Elements from one token's queries to the next one's.
    uint out_stride;   // Elements from one token's outputs to the next one's.
    uint stride;       // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    uint window;       // Positions that a token sees, itself included; 0: all.
    float scale;       // Factor on the scores.
    float softcap;     // cap · tanh(score / cap), where SOFTCAP.
};

// Values per head: a multiple of 8 up to 256.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16, KV_INT8, KV_FP4, KV_F32.
SPECIALISE(uint, KV_FORMAT, 1);
// Blocks of a page; 0 where each sequence has its blocks in a row.
SPECIALISE(uint, BLOCKS_PER_PAGE, 2);
// Query heads of one key head that a threadgroup takes: 4 at most.
SPECIALISE(uint, ROW_HEADS, 3);
// Lanes that share a position's key: 2 or 4, with at least 4 positions in a SIMD-group.
SPECIALISE(uint, SLICES, 4);
// Pieces of a value that a lane owns: ⌈HEAD_DIM / 8 / SIMD width⌉ (f32 cache: HEAD_DIM / 4), 8 at most.
SPECIALISE(uint, COLUMNS, 5);
// Rows of lanes that take values of different positions, where COLUMNS is 1: a power of two.
SPECIALISE(uint, LANE_ROWS, 6);
// Whether the context is split and `partial` is written, not `out`.
SPECIALISE(bool, SPLIT, 7);
// Whether scores are capped.
SPECIALISE(bool, SOFTCAP, 8);
// Every token's queries start at a multiple of 16 bytes.
SPECIALISE(bool, WHOLE, 9);
// Positions that a SIMD-group takes at once: its threads / SLICES, a power of two from 4 to 16.
SPECIALISE(uint, TAKEN, 10);

// The names that attention_append's rotation needs; nothing is rotated here.
#define INTERLEAVED false
#include "kv_store.h"
#include "rotate.h"
#include "attention_short.h"

// query: [tokens][heads · HEAD_DIM], heads = kv_heads · group; cache, pages: kv_cache.h; sequences, positions: [tokens];
// out: [tokens][heads · HEAD_DIM]; partial: as of `attention`.
//
// Grid: x splits, y kv_heads · ⌈group / ROW_HEADS⌉, z tokens. Each SIMD-group has a softmax of its own over every n-th run of
// TAKEN positions; one merge ends it. Where keys and values are depends on what the host wrote alone: they are on
// their way into the second-level cache before the dispatch that makes the queries is done.
//
// `shared`: SIMD-groups · ROW_HEADS · (HEAD_DIM + 2) floats.
kernel void attention_short(
    IN(T) query [[buffer(0)]],
    IN(uint4) cache [[buffer(1)]],
    IN_OPTIONAL(uint) pages [[buffer(2)]],
    IN(uint) sequences [[buffer(3)]],
    IN(uint) positions [[buffer(4)]],
    OUT(T) out [[buffer(5)]],
    OUT(float) partial [[buffer(6)]],
    INLINE(AttentionShortArgs) args [[buffer(7)]],
    THREADGROUP(float) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    allow_next();
    uint token = group.z;
    Share share = share_of(
        group, groups, pages, sequences[token], positions[token], args.window, args.kv_heads, args.group,
        args.stride);
    LanePlace place = lane_place(lane);
    uint at = share.begin + simdgroup * TAKEN;
    prefetch_run<false>(cache, &share, at, &place);
    wait_for_previous();

    // Keys and values first, then queries: neither waits for the other.
    Fetched fetched;
    if (at < share.end) {
        fetch_run<false>(cache, &share, at, &place, &fetched);
    }
    Queries queries;
    load_queries(
        query
            + (ulong(token) * ulong(args.query_stride) + ulong(share.first_head * HEAD_DIM)),
        share.head_count, place.slice, &queries);
    attend<false>(
        cache, &share, shared, shared, at, &place, &fetched, &queries, args.scale, args.softcap, out,
        args.out_stride, partial, groups.z, shared, threads.x, thread_index, lane, simdgroup, simdgroups);
}
