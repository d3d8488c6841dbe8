// The rotation of a token's query and key, the writing of its key and value into the cache, and its attention over a short
// context, as one kernel: rope_append.metal and attention_short.metal after one another would cost a decode step a dispatch more in
// every layer.
//
// Every threadgroup that sees the token itself rotates its key anew, which is less than to wait for who wrote it: Metal has no
// order between the threadgroups of a dispatch. One of them writes it.

#include "kv_cache.h"

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct AttentionAppendArgs {
    uint kv_heads;   // Heads of keys and values.
    uint group;      // Query heads to each of them.
    uint row_stride; // Elements from one token's queries, keys and values to the next one's.
    uint q_first;    // Element of the first token's first query head; the other heads follow it.
    uint k_first;    // Element of the first token's first key head.
    uint v_first;    // Element of the first token's first value head.
    uint out_stride; // Elements from one token's outputs to the next one's.
    uint stride;     // Blocks of a sequence; of a paged cache, pages in a row of `pages`.
    uint window;     // Positions that a token sees, itself included; 0: all.
    float scale;     // Factor on the scores.
    float softcap;   // cap · tanh(score / cap), where SOFTCAP.
    float magnitude; // Factor on rotated values: YaRN's attention factor, otherwise 1.
};

// Values per head: a multiple of 16 · SLICES up to 256, all of them rotated.
SPECIALISE(uint, HEAD_DIM, 0);
// KV_F16.
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
// Every head starts at a multiple of 16 bytes.
SPECIALISE(bool, WHOLE, 9);
// Positions that a SIMD-group takes at once: its threads / SLICES, a power of two from 4 to 16.
SPECIALISE(uint, TAKEN, 10);

// Pairs are (x[i], x[i + HEAD_DIM / 2]).
#define INTERLEAVED false
// The most pairs of a head.
#define MAX_PAIRS 128u

#include "kv_store.h"
#include "rotate.h"
#include "attention_short.h"

// rows: [tokens][row_stride], each with queries, keys and values; no two tokens are of one sequence. cache, pages: kv_cache.h;
// sequences, positions: [tokens]; inverse_frequencies: [HEAD_DIM / 2], scaling applied; out, partial, grid, `shared`: as of
// attention_short. Sines, cosines and places depend on what the host wrote alone: they are found before the dispatch that makes
// the rows is done.
kernel void attention_append(
    IN(T) rows [[buffer(0)]],
    IN_OPTIONAL(uint) pages [[buffer(1)]],
    IN(uint) sequences [[buffer(2)]],
    IN(uint) positions [[buffer(3)]],
    IN(float) inverse_frequencies [[buffer(4)]],
    INOUT(uint4) cache [[buffer(5)]],
    OUT(T) out [[buffer(6)]],
    OUT(float) partial [[buffer(7)]],
    INLINE(AttentionAppendArgs) args [[buffer(8)]],
    THREADGROUP(float) shared [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(float, cosines, MAX_PAIRS);
    THREADGROUP_ARRAY(float, sines, MAX_PAIRS);
    allow_next();
    uint token = group.z;
    uint last = positions[token];
    for (uint i = thread_index; i < HEAD_DIM / 2u; i += threads.x) {
        float angle = reduced_angle(float(last), inverse_frequencies[i]);
        cosines[i] = cos(angle) * args.magnitude;
        sines[i] = sin(angle) * args.magnitude;
    }
    Share share = share_of(
        group, groups, pages, sequences[token], last, args.window, args.kv_heads, args.group, args.stride);
    LanePlace place = lane_place(lane);
    uint at = share.begin + simdgroup * TAKEN;
    prefetch_run<true>(cache, &share, at, &place);
    barrier_threadgroup();
    wait_for_previous();
    DEVICE(uint4) appended = cache;
    DEVICE(const uint4) cached = appended;
    DEVICE(const T) row = rows + ulong(token) * ulong(args.row_stride);
    share.appended = appended;
    share.key = row + (args.k_first + share.kv_head * HEAD_DIM);
    share.value = row + (args.v_first + share.kv_head * HEAD_DIM);

    // Everything is asked for before anything is waited for, or stored.
    Fetched fetched;
    if (at < share.end) {
        fetch_run<true>(cached, &share, at, &place, &fetched);
    }
    Queries queries;
    load_queries(
        row + (args.q_first + share.first_head * HEAD_DIM), share.head_count, place.slice, &queries);
    if (at < share.end) {
        fetch_own(&share, cosines, sines, at, &place, &fetched);
    }
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        turn_pieces(cosines, sines, place.slice, queries.value[r]);
    }
    attend<true>(
        cached, &share, cosines, sines, at, &place, &fetched, &queries, args.scale, args.softcap, out,
        args.out_stride, partial, groups.z, shared, threads.x, thread_index, lane, simdgroup, simdgroups);
}
