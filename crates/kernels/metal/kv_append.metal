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

#include "kv_store.h"

// keys, values: [tokens][kv_heads · HEAD_DIM], rows key_stride and value_stride apart; sequences, positions: [tokens];
// pages: see kv_cache.h; cache: blocks of kv_cache.h. One SIMD-group writes the key or the value of one token and head.
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
    uint block = kv_physical_block(
        pages, BLOCKS_PER_PAGE, args.stride, sequences[token], positions[token] / KV_BLOCK);
    DEVICE(uint4) base = cache
        + ulong(block * args.kv_heads + head) * ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
    DEVICE(const T) row = is_value ? values + ulong(token) * ulong(args.value_stride)
                                   : keys + ulong(token) * ulong(args.key_stride);
    row = row + head * HEAD_DIM;
    float x[KV_MAX_ROUNDS * 8u];
    UNROLL
    for (uint round = 0u; round < KV_MAX_ROUNDS; ++round) {
        uint first = (round * simd_width + lane) * 8u;
        UNROLL
        for (uint i = 0u; i < 8u; ++i) {
            // HEAD_DIM is a multiple of 8.
            x[8u * round + i] = first < HEAD_DIM ? load_float(row, first + i) : 0.0f;
        }
    }
    kv_store_head(kv_place(base, is_value, positions[token] % KV_BLOCK), lane, simd_width, x);
}
