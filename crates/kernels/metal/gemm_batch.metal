// The product of gemm.metal for batches and prompts: y[m, n] = epilogue(Σ_k W[n, k] · x[m, k] + bias[n]).
//
// gemm.metal is bound by memory for a few tokens, but from a dozen on by instructions: every SIMD-group loads every token from
// threadgroup memory for itself. Here SIMD-groups multiply in teams whose matrix units read the tokens themselves
// (fragment_team.h), and a weight, once decoded, meets up to 128 tokens. Scales multiply the f16 weights, as Marlin's do (Frantar
// et al. 2024, "MARLIN", §3): one rounding to f16 a weight, and sums that nobody touches until the end, which is what lets
// the matrix units run while the next weights are decoded.

ELEMENTS(T, half, bf16);

// Sizes of one call.
struct GemmBatchArgs {
    uint rows;        // Rows of W; of the gate alone where GATED.
    uint columns;     // Columns of W, a multiple of 8.
    uint tokens;      // Rows of x.
    uint x_stride;    // Elements from one row of x to the next, a multiple of 8.
    uint y_stride;    // Elements from one row of y to the next.
    uint blocks;      // Blocks of 64 columns, padding included.
    uint groups;      // Scales of a row.
    float factor;     // Of all weights.
};

// What a code is: FragmentCode.
SPECIALISE(uint, CODE, 0);
// Subtracted from integer codes.
SPECIALISE(int, OFFSET, 1);
// What scales are: FragmentScale, with the range of f16.
SPECIALISE(uint, SCALE, 2);
// What minimums are: FragmentMin.
SPECIALISE(uint, MIN, 3);
// Columns per scale; 0 where a row has one.
SPECIALISE(uint, GROUP, 4);
// Tiles of 8 tokens: 1, 2, 4, 8 or 16.
SPECIALISE(uint, TILES, 5);
// Blocks of 16 rows of a SIMD-group: 1 or 2; 2 where GATED.
SPECIALISE(uint, ROW_BLOCKS, 6);
// SIMD-groups of a threadgroup along the rows, a multiple of 4. They share tokens: what docs/kernels.md calls a team.
SPECIALISE(uint, ROW_GROUPS, 7);
// Teams of a threadgroup: each takes every K_GROUPS-th block.
SPECIALISE(uint, K_GROUPS, 8);
// Blocks that a SIMD-group asks for at a time while it multiplies as many: 1, 2 or 4.
SPECIALISE(uint, DEPTH, 9);
// Rounds of x that are on their way: 1, or 2 where DEPTH is not 1.
SPECIALISE(uint, AHEAD, 10);
// y = activation(gate) · up: W's first `rows` rows are the gate, and the rows from the next multiple of 16 the up projection.
SPECIALISE(bool, GATED, 11);
// y is added to, not overwritten: the residual.
SPECIALISE(bool, ACCUMULATE, 12);
// 0: SiLU, 1: GELU with tanh (where GATED).
SPECIALISE(uint, ACTIVATION, 13);
// Whether there is a bias.
SPECIALISE(bool, HAS_BIAS, 14);
// Parts that k is split into between threadgroups; sums go to `partial` where there are more than 1.
SPECIALISE(uint, SPLITS, 15);

// Of matrix fragments.
typedef T Operand;

#include "weights.h"
#include "fragment.h"
#include "operands.h"
// What one addition a step is mostly faster for; with integers or two row blocks it is as often slower.
#define TEAM_STEPS (CODE == CODE_FP4 && ROW_BLOCKS == 1u)
#include "fragment_team.h"
#include "epilogue.h"

// Units of x in threadgroup memory of a team: one is written while two are read, since the matrix units may be
// a round behind.
#define STAGES 3u

// ---- Weights ------------------------------------------------------------------------------------

// Groups that a block has scales for.
static inline uint groups_in_block() { return GROUP == 16u ? 4u : GROUP == 32u ? 2u : 1u; }

// Everything of one block of 64 columns that comes from memory, for one lane.
struct Fetched {
    Slot slot[2];
    StoredScale scale[2][4];
};

struct Weights {
    // The rows' first block.
    DEVICE(const uint) codes[2];
    DEVICE(const uchar) scales;
    DEVICE(const uchar) mins;
    DEVICE(const half) supers;
    uint row_block[2];
    uint blocks;
    uint groups;
};

// Reads block `block` of the rows; past the last, that one again: whatever it is, it is multiplied with zeros.
static inline void fetch(THREAD(const Weights) weights, uint block, uint lane, THREAD(Fetched) out) {
    uint g = fragment_row(lane);
    uint slot = g * 4u + fragment_quad(lane);
    block = min(block, weights->blocks - 1u);
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            uint row_block = weights->row_block[r];
            load_slot(weights->codes[r] + block * (32u * code_bits()), slot, &out->slot[r]);
            if (SCALE != SCALE_NONE) {
                uint group = row_block * weights->groups + (GROUP == 0u ? 0u : block * 64u / GROUP);
                UNROLL
                for (uint i = 0u; i < 4u; ++i) {
                    if (i < groups_in_block()) {
                        load_scale(
                            weights->scales, weights->mins, weights->supers, (group + i) * 8u + g,
                            super_place(row_block, (weights->blocks + 3u) / 4u, block * 64u, g),
                            &out->scale[r][i]);
                    }
                }
            }
        }
    }
}

// to = from. `zero` is 0, which the compiler does not know: without an instruction that uses them in this turn of the
// loop, CUDA's assembler puts loads at the turn's end, right before the next one waits for them.
static inline void settle(THREAD(const Fetched) from, uint zero, THREAD(Fetched) to) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            UNROLL
            for (uint w = 0u; w < 32u; ++w) {
                if (w < code_bits()) {
                    to->slot[r].word[w] = from->slot[r].word[w] ^ zero;
                }
            }
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                if (i < groups_in_block() && SCALE != SCALE_NONE) {
                    to->scale[r][i].scale.x = from->scale[r][i].scale.x ^ zero;
                    if (SCALE == SCALE_F32) {
                        to->scale[r][i].scale.y = from->scale[r][i].scale.y ^ zero;
                    }
                    if (SCALE == SCALE_SUPER) {
                        to->scale[r][i].super_scale = from->scale[r][i].super_scale ^ zero;
                    }
                    if (MIN != MIN_NONE) {
                        to->scale[r][i].min.x = from->scale[r][i].min.x ^ zero;
                    }
                    if (MIN == MIN_SUPER) {
                        to->scale[r][i].super_min = from->scale[r][i].super_min ^ zero;
                    }
                }
            }
        }
    }
}

// The fragments of two steps of 16 columns, half a block, true to size.
struct HalfBlock {
    WeightFragment step[2][2];
};

static inline void decode(THREAD(const Fetched) fetched, uint half_index, THREAD(HalfBlock) out) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            UNROLL
            for (uint s = 0u; s < 2u; ++s) {
                uint step = 2u * half_index + s;
                uint group = GROUP == 16u ? step : GROUP == 32u ? half_index : 0u;
                UNROLL
                for (uint i = 0u; i < 4u; ++i) {
                    out->step[r][s].pair[i] = scaled_operand(
                        &fetched->slot[r], i % 2u, 2u * step + i / 2u, &fetched->scale[r][group], T());
                }
            }
        }
    }
}

// ---- Tokens -------------------------------------------------------------------------------------
//
// A team's unit is TILES · 8 tokens × 64 columns. A SIMD-group copies whole tiles, four tokens at a time: eight lanes read
// 128 bytes of one, so that neither a read of device memory nor a store meets a bank twice.

// Tiles that a SIMD-group copies.
static inline uint tiles_each() { return (TILES + ROW_GROUPS - 1u) / ROW_GROUPS; }

struct Pieces {
    uint4 columns[8];
};

// Where a lane reads its pieces: elements from the place of the round's first column.
struct PiecePlaces {
    uint from[8];
};

static inline void load_pieces(
    DEVICE(const T) x, THREAD(const PiecePlaces) places, bool inside, THREAD(Pieces) out) {
    UNROLL
    for (uint p = 0u; p < 8u; ++p) {
        if (p < 2u * tiles_each()) {
            out->columns[p] = make_uint4(0u, 0u, 0u, 0u);
            if (inside) {
                out->columns[p] = *device_cast(const uint4, x + places->from[p]);
            }
        }
    }
}

static inline void stage_pieces(
    THREADGROUP(half) staged, THREAD(const Pieces) pieces, uint row_group, uint lane) {
    THREADGROUP(half) place = staged + stage_place(TILES, lane) + row_group * 64u;
    UNROLL
    for (uint p = 0u; p < 8u; ++p) {
        if (p < 2u * tiles_each() && row_group + p / 2u * ROW_GROUPS < TILES) {
            stage_tokens(
                place + p / 2u * ROW_GROUPS * 64u + p % 2u * 32u, TILES,
                pieces->columns[p]);
        }
    }
}

struct BatchSums {
    SumFragment tile[2][16];
};

// sums += half a block · the staged tokens.
static inline void multiply_half(
    THREAD(BatchSums) sums, THREAD(const HalfBlock) weights, TeamTokens tokens, uint half_index,
    uint lane) {
    team_begin();
    UNROLL
    for (uint s = 0u; s < 2u; ++s) {
        UNROLL
        for (uint r = 0u; r < 2u; ++r) {
            if (r < ROW_BLOCKS) {
                team_multiply(
                    sums->tile[r], &weights->step[r][s], tokens, TILES, 2u * half_index + s, lane);
            }
        }
    }
    team_commit();
}

// ---- The end ------------------------------------------------------------------------------------

// Rows of a team, and of y.
static inline uint team_rows() { return ROW_GROUPS * ROW_BLOCKS * 16u; }
static inline uint output_rows() { return GATED ? ROW_GROUPS * 16u : team_rows(); }
// Between tokens in threadgroup memory: four more than rows, so that a fragment's tokens meet no bank twice.
static inline uint sums_stride() { return team_rows() + 4u; }

// Tiles whose sums go through threadgroup memory at once: as many as 32 KiB hold, at least one.
static inline uint tiles_at_once() {
    uint fit = 8192u / (K_GROUPS * sums_stride() * 8u);
    return fit >= TILES ? TILES : fit >= 8u ? 8u : fit >= 4u ? 4u : fit >= 2u ? 2u : 1u;
}

// W in the fragment layout (codes, scales, mins, supers: crates/formats/src/fragment/), x: [tokens, columns], bias:
// [rows] (gate and up one after the other, up from a multiple of 16), y: [tokens, rows], partial: [SPLITS, 1 or 2 (GATED),
// tokens, rows] f32.
//
// Grid: x = row blocks over ROW_GROUPS · ROW_BLOCKS (gate row blocks where GATED: over ROW_GROUPS), y = tokens over TILES · 8,
// z = SPLITS. Threadgroup memory (floats): 3 units of x for each team, later the teams' sums of some tiles.
REQUIRES_SIMD_WIDTH(32)
kernel void gemm_batch(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(T) x [[buffer(4)]],
    IN_OPTIONAL(float) bias [[buffer(5)]],
    INOUT(T) y [[buffer(6)]],
    INOUT_OPTIONAL(float) partial [[buffer(7)]],
    INLINE(GemmBatchArgs) args [[buffer(8)]],
    THREADGROUP(float) scratch [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]]) {
    allow_next();
    GemmBatchArgs sizes = args;
    // The same in every lane, which not every compiler sees.
    simd_group = simd_broadcast(simd_group, 0u);
    uint team = simd_group / ROW_GROUPS;
    uint row_group = simd_group % ROW_GROUPS;
    uint row_blocks = (sizes.rows + 15u) / 16u;
    uint first_row_block = (group.x * ROW_GROUPS + row_group) * (GATED ? 1u : ROW_BLOCKS);
    uint first_token = group.y * TILES * 8u;
    uint tokens = sizes.tokens - first_token;

    // This threadgroup's rounds, a block for each team. There are whole loops of DEPTH, if need be with zeros for tokens:
    // a condition around the products would make them wait for each other.
    uint all_rounds = (sizes.blocks + K_GROUPS - 1u) / K_GROUPS;
    uint rounds_each = (all_rounds + SPLITS - 1u) / SPLITS;
    uint first_round = group.z * rounds_each;
    uint end_round = min(first_round + rounds_each, all_rounds);
    uint rounds = end_round > first_round ? end_round - first_round : 0u;
    uint first_block = first_round * K_GROUPS + team;

    BatchSums sums;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 16u; ++n) {
            if (r < ROW_BLOCKS && n < TILES) {
                clear_sums(&sums.tile[r][n]);
            }
        }
    }
    Weights weights;
    weights.scales = scales;
    weights.mins = mins;
    weights.supers = supers;
    weights.blocks = sizes.blocks;
    weights.groups = sizes.groups;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        // Gate and up, or neighbours; a SIMD-group past the last rows repeats them and stores nothing.
        uint row_block = GATED ? min(first_row_block, row_blocks - 1u) + r * row_blocks
                               : min(first_row_block + r, row_blocks - 1u);
        weights.row_block[r] = row_block;
        weights.codes[r] = codes + ulong(row_block * sizes.blocks) * (32u * code_bits());
    }
    Fetched fetched[4];
    UNROLL
    for (uint d = 0u; d < 4u; ++d) {
        if (d < DEPTH) {
            fetch(&weights, first_block + d * K_GROUPS, lane, &fetched[d]);
        }
    }
    // Weights are nobody's output, so they are on their way before the dispatch that makes x is done.
    wait_for_previous();
    // Columns past a split's last are not its own.
    uint columns = min(sizes.columns, end_round * K_GROUPS * 64u);
    uint column = first_block * 64u + lane % 8u * 8u;
    PiecePlaces places;
    UNROLL
    for (uint p = 0u; p < 8u; ++p) {
        // Tokens past the last repeat it: their sums are never stored.
        uint token = (row_group + p / 2u * ROW_GROUPS) * 8u + p % 2u * 4u + lane / 8u;
        places.from[p] = min(token, tokens - 1u) * sizes.x_stride;
    }
    DEVICE(const T) x_here = x + (ulong(first_token) * sizes.x_stride + column);
    THREADGROUP(half) staged =
        threadgroup_cast(half, scratch) + team * STAGES * staged_elements(TILES);
    TeamTokens all_tokens = team_tokens(staged, TILES);
    Pieces ahead[2];
    load_pieces(x_here, &places, column < columns, &ahead[0]);
    stage_pieces(staged, &ahead[0], row_group, lane);
    tokens_staged();
    UNROLL
    for (uint a = 0u; a < 2u; ++a) {
        if (a < AHEAD) {
            x_here = x_here + K_GROUPS * 64u;
            column += K_GROUPS * 64u;
            load_pieces(x_here, &places, column < columns, &ahead[a]);
        }
    }
    uint place = 0u;
    HalfBlock low;
    HalfBlock high;
    uint zero = sizes.groups >> 31u;
    for (uint i = 0u; i < rounds; i += DEPTH) {
        Fetched next[4];
        UNROLL
        for (uint d = 0u; d < 4u; ++d) {
            if (d < DEPTH) {
                fetch(&weights, first_block + (i + DEPTH + d) * K_GROUPS, lane, &next[d]);
            }
        }
        UNROLL
        for (uint d = 0u; d < 4u; ++d) {
            if (d < DEPTH) {
                // The matrix units are at the half block before, from `high`.
                decode(&fetched[d], 0u, &low);
                // This round's tokens are there, and nobody is at the round before the last any more, whose
                // place the next round's take.
                barrier_team(team, ROW_GROUPS * 32u);
                TeamTokens unit = team_tokens_at(all_tokens, place * staged_elements(TILES));
                multiply_half(&sums, &low, unit, 0u, lane);
                place = place + 1u == STAGES ? 0u : place + 1u;
                uint a = AHEAD == 2u ? d % 2u : 0u;
                stage_pieces(staged + place * staged_elements(TILES), &ahead[a], row_group, lane);
                tokens_staged();
                x_here = x_here + K_GROUPS * 64u;
                column += K_GROUPS * 64u;
                load_pieces(x_here, &places, column < columns, &ahead[a]);
                team_wait<1>();
                decode(&fetched[d], 1u, &high);
                multiply_half(&sums, &high, unit, 1u, lane);
                team_wait<1>();
            }
        }
        // Weights that are not decoded are multiplied where they lie, and must not change before that is done.
        if ((CODE == CODE_F16 || CODE == CODE_BF16) && SCALE == SCALE_NONE) {
            team_wait<0>();
        }
        UNROLL
        for (uint d = 0u; d < 4u; ++d) {
            if (d < DEPTH) {
                settle(&next[d], zero, &fetched[d]);
            }
        }
    }
    team_wait<0>();

    // The teams add up through threadgroup memory: [team][token][row].
    uint team_size = sums_stride() * tiles_at_once() * 8u;
    UNROLL
    for (uint first = 0u; first < 16u; ++first) {
        if (first < TILES && first % tiles_at_once() == 0u) {
            barrier_threadgroup();
            UNROLL
            for (uint n = 0u; n < 16u; ++n) {
                UNROLL
                for (uint r = 0u; r < 2u; ++r) {
                    UNROLL
                    for (uint e = 0u; e < 4u; ++e) {
                        if (r < ROW_BLOCKS && n < tiles_at_once() && first + n < TILES) {
                            uint row = (row_group * ROW_BLOCKS + r) * 16u + fragment_row(lane) + 8u * (e / 2u);
                            uint token = n * 8u + 2u * fragment_quad(lane) + e % 2u;
                            scratch[team * team_size + token * sums_stride() + row] =
                                sum_element(&sums.tile[r][(first + n) % 16u], e) * sizes.factor;
                        }
                    }
                }
            }
            barrier_threadgroup();
            for (uint i = thread_index; i < output_rows() * tiles_at_once() * 8u; i += threads.x) {
                uint local = i % output_rows();
                uint here = i / output_rows();
                uint token = first * 8u + here;
                uint row = group.x * output_rows() + local;
                if (row < sizes.rows && token < tokens) {
                    // Gate and up are the two row blocks of a SIMD-group.
                    uint at = here * sums_stride() + (GATED ? local / 16u * 32u + local % 16u : local);
                    float gate = 0.0f;
                    float up = 0.0f;
                    for (uint k = 0u; k < K_GROUPS; ++k) {
                        gate = gate + scratch[k * team_size + at];
                        if (GATED) {
                            up = up + scratch[k * team_size + at + 16u];
                        }
                    }
                    ulong token_of_all = first_token + token;
                    if (SPLITS == 1u) {
                        finish(y, token_of_all * sizes.y_stride + row, bias, sizes.rows, row, gate, up);
                    } else {
                        ulong plane = ulong(sizes.tokens) * sizes.rows;
                        ulong to = group.z * (GATED ? 2u : 1u) * plane + token_of_all * sizes.rows + row;
                        partial[to] = gate;
                        if (GATED) {
                            partial[to + plane] = up;
                        }
                    }
                }
            }
        }
    }
}

// Adds up the parts of a split product and finishes it. partial: [SPLITS, 1 or 2 (GATED), tokens, rows]. One thread an
// element of y along x.
kernel void gemm_batch_reduce(
    IN(float) partial [[buffer(0)]],
    IN_OPTIONAL(float) bias [[buffer(1)]],
    INOUT(T) y [[buffer(2)]],
    INLINE(GemmBatchArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    GemmBatchArgs sizes = args;
    ulong i = ulong(group.x) * threads.x + thread_index;
    ulong plane = ulong(sizes.rows) * sizes.tokens;
    if (i < plane) {
        float gate = 0.0f;
        float up = 0.0f;
        for (uint split = 0u; split < SPLITS; ++split) {
            gate = gate + partial[split * (GATED ? 2u : 1u) * plane + i];
            if (GATED) {
                up = up + partial[(split * 2u + 1u) * plane + i];
            }
        }
        uint row = uint(i % sizes.rows);
        finish(y, i / sizes.rows * sizes.y_stride + row, bias, sizes.rows, row, gate, up);
    }
}
