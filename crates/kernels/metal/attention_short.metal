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

#include "prefetch.h"
#include "vector.h"

// Below every score, and finite: (-∞) - (-∞) would be NaN.
#define LOWEST -3.0e38f

// Pieces of a key that a lane has.
static inline uint lane_pieces() {
    return (kv_key_row(KV_FORMAT, HEAD_DIM) + SLICES - 1u) / SLICES;
}

// Positions of a piece of values.
static inline uint piece_positions() { return kv_elements(KV_FORMAT) / kv_unit(KV_FORMAT); }

// Pieces of values of a column that a lane has.
static inline uint lane_values() { return TAKEN / piece_positions() / LANE_ROWS; }

// What one SIMD-group reads of the cache for as many positions as it takes at once.
struct Fetched {
    uint4 key[32];
    float key_scale[32];
    uint4 value[8][16];
    float value_scale[8][16][4];
    float position_scale;
};

// Where a lane is among the positions of its SIMD-group.
struct LanePlace {
    uint position; // Whose key it has a slice of.
    uint slice;
    uint row;      // Among the rows of lanes with values.
    uint column;   // Its first piece of a value.
};

// Asks for positions from `first` (in the block) of which those from `low` up to below `high` are visible. What is not visible
// may be another sequence's leavings: instead of it the nearest that is is loaded, which is then not used. Loads without
// conditions are all under way before the first is waited for.
static inline void fetch(
    DEVICE(const uint4) block, uint first, uint low, uint high, THREAD(const LanePlace) place,
    THREAD(Fetched) out) {
    uint position = clamp(first + place->position, low, high - 1u);
    UNROLL
    for (uint j = 0u; j < lane_pieces(); ++j) {
        uint piece = min(place->slice + SLICES * j, kv_key_row(KV_FORMAT, HEAD_DIM) - 1u);
        out->key[j] = block[piece * KV_BLOCK + position];
    }
    DEVICE(const uint4) values = block + kv_key_pieces(KV_FORMAT, HEAD_DIM);
    uint units = HEAD_DIM / kv_unit(KV_FORMAT);
    UNROLL
    for (uint c = 0u; c < COLUMNS; ++c) {
        UNROLL
        for (uint j = 0u; j < lane_values(); ++j) {
            uint column = min(place->column + c * SLICES * TAKEN, units - 1u);
            uint at = clamp(first / piece_positions() + place->row + j * LANE_ROWS,
                low / piece_positions(), (high - 1u) / piece_positions());
            out->value[c][j] = values[at * units + column];
        }
    }
    DEVICE(const uint4) scales = values + kv_value_pieces(KV_FORMAT, HEAD_DIM);
    DEVICE(const uint4) value_scales = scales + kv_scale_pieces(KV_FORMAT, HEAD_DIM);
    out->position_scale = 1.0f;
    if (KV_FORMAT == KV_INT8) {
        out->key_scale[0] = device_cast(const float, scales)[position];
        out->position_scale = device_cast(const float, value_scales)[position];
    }
    if (KV_FORMAT == KV_FP4) {
        UNROLL
        for (uint j = 0u; j < lane_pieces(); ++j) {
            uint piece = min(place->slice + SLICES * j, kv_key_row(KV_FORMAT, HEAD_DIM) - 1u);
            out->key_scale[j] =
                float(device_cast(const half, scales)[piece * KV_BLOCK + position]) * KV_FP4_UNIT;
        }
        UNROLL
        for (uint c = 0u; c < COLUMNS; ++c) {
            UNROLL
            for (uint j = 0u; j < lane_values(); ++j) {
                // Four positions' scales of this column's group are neighbours.
                uint column = min(place->column + c * SLICES * TAKEN, units - 1u);
                uint at = clamp(first / 4u + place->row + j * LANE_ROWS, low / 4u, (high - 1u) / 4u);
                DEVICE(const half) four =
                    device_cast(const half, value_scales) + column / 4u * KV_BLOCK + at * 4u;
                UNROLL
                for (uint p = 0u; p < 4u; ++p) {
                    out->value_scale[c][j][p] = float(four[p]) * KV_FP4_UNIT;
                }
            }
        }
    }
}

// Brings codes that `fetch` will ask for into the second-level cache.
static inline void prefetch(
    DEVICE(const uint4) block, uint first, uint low, uint high, THREAD(const LanePlace) place) {
    uint position = clamp(first + place->position, low, high - 1u);
    UNROLL
    for (uint j = 0u; j < lane_pieces(); ++j) {
        uint piece = min(place->slice + SLICES * j, kv_key_row(KV_FORMAT, HEAD_DIM) - 1u);
        prefetch_line(block + piece * KV_BLOCK + position);
    }
    DEVICE(const uint4) values = block + kv_key_pieces(KV_FORMAT, HEAD_DIM);
    uint units = HEAD_DIM / kv_unit(KV_FORMAT);
    UNROLL
    for (uint c = 0u; c < COLUMNS; ++c) {
        UNROLL
        for (uint j = 0u; j < lane_values(); ++j) {
            uint column = min(place->column + c * SLICES * TAKEN, units - 1u);
            uint at = clamp(first / piece_positions() + place->row + j * LANE_ROWS,
                low / piece_positions(), (high - 1u) / piece_positions());
            prefetch_line(values + at * units + column);
        }
    }
}

// A lane's slices of the rows' queries, as f32.
struct Queries {
    float value[4][128];
};

static inline void load_queries(
    DEVICE(const T) heads, uint count, uint slice, THREAD(Queries) out) {
    uint elements = kv_elements(KV_FORMAT);
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        UNROLL
        for (uint j = 0u; j < lane_pieces(); ++j) {
            UNROLL
            for (uint four = 0u; four < 8u; ++four) {
                if (4u * four < elements) {
                    // Rows that are not there repeat the last one, and keys end with zeros.
                    uint d = (slice + SLICES * j) * elements + 4u * four;
                    float v[4];
                    load_four(heads + min(r, count - 1u) * HEAD_DIM + min(d, HEAD_DIM - 4u), 4u,
                        WHOLE, v);
                    UNROLL
                    for (uint i = 0u; i < 4u; ++i) {
                        out->value[r][j * elements + 4u * four + i] = d < HEAD_DIM ? v[i] : 0.0f;
                    }
                }
            }
        }
    }
}

// Scores of the lane's position with all rows: the same bits in all lanes that share it.
static inline void score(
    THREAD(const Fetched) fetched, THREAD(const Queries) queries, THREAD(float) scores) {
    uint elements = kv_elements(KV_FORMAT);
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        scores[r] = 0.0f;
    }
    UNROLL
    for (uint j = 0u; j < lane_pieces(); ++j) {
        float key[32];
        kv_unpack(KV_FORMAT, fetched->key[j], key);
        UNROLL
        for (uint r = 0u; r < ROW_HEADS; ++r) {
            // Two chains of sums: half the latency.
            float even = 0.0f;
            float odd = 0.0f;
            UNROLL
            for (uint i = 0u; i < 32u; i += 2u) {
                if (i < elements) {
                    even = fma(queries->value[r][j * elements + i], key[i], even);
                    odd = fma(queries->value[r][j * elements + i + 1u], key[i + 1u], odd);
                }
            }
            float sum = even + odd;
            scores[r] = KV_FORMAT == KV_FP4 ? fma(sum, fetched->key_scale[j], scores[r])
                                            : scores[r] + sum;
        }
    }
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        if (KV_FORMAT == KV_INT8) {
            scores[r] = scores[r] * fetched->key_scale[0];
        }
        for (uint step = TAKEN; step < SLICES * TAKEN; step *= 2u) {
            scores[r] = scores[r] + simd_shuffle_xor(scores[r], step);
        }
    }
}

// Sums of a lane: the rows' values in its columns of up to 8 dimensions.
struct Sums {
    float value[8][4][8]; // [column][row][dimension]
};

// sums += weight · value. weights: [row], of the lane's position.
static inline void add_values(
    THREAD(const Fetched) fetched, THREAD(const float) weights, THREAD(const LanePlace) place,
    THREAD(Sums) sums) {
    uint unit = kv_unit(KV_FORMAT);
    UNROLL
    for (uint j = 0u; j < lane_values(); ++j) {
        uint first = (place->row + j * LANE_ROWS) * piece_positions();
        float given[4][4];
        UNROLL
        for (uint r = 0u; r < ROW_HEADS; ++r) {
            UNROLL
            for (uint p = 0u; p < 4u; ++p) {
                if (p < piece_positions()) {
                    // Lanes without values must name a lane too.
                    given[r][p] = simd_shuffle(weights[r], (first + p) % TAKEN);
                }
            }
        }
        UNROLL
        for (uint c = 0u; c < COLUMNS; ++c) {
            float value[32];
            kv_unpack(KV_FORMAT, fetched->value[c][j], value);
            UNROLL
            for (uint p = 0u; p < 4u; ++p) {
                UNROLL
                for (uint d = 0u; d < 8u; ++d) {
                    if (p < piece_positions() && d < unit) {
                        float v = value[p * unit + d];
                        if (KV_FORMAT == KV_FP4) {
                            v = v * fetched->value_scale[c][j][p];
                        }
                        UNROLL
                        for (uint r = 0u; r < ROW_HEADS; ++r) {
                            sums->value[c][r][d] =
                                fma(given[r][p], v, sums->value[c][r][d]);
                        }
                    }
                }
            }
        }
    }
}

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
    uint chunks = (args.group + ROW_HEADS - 1u) / ROW_HEADS;
    uint kv_head = group.y / chunks;
    uint first_head = kv_head * args.group + group.y % chunks * ROW_HEADS;
    uint head_count = min(ROW_HEADS, (kv_head + 1u) * args.group - first_head);
    uint token = group.z;
    uint sequence = sequences[token];
    uint last = positions[token];
    bool present = sequence != KV_NO_SEQUENCE;

    LanePlace place;
    place.position = lane % TAKEN;
    place.slice = lane / TAKEN;
    uint units = HEAD_DIM / kv_unit(KV_FORMAT);
    place.row = COLUMNS == 1u ? lane / units : 0u;
    place.column = COLUMNS == 1u ? lane % units : lane;

    // This split's part of the positions that the token sees, in runs of as many as a SIMD-group takes at once.
    uint low = args.window != 0u && last >= args.window ? last + 1u - args.window : 0u;
    uint first_run = low / TAKEN;
    uint runs = present ? last / TAKEN + 1u - first_run : 0u;
    uint begin = (first_run + runs * group.x / groups.x) * TAKEN;
    uint end = (first_run + runs * (group.x + 1u) / groups.x) * TAKEN;
    ulong block_pieces = ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
    uint at = begin + simdgroup * TAKEN;
    ulong offset = 0u;
    if (at < end) {
        uint physical =
            kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride, sequence, at / KV_BLOCK);
        offset = ulong(physical * args.kv_heads + kv_head) * block_pieces;
        uint origin = at / KV_BLOCK * KV_BLOCK;
        prefetch(cache + offset, at - origin, max(low, origin) - origin, last + 1u - origin, &place);
    }
    wait_for_previous();
    DEVICE(const uint4) cached = after_wait(cache);

    // Keys and values first, then queries: neither waits for the other.
    Fetched fetched;
    if (at < end) {
        uint origin = at / KV_BLOCK * KV_BLOCK;
        fetch(cached + offset, at - origin, max(low, origin) - origin, last + 1u - origin, &place, &fetched);
    }
    Queries queries;
    load_queries(
        after_wait(query) + (ulong(token) * ulong(args.query_stride) + ulong(first_head * HEAD_DIM)),
        head_count, place.slice, &queries);
    // Scores are in units of log2 e: exp2 is the hardware's exponential.
    float factor = SOFTCAP ? args.scale / args.softcap : args.scale * 1.44269504f;
    float greatest[4];
    float total[4];
    Sums sums;
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        greatest[r] = LOWEST;
        total[r] = 0.0f;
        UNROLL
        for (uint c = 0u; c < COLUMNS; ++c) {
            UNROLL
            for (uint d = 0u; d < 8u; ++d) {
                sums.value[c][r][d] = 0.0f;
            }
        }
    }

    for (; at < end; at += simdgroups * TAKEN) {
        uint origin = at / KV_BLOCK * KV_BLOCK;
        uint visible_from = max(low, origin) - origin;
        uint visible_to = last + 1u - origin;
        float scores[4];
        score(&fetched, &queries, scores);
        uint position = at - origin + place.position;
        bool visible = position >= visible_from && position < visible_to;
        float weights[4];
        UNROLL
        for (uint r = 0u; r < ROW_HEADS; ++r) {
            weights[r] = 0.0f;
            float s = scores[r] * factor;
            if (SOFTCAP) {
                s = tanh(s) * (args.softcap * 1.44269504f);
            }
            float bound = visible ? s : LOWEST;
            for (uint step = 1u; step < TAKEN; step *= 2u) {
                bound = max(bound, simd_shuffle_xor(bound, step));
            }
            bound = max(bound, greatest[r]);
            float correction = exp2(greatest[r] - bound);
            greatest[r] = bound;
            float weight = visible ? exp2(s - bound) : 0.0f;
            total[r] = fma(total[r], correction, weight);
            // The values' scale goes with the weight: one product instead of eight.
            weights[r] = weight * fetched.position_scale;
            UNROLL
            for (uint c = 0u; c < COLUMNS; ++c) {
                UNROLL
                for (uint d = 0u; d < 8u; ++d) {
                    sums.value[c][r][d] = sums.value[c][r][d] * correction;
                }
            }
        }
        add_values(&fetched, weights, &place, &sums);
        uint next = at + simdgroups * TAKEN;
        if (next < end) {
            uint physical =
                kv_physical_block(pages, BLOCKS_PER_PAGE, args.stride, sequence, next / KV_BLOCK);
            offset = ulong(physical * args.kv_heads + kv_head) * block_pieces;
            origin = next / KV_BLOCK * KV_BLOCK;
            fetch(cached + offset, next - origin, max(low, origin) - origin, last + 1u - origin, &place,
                &fetched);
        }
    }

    // Merge: the rows of lanes of each SIMD-group, then the SIMD-groups.
    THREADGROUP(float) stats = shared + simdgroups * ROW_HEADS * HEAD_DIM;
    uint unit = kv_unit(KV_FORMAT);
    UNROLL
    for (uint r = 0u; r < ROW_HEADS; ++r) {
        for (uint step = 1u; step < TAKEN; step *= 2u) {
            total[r] = total[r] + simd_shuffle_xor(total[r], step);
        }
        for (uint step = LANE_ROWS / 2u; step > 0u; step /= 2u) {
            UNROLL
            for (uint d = 0u; d < 8u; ++d) {
                if (d < unit) {
                    float other = simd_shuffle(
                        sums.value[0][r][d], (lane + step * units) % (SLICES * TAKEN));
                    sums.value[0][r][d] = sums.value[0][r][d] + other;
                }
            }
        }
        THREADGROUP(float4) merged =
            threadgroup_cast(float4, shared + (simdgroup * ROW_HEADS + r) * HEAD_DIM);
        UNROLL
        for (uint c = 0u; c < COLUMNS; ++c) {
            uint column = place.column + c * SLICES * TAKEN;
            if (place.row == 0u && column < units) {
                UNROLL
                for (uint quad = 0u; quad < 2u; ++quad) {
                    if (4u * quad < unit) {
                        merged[column * unit / 4u + quad] = make_float4(
                            sums.value[c][r][4u * quad], sums.value[c][r][4u * quad + 1u],
                            sums.value[c][r][4u * quad + 2u], sums.value[c][r][4u * quad + 3u]);
                    }
                }
            }
        }
        if (lane == 0u) {
            stats[(simdgroup * ROW_HEADS + r) * 2u] = greatest[r];
            stats[(simdgroup * ROW_HEADS + r) * 2u + 1u] = total[r];
        }
    }
    barrier_threadgroup();
    uint heads = args.kv_heads * args.group;
    for (uint i = thread_index; i < head_count * HEAD_DIM; i += threads.x) {
        uint r = i / HEAD_DIM;
        uint d = i % HEAD_DIM;
        float bound = LOWEST;
        for (uint s = 0u; s < simdgroups; ++s) {
            bound = max(bound, stats[(s * ROW_HEADS + r) * 2u]);
        }
        float sum = 0.0f;
        float weight = 0.0f;
        for (uint s = 0u; s < simdgroups; ++s) {
            float share = exp2(stats[(s * ROW_HEADS + r) * 2u] - bound);
            sum = fma(share, shared[(s * ROW_HEADS + r) * HEAD_DIM + d], sum);
            weight = fma(share, stats[(s * ROW_HEADS + r) * 2u + 1u], weight);
        }
        uint head = first_head + r;
        if (SPLIT) {
            uint slot = (token * heads + head) * groups.x + group.x;
            partial[ulong(slot) * ulong(HEAD_DIM) + ulong(d)] = sum;
            if (d == 0u) {
                ulong all = ulong(groups.z * heads * groups.x) * ulong(HEAD_DIM);
                partial[all + ulong(2u * slot)] = bound;
                partial[all + ulong(2u * slot + 1u)] = weight;
            }
        } else {
            store_float(out, ulong(token) * ulong(args.out_stride) + ulong(head * HEAD_DIM + d),
                weight > 0.0f ? sum / weight : 0.0f);
        }
    }
}
