// Attention over short contexts: what attention_short and attention_append share.
//
// A file that includes this has included kv_cache.h and declares, before the include, ELEMENTS(T, …) and attention_short.metal's
// specialisation constants.

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

// One token's and one threadgroup's part of the work.
struct Share {
    uint kv_head;
    uint first_head; // Query heads from here on…
    uint head_count; // …so many.
    uint heads;      // Of a token.
    uint kv_heads;
    uint token;
    uint sequence;
    uint stride;
    uint low;        // Positions from here on are seen…
    uint last;       // …up to here.
    uint begin;      // This split's, in whole runs of TAKEN.
    uint end;
    uint split;
    uint splits;
    DEVICE(const uint) pages;
    // APPEND: the token's own key and value, which are not in the cache.
    DEVICE(const T) key;
    DEVICE(const T) value;
    DEVICE(uint4) appended;
    bool appends;    // Whether this threadgroup writes them.
};

static inline LanePlace lane_place(uint lane) {
    LanePlace place;
    place.position = lane % TAKEN;
    place.slice = lane / TAKEN;
    uint units = HEAD_DIM / kv_unit(KV_FORMAT);
    place.row = COLUMNS == 1u ? lane / units : 0u;
    place.column = COLUMNS == 1u ? lane % units : lane;
    return place;
}

// Threadgroup `group` of `groups`: x splits, y kv_heads · ⌈per_key_head / ROW_HEADS⌉, z tokens.
static inline Share share_of(
    uint3 group, uint3 groups, DEVICE(const uint) pages, uint sequence, uint last, uint window, uint kv_heads,
    uint per_key_head, uint stride) {
    Share share;
    uint chunks = (per_key_head + ROW_HEADS - 1u) / ROW_HEADS;
    share.kv_head = group.y / chunks;
    share.first_head = share.kv_head * per_key_head + group.y % chunks * ROW_HEADS;
    share.head_count = min(ROW_HEADS, (share.kv_head + 1u) * per_key_head - share.first_head);
    share.heads = kv_heads * per_key_head;
    share.kv_heads = kv_heads;
    share.token = group.z;
    share.sequence = sequence;
    share.stride = stride;
    share.last = last;
    share.pages = pages;
    share.split = group.x;
    share.splits = groups.x;
    // This split's part of the positions that the token sees, in runs of as many as a SIMD-group takes at once.
    share.low = window != 0u && last >= window ? last + 1u - window : 0u;
    uint first_run = share.low / TAKEN;
    uint runs = sequence != KV_NO_SEQUENCE ? last / TAKEN + 1u - first_run : 0u;
    share.begin = (first_run + runs * group.x / groups.x) * TAKEN;
    share.end = (first_run + runs * (group.x + 1u) / groups.x) * TAKEN;
    share.appends = group.y % chunks == 0u;
    return share;
}

// The first piece of the block with position `at`, for the share's key head.
static inline ulong block_start(THREAD(const Share) share, uint at) {
    uint physical =
        kv_physical_block(share->pages, BLOCKS_PER_PAGE, share->stride, share->sequence, at / KV_BLOCK);
    return ulong(physical * share->kv_heads + share->kv_head) * ulong(kv_block_pieces(KV_FORMAT, HEAD_DIM));
}

// Where the positions that are read from the cache end: the token's own is not in it yet where APPEND.
template <bool APPEND> static inline uint cached_end(THREAD(const Share) share) {
    return APPEND ? share->last : share->last + 1u;
}

// Brings what the SIMD-group takes first into the second-level cache.
template <bool APPEND>
static inline void prefetch_run(
    DEVICE(const uint4) cache, THREAD(const Share) share, uint at, THREAD(const LanePlace) place) {
    uint origin = at / KV_BLOCK * KV_BLOCK;
    uint low = max(share->low, origin);
    uint high = cached_end<APPEND>(share);
    if (at < share->end && high > low) {
        prefetch(
            cache + block_start(share, at), at - origin, low - origin, min(high - origin, KV_BLOCK), place);
    }
}

// ---- The token's own key and value ---------------------------------------------------------------
//
// For f16 caches, whose pieces of 8 dimensions a lane has in its slice together with those that they form pairs with: HEAD_DIM is a
// multiple of 16 · SLICES, all of a head is rotated, and pairs are (x[i], x[i + HEAD_DIM / 2]). Values are rounded where rope_append
// rounds them, so that the two ways agree to the bit.

// Rotates a head of which this lane has pieces slice, slice + SLICES, …
static inline void turn_pieces(
    THREADGROUP(const float) cosines, THREADGROUP(const float) sines, uint slice, THREAD(float) head) {
    uint apart = HEAD_DIM / 16u / SLICES;
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        if (j < apart) {
            UNROLL
            for (uint i = 0u; i < 8u; ++i) {
                uint pair = (slice + SLICES * j) * 8u + i;
                float a = head[8u * j + i];
                float b = head[8u * (j + apart) + i];
                head[8u * j + i] = as_stored(T(), turned_first(a, b, cosines[pair], sines[pair]));
                head[8u * (j + apart) + i] =
                    as_stored(T(), turned_second(a, b, cosines[pair], sines[pair]));
            }
        }
    }
}

static inline uint4 pack_piece(THREAD(const float) x) {
    return make_uint4(
        as_uint(make_half2(kv_half(x[0]), kv_half(x[1]))), as_uint(make_half2(kv_half(x[2]), kv_half(x[3]))),
        as_uint(make_half2(kv_half(x[4]), kv_half(x[5]))), as_uint(make_half2(kv_half(x[6]), kv_half(x[7]))));
}

// Puts the token's own key and value, if the run from position `at` on has it, where a lane would have them from the cache; and into
// the cache.
static inline void fetch_own(
    THREAD(const Share) share, THREADGROUP(const float) cosines, THREADGROUP(const float) sines, uint at,
    THREAD(const LanePlace) place, THREAD(Fetched) out) {
    if (share->last - at >= TAKEN) {
        return;
    }
    DEVICE(uint4) block = share->appended + block_start(share, at);
    uint first = at % KV_BLOCK;
    uint own = share->last % KV_BLOCK;
    float key[128];
    UNROLL
    for (uint j = 0u; j < 16u && j < lane_pieces(); ++j) {
        load_eight(share->key + (place->slice + SLICES * j) * 8u, 8u, WHOLE, key + 8u * j);
    }
    // Everything is asked for before anything is stored.
    uint units = HEAD_DIM / 8u;
    float value[8][8];
    UNROLL
    for (uint c = 0u; c < COLUMNS; ++c) {
        uint column = place->column + c * SLICES * TAKEN;
        load_eight(share->value + min(column, units - 1u) * 8u, 8u, WHOLE, value[c]);
    }
    turn_pieces(cosines, sines, place->slice, key);
    bool mine = first + place->position == own;
    UNROLL
    for (uint j = 0u; j < 16u && j < lane_pieces(); ++j) {
        uint4 piece = pack_piece(key + 8u * j);
        if (mine) {
            out->key[j] = piece;
            if (share->appends) {
                block[(place->slice + SLICES * j) * KV_BLOCK + own] = piece;
            }
        }
    }
    DEVICE(uint4) values = block + kv_key_pieces(KV_FORMAT, HEAD_DIM);
    UNROLL
    for (uint c = 0u; c < COLUMNS; ++c) {
        uint column = place->column + c * SLICES * TAKEN;
        uint4 piece = pack_piece(value[c]);
        UNROLL
        for (uint j = 0u; j < lane_values(); ++j) {
            if (first + place->row + j * LANE_ROWS == own) {
                out->value[c][j] = piece;
                if (share->appends && column < units && place->row < LANE_ROWS) {
                    values[own * units + column] = piece;
                }
            }
        }
    }
}

// Asks the cache for the run from position `at` on.
template <bool APPEND>
static inline void fetch_run(
    DEVICE(const uint4) cache, THREAD(const Share) share, uint at, THREAD(const LanePlace) place,
    THREAD(Fetched) out) {
    ulong start = block_start(share, at);
    uint origin = at / KV_BLOCK * KV_BLOCK;
    uint low = max(share->low, origin);
    uint high = cached_end<APPEND>(share);
    if (!APPEND || high > low) {
        // Lanes without values would look past the block's end.
        fetch(cache + start, at - origin, low - origin, min(high - origin, KV_BLOCK), place, out);
    } else {
        // Nothing is in the cache, and what is not seen must still be finite.
        out->position_scale = 1.0f;
        UNROLL
        for (uint j = 0u; j < lane_pieces(); ++j) {
            out->key[j] = make_uint4(0u, 0u, 0u, 0u);
        }
        UNROLL
        for (uint c = 0u; c < COLUMNS; ++c) {
            UNROLL
            for (uint j = 0u; j < lane_values(); ++j) {
                out->value[c][j] = make_uint4(0u, 0u, 0u, 0u);
            }
        }
    }
}

// Goes over a share whose first run is asked for, from `at` on, merges what the SIMD-groups have and writes it: `out`, or `partial` of
// `tokens` tokens where SPLIT.
template <bool APPEND>
static inline void attend(
    DEVICE(const uint4) cache, THREAD(const Share) share, THREADGROUP(const float) cosines,
    THREADGROUP(const float) sines, uint at, THREAD(const LanePlace) place, THREAD(Fetched) fetched,
    THREAD(const Queries) queries, float scale, float softcap, DEVICE(T) out, uint out_stride,
    DEVICE(float) partial, uint tokens, THREADGROUP(float) shared, uint threads, uint thread_index, uint lane,
    uint simdgroup, uint simdgroups) {
    // Scores are in units of log2 e: exp2 is the hardware's exponential.
    float factor = SOFTCAP ? scale / softcap : scale * 1.44269504f;
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

    for (; at < share->end; at += simdgroups * TAKEN) {
        uint origin = at / KV_BLOCK * KV_BLOCK;
        uint visible_from = max(share->low, origin) - origin;
        uint visible_to = share->last + 1u - origin;
        float scores[4];
        score(fetched, queries, scores);
        uint position = at - origin + place->position;
        bool visible = position >= visible_from && position < visible_to;
        float weights[4];
        UNROLL
        for (uint r = 0u; r < ROW_HEADS; ++r) {
            weights[r] = 0.0f;
            float s = scores[r] * factor;
            if (SOFTCAP) {
                s = tanh(s) * (softcap * 1.44269504f);
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
            weights[r] = weight * fetched->position_scale;
            UNROLL
            for (uint c = 0u; c < COLUMNS; ++c) {
                UNROLL
                for (uint d = 0u; d < 8u; ++d) {
                    sums.value[c][r][d] = sums.value[c][r][d] * correction;
                }
            }
        }
        add_values(fetched, weights, place, &sums);
        uint next = at + simdgroups * TAKEN;
        if (next < share->end) {
            fetch_run<APPEND>(cache, share, next, place, fetched);
            if (APPEND) {
                fetch_own(share, cosines, sines, next, place, fetched);
            }
        }
    }

    // Merge: the rows of lanes of each SIMD-group, then the SIMD-groups.
    THREADGROUP(float) stats = shared + simdgroups * ROW_HEADS * HEAD_DIM;
    uint unit = kv_unit(KV_FORMAT);
    uint units = HEAD_DIM / unit;
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
            uint column = place->column + c * SLICES * TAKEN;
            if (place->row == 0u && column < units) {
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
    for (uint i = thread_index; i < share->head_count * HEAD_DIM; i += threads) {
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
        uint head = share->first_head + r;
        if (SPLIT) {
            uint slot = (share->token * share->heads + head) * share->splits + share->split;
            partial[ulong(slot) * ulong(HEAD_DIM) + ulong(d)] = sum;
            if (d == 0u) {
                ulong all = ulong(tokens * share->heads * share->splits) * ulong(HEAD_DIM);
                partial[all + ulong(2u * slot)] = bound;
                partial[all + ulong(2u * slot + 1u)] = weight;
            }
        } else {
            store_float(out, ulong(share->token) * ulong(out_stride) + ulong(head * HEAD_DIM + d),
                weight > 0.0f ? sum / weight : 0.0f);
        }
    }
}
