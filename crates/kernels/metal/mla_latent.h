// Attention in the latent space: what a SIMD-group of mla_attend holds of its heads, and how a few positions are added to it.
//
// A file that includes this has included kv_cache.h and declares, before the include, ELEMENTS(T, …) and mla.metal's
// specialisation constants.

// The most heads of a SIMD-group.
#define MAX_HEADS 4u
// Positions that are taken at a time: with more, registers leave too few threads.
#define BATCH 2u
// Below every score, and finite: (-∞) - (-∞) would be NaN.
#define LOWEST -3.0e38f

// Rotary values of a lane.
static inline uint rope_lanes(uint simd_width) { return (ROPE + simd_width - 1u) / simd_width; }

// What a lane owns of each head: pieces of eight latent values, every simd_width-th from its own on, and rotary values
// likewise.
struct LatentRows {
    float q[MAX_HEADS][8][8]; // [head][piece][value], with the scale and log2(e) in them.
    float q_rope[MAX_HEADS][16];
    float sums[MAX_HEADS][8][8];
    float greatest[MAX_HEADS]; // The largest score so far, in all lanes.
    float total[MAX_HEADS];    // The sum of all weights so far, in all lanes.
};

// The same of one position.
struct LatentPieces {
    uint4 latent[8];
    float rope[16];
};

struct LatentScores {
    float value[BATCH][MAX_HEADS];
};

// Reads a token's queries ([heads][LATENT + ROPE]) of the heads from `first_head` on, with nothing added up yet.
static inline void start_latent_rows(
    DEVICE(const T) queries, uint first_head, uint heads, float factor, uint lane, uint simd_width,
    THREAD(LatentRows) out) {
    UNROLL
    for (uint r = 0u; r < MAX_HEADS; ++r) {
        out->greatest[r] = LOWEST;
        out->total[r] = 0.0f;
        // Heads past the last repeat it, and write nothing.
        uint head = min(first_head + r, heads - 1u);
        DEVICE(const T) query = queries + head * (LATENT + ROPE);
        if (r < ROW_HEADS) {
            UNROLL
            for (uint c = 0u; c < 8u; ++c) {
                if (c < PIECES) {
                    uint piece = lane + c * simd_width;
                    UNROLL
                    for (uint d = 0u; d < 8u; ++d) {
                        out->sums[r][c][d] = 0.0f;
                        out->q[r][c][d] = 0.0f;
                        if (piece < LATENT / 8u) {
                            out->q[r][c][d] = load_float(query, piece * 8u + d) * factor;
                        }
                    }
                }
            }
            UNROLL
            for (uint i = 0u; i < 16u; ++i) {
                if (i < rope_lanes(simd_width)) {
                    uint d = lane + i * simd_width;
                    out->q_rope[r][i] = d < ROPE ? load_float(query, LATENT + d) * factor : 0.0f;
                }
            }
        }
    }
}

// Reads positions from `first` on, whose latents begin at `rows`; those past `last` are zeros.
static inline void load_latent(
    DEVICE(const uint4) rows, uint first, uint last, uint lane, uint simd_width,
    THREAD(LatentPieces) out) {
    uint row_pieces = (LATENT + ROPE) / 8u;
    UNROLL
    for (uint b = 0u; b < BATCH; ++b) {
        UNROLL
        for (uint c = 0u; c < 8u; ++c) {
            if (c < PIECES) {
                uint piece = lane + c * simd_width;
                out[b].latent[c] = make_uint4(0u, 0u, 0u, 0u);
                if (first + b <= last && piece < LATENT / 8u) {
                    out[b].latent[c] = rows[b * row_pieces + piece];
                }
            }
        }
        UNROLL
        for (uint i = 0u; i < 16u; ++i) {
            if (i < rope_lanes(simd_width)) {
                uint d = lane + i * simd_width;
                out[b].rope[i] = 0.0f;
                if (first + b <= last && d < ROPE) {
                    out[b].rope[i] =
                        float(device_cast(const half, rows + b * row_pieces + LATENT / 8u)[d]);
                }
            }
        }
    }
}

// Scores of every position and head, in all lanes.
static inline void score_latent(
    THREAD(const LatentRows) rows, THREAD(const LatentPieces) positions, uint simd_width,
    THREAD(LatentScores) out) {
    UNROLL
    for (uint b = 0u; b < BATCH; ++b) {
        UNROLL
        for (uint r = 0u; r < MAX_HEADS; ++r) {
            out->value[b][r] = 0.0f;
        }
        UNROLL
        for (uint c = 0u; c < 8u; ++c) {
            if (c < PIECES) {
                float value[32];
                kv_unpack(KV_F16, positions[b].latent[c], value);
                UNROLL
                for (uint r = 0u; r < MAX_HEADS; ++r) {
                    if (r < ROW_HEADS) {
                        UNROLL
                        for (uint d = 0u; d < 8u; ++d) {
                            out->value[b][r] = fma(rows->q[r][c][d], value[d], out->value[b][r]);
                        }
                    }
                }
            }
        }
        UNROLL
        for (uint r = 0u; r < MAX_HEADS; ++r) {
            if (r < ROW_HEADS) {
                UNROLL
                for (uint i = 0u; i < 16u; ++i) {
                    if (i < rope_lanes(simd_width)) {
                        out->value[b][r] =
                            fma(rows->q_rope[r][i], positions[b].rope[i], out->value[b][r]);
                    }
                }
                out->value[b][r] = simd_sum(out->value[b][r]);
            }
        }
    }
}

// Adds positions from `first` on to the sums, up to `last`; scores become weights.
static inline void add_latent(
    THREAD(LatentRows) rows, THREAD(const LatentPieces) positions, uint first, uint last,
    THREAD(LatentScores) scores) {
    UNROLL
    for (uint r = 0u; r < MAX_HEADS; ++r) {
        if (r < ROW_HEADS) {
            float bound = rows->greatest[r];
            UNROLL
            for (uint b = 0u; b < BATCH; ++b) {
                bound = max(bound, first + b <= last ? scores->value[b][r] : LOWEST);
            }
            float correction = exp2(rows->greatest[r] - bound);
            rows->greatest[r] = bound;
            rows->total[r] = rows->total[r] * correction;
            UNROLL
            for (uint b = 0u; b < BATCH; ++b) {
                scores->value[b][r] = first + b <= last ? exp2(scores->value[b][r] - bound) : 0.0f;
                rows->total[r] = rows->total[r] + scores->value[b][r];
            }
            // The same in all lanes: a sum over them is.
            if (correction != 1.0f) {
                UNROLL
                for (uint c = 0u; c < 8u; ++c) {
                    if (c < PIECES) {
                        UNROLL
                        for (uint d = 0u; d < 8u; ++d) {
                            rows->sums[r][c][d] = rows->sums[r][c][d] * correction;
                        }
                    }
                }
            }
        }
    }
    UNROLL
    for (uint b = 0u; b < BATCH; ++b) {
        UNROLL
        for (uint c = 0u; c < 8u; ++c) {
            if (c < PIECES) {
                float value[32];
                kv_unpack(KV_F16, positions[b].latent[c], value);
                UNROLL
                for (uint r = 0u; r < MAX_HEADS; ++r) {
                    if (r < ROW_HEADS) {
                        UNROLL
                        for (uint d = 0u; d < 8u; ++d) {
                            rows->sums[r][c][d] =
                                fma(scores->value[b][r], value[d], rows->sums[r][c][d]);
                        }
                    }
                }
            }
        }
    }
}
