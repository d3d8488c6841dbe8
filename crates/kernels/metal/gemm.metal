// Fused dequantise-GEMM: y[m, n] = epilogue(Σ_k W[n, k] · x[m, k] + bias[n]), weights decoded in registers, products by
// the matrix units, f32 sums.
//
// The design is Marlin's (Frantar et al. 2024, "MARLIN", §3) with weights as the *first* operand: 16 rows of W
// fill the 16 rows of an mma, and 8 tokens its columns, so that one token wastes half as
// much of the matrix unit as it would the other way round, and sums of a row lie in one lane, where
// its scale is. Scales are applied to f32 sums, not to f16 weights: no rounding, and no extra
// instruction per weight.

ELEMENTS(T, half, bf16);

// Sizes of one call.
struct GemmArgs {
    uint rows;        // Rows of W; of the gate alone where GATED.
    uint columns;     // Columns of W, a multiple of 8 (of 4 where not STAGED).
    uint tokens;      // Rows of x.
    uint x_stride;    // Elements from one row of x to the next, a multiple of 8 (of 4 where not STAGED).
    uint y_stride;    // Elements from one row of y to the next.
    uint blocks;      // Blocks of 64 columns, padding included.
    uint groups;      // Scales of a row.
    float factor;     // Of all weights.
    float epsilon;    // Added to the mean square (NORM_IN).
    float offset;     // Added to the next norm's weight (NORM_OUT).
};

// What a code is: FragmentCode.
SPECIALISE(uint, CODE, 0);
// Subtracted from integer codes.
SPECIALISE(int, OFFSET, 1);
// What scales are: FragmentScale.
SPECIALISE(uint, SCALE, 2);
// What minimums are: FragmentMin.
SPECIALISE(uint, MIN, 3);
// Columns per scale; 0 where a row has one.
SPECIALISE(uint, GROUP, 4);
// Tiles of 8 tokens of a SIMD-group: 1, 2, 4 or 8.
SPECIALISE(uint, TILES, 5);
// Blocks of 16 rows of a SIMD-group: 1 or 2; 2 where GATED.
SPECIALISE(uint, ROW_BLOCKS, 6);
// SIMD-groups of a threadgroup along the rows.
SPECIALISE(uint, ROW_GROUPS, 7);
// SIMD-groups of a threadgroup along k: each takes every K_GROUPS-th block.
SPECIALISE(uint, K_GROUPS, 8);
// Blocks that a SIMD-group asks for ahead: 1, 2 or 4.
SPECIALISE(uint, DEPTH, 9);
// x goes through threadgroup memory; otherwise each lane reads it where it lies.
SPECIALISE(bool, STAGED, 10);
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
// Work comes in units of 128 columns instead of 64: half as many scales to apply where a group has that many.
SPECIALISE(bool, WIDE, 16);
// Rounds of x in threadgroup memory at a time (STAGED): 2, 3 or 4. An L2 read takes longer than a round's products, so
// a GPU with room for more asks for x further ahead.
SPECIALISE(uint, STAGES, 17);
// Scales multiply the f16 weights instead of the f32 sums, as Marlin's do: one rounding to f16 a weight, but half the
// accumulators, which is what a SIMD-group with many tiles runs out of. Only f16 scales without minimums.
SPECIALISE(bool, PRESCALED, 18);
// x is what a norm makes of a residual but for the factor 1 / rms, which the sums get: `squares` says what it is.
SPECIALISE(bool, NORM_IN, 19);
// y is a residual that a norm comes after: y times the norm's weight goes to `scaled`, and the squares to `squares_out`.
SPECIALISE(bool, NORM_OUT, 20);
// Units that a SIMD-group has on their way in threadgroup memory: 2, 4 or 8; 0: DEPTH in registers. Only 4-bit codes with f16 scales
// and no minimums, WIDE, not STAGED, and columns that fill every unit.
SPECIALISE(uint, RING, 21);

// Of matrix fragments.
typedef T Operand;

#include "gemm_units.h"

// W in the fragment layout (codes, scales, mins, supers: crates/formats/src/fragment/), x: [tokens, columns], bias:
// [rows] (gate and up one after the other, up from a multiple of 16), y: [tokens, rows], partial: [SPLITS, tokens, rows]
// f32 ([SPLITS, 2, tokens, rows] where GATED).
//
// Grid: x = row blocks over ROW_GROUPS · ROW_BLOCKS (gate row blocks where GATED: over ROW_GROUPS), y = tokens over TILES · 8, z = SPLITS.
// Weights stream from memory straight into registers, DEPTH blocks ahead; nothing else would read
// them, so threadgroup memory would only cost. Threadgroup memory (floats): STAGES rounds of x (STAGED), later the
// SIMD-groups' sums: K_GROUPS · ROW_GROUPS · ROW_BLOCKS · 16 · TILES · 8, and with one tile 8 for each SIMD-group.
// NORM_IN (one tile): squares: [tokens, columns / 16]. NORM_OUT: next_weight: [rows], scaled: [tokens, rows], squares_out:
// [tokens, rows / 16].
REQUIRES_SIMD_WIDTH(32)
kernel void gemm(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(T) x [[buffer(4)]],
    IN_OPTIONAL(float) bias [[buffer(5)]],
    INOUT(T) y [[buffer(6)]],
    INOUT_OPTIONAL(float) partial [[buffer(7)]],
    INLINE(GemmArgs) args [[buffer(8)]],
    IN_OPTIONAL(float) squares [[buffer(9)]],
    IN_OPTIONAL(float) next_weight [[buffer(10)]],
    INOUT_OPTIONAL(T) scaled [[buffer(11)]],
    INOUT_OPTIONAL(float) squares_out [[buffer(12)]],
    THREADGROUP(float) scratch [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]]) {
    // Threadgroups with four tiles leave room for the next dispatch's beside them, which then only
    // wait and keep this dispatch's own out: those say so at the end.
    if (TILES != 4u) {
        allow_next();
    }
    GemmArgs sizes = args;
    Scales scaling;
    scaling.scales = scales;
    scaling.mins = mins;
    scaling.supers = supers;
    uint k_group = simd_group % K_GROUPS;
    uint row_group = simd_group / K_GROUPS;
    uint row_blocks = (sizes.rows + 15u) / 16u;
    uint first_row_block = (group.x * ROW_GROUPS + row_group) * (GATED ? 1u : ROW_BLOCKS);
    uint first_token = group.y * TILES * 8u;
    uint tokens = sizes.tokens - first_token;

    // This threadgroup's rounds; the last one may have fewer units than SIMD-groups along k.
    uint units = (sizes.blocks + unit_blocks() - 1u) / unit_blocks();
    uint all_rounds = (units + K_GROUPS - 1u) / K_GROUPS;
    uint rounds_each = (all_rounds + SPLITS - 1u) / SPLITS;
    uint first_round = group.z * rounds_each;
    uint end_round = min(first_round + rounds_each, all_rounds);
    uint rounds = end_round > first_round ? end_round - first_round : 0u;
    uint unit = first_round * K_GROUPS + k_group;
    // Of which this SIMD-group has a unit in so many.
    uint count = rounds - (rounds > 0u && unit + (rounds - 1u) * K_GROUPS >= units ? 1u : 0u);
    if (keeps_places()) {
        count = kept(count);
    }

    Stream streams[2];
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        // Gate and up, or neighbours; a SIMD-group past the last rows repeats them and stores nothing.
        uint row_block = GATED ? min(first_row_block, row_blocks - 1u) + r * row_blocks
                               : min(first_row_block + r, row_blocks - 1u);
        streams[r].row_block = row_block;
        uint slot = fragment_row(lane) * 4u + fragment_quad(lane);
        streams[r].codes = codes + (row_block * sizes.blocks + unit * unit_blocks()) * (32u * code_bits()) +
                           slot * lane_words();
        streams[r].scale = 0u;
        if (scales_step()) {
            streams[r].scale = kept((row_block * sizes.groups + unit) * 8u + fragment_row(lane));
        }
    }
    uint round_blocks = K_GROUPS * unit_blocks();

    Totals totals;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 8u; ++n) {
            UNROLL
            for (uint e = 0u; e < 4u; ++e) {
                totals.element[r][n][e] = 0.0f;
            }
        }
    }

    Sums products;
    clear_all(&products);
    Fetched fetched[4];
    uint simd_groups = ROW_GROUPS * K_GROUPS;
    THREADGROUP(float) square_sums = scratch + simd_groups * ROW_BLOCKS * 16u * TILES * 8u;
    THREADGROUP(uint) ring =
        threadgroup_cast(uint, square_sums + simd_groups * 8u) + simd_group * RING * ring_unit_words();
    ROLLED
    for (uint d = 0u; d < RING; ++d) {
        if (d < count) {
            ring_fetch(
                streams, d * round_blocks, scaling, &sizes, unit + d * K_GROUPS, lane,
                ring + d * ring_unit_words());
        }
        copy_async_commit();
    }
    UNROLL
    for (uint d = 0u; d < 4u; ++d) {
        if (RING == 0u && d < DEPTH && d < count) {
            fetch(streams, d * round_blocks, scaling, &sizes, unit + d * K_GROUPS, lane, &fetched[d]);
        }
    }
    // The element of y that this thread finishes first, and what that takes besides sums.
    uint group_rows = ROW_GROUPS * ROW_BLOCKS * 16u;
    uint outputs = GATED ? ROW_GROUPS * 16u : group_rows;
    uint early_row = group.x * outputs + thread_index % outputs;
    uint early_token = thread_index / outputs;
    bool early = TILES == 1u && early_row < sizes.rows && early_token < min(tokens, 8u);
    uint early_weight = 0u;
    if (NORM_OUT && early) {
        early_weight = load_early(next_weight, early_row);
    }
    // What of x needs no x.
    THREADGROUP(T) staged = threadgroup_cast(T, scratch);
    uint stage_size = TILES * 8u * staged_stride();
    StagePlace pieces;
    TokenPlace staged_place;
    if (STAGED) {
        staged_place =
            kept_place(token_place(staged_stride(), 8u, lane), k_group * unit_blocks() * 64u);
        pieces = stage_start(
            x + first_token * sizes.x_stride, &sizes, tokens, first_round * round_columns(), thread_index);
        UNROLL
        for (uint i = 0u; i < STAGES; ++i) {
            stage_no_tokens(staged + i * stage_size, &pieces, thread_index);
        }
    }
    // Weights are nobody's output, so they are on their way before the dispatch that makes x is done.
    wait_for_previous();
    uint early_y = 0u;
    if (ACCUMULATE && early) {
        early_y = load_early(y, (first_token + early_token) * sizes.y_stride + early_row);
    }
    uint square_count = (sizes.columns + 15u) / 16u;
    DEVICE(const float) group_squares = squares;
    uint early_squares[EARLY_SQUARES];
    if (NORM_IN) {
        group_squares = group_squares + first_token * square_count;
        UNROLL
        for (uint i = 0u; i < EARLY_SQUARES; ++i) {
            uint at = thread_index + i * threads.x;
            early_squares[i] = at < square_count ? load_early(group_squares, at) : 0u;
        }
    }
    if (STAGED) {
        UNROLL
        for (uint i = 0u; i < 3u; ++i) {
            if (i + 1u < STAGES) {
                if (i < rounds) {
                    stage(&sizes, staged + i * stage_size, &pieces);
                }
                copy_async_commit();
            }
        }
        // Places of the round that is multiplied, and of the one before.
        uint held = 0u;
        uint freed = (STAGES - 1u) * stage_size;
        for (uint i = 0u; i < rounds; i += DEPTH) {
            UNROLL
            for (uint d = 0u; d < 4u; ++d) {
                if (d < DEPTH && (d == 0u || i + d < rounds)) {
                    // The round's x has arrived, and everybody is done with the one before, whose place
                    // the next one takes.
                    if (STAGES == 2u) {
                        copy_async_wait<0>();
                    } else if (STAGES == 3u) {
                        copy_async_wait<1>();
                    } else {
                        copy_async_wait<2>();
                    }
                    barrier_threadgroup();
                    if (i + d + STAGES - 1u < rounds) {
                        stage(&sizes, staged + freed, &pieces);
                    }
                    copy_async_commit();
                    if (i + d < count) {
                        multiply_unit<false, THREADGROUP(const T)>(
                            &fetched[d], staged + held, staged_stride(), staged_place, 0u, &products,
                            &totals);
                        if (i + d + DEPTH < count) {
                            fetch(
                                streams, (d + DEPTH) * round_blocks, scaling, &sizes,
                                unit + (i + d + DEPTH) * K_GROUPS, lane, &fetched[d]);
                        }
                    }
                    freed = held;
                    held = held == (STAGES - 1u) * stage_size ? 0u : held + stage_size;
                }
            }
            step_streams(streams, DEPTH * round_blocks);
        }
        barrier_threadgroup();
    } else if (RING != 0u) {
        TokenPlace place = token_place(sizes.x_stride, tokens, lane);
        DEVICE(const T) here = x + first_token * sizes.x_stride + unit * 128u;
        uint held = 0u;
        for (uint i = 0u; i < count; ++i) {
            if (RING == 2u) {
                copy_async_wait<1>();
            } else if (RING == 4u) {
                copy_async_wait<3>();
            } else {
                copy_async_wait<7>();
            }
            barrier_simdgroup();
            THREADGROUP(uint) unit_words = ring + held * ring_unit_words();
            ring_take(unit_words, lane, &fetched[0]);
            multiply_unit<false, DEVICE(const T)>(
                &fetched[0], here, sizes.x_stride, place, 0u, &products, &totals);
            // Every lane has its scales.
            barrier_simdgroup();
            if (i + RING < count) {
                ring_fetch(
                    streams, (i + RING) * round_blocks, scaling, &sizes, unit + (i + RING) * K_GROUPS, lane,
                    unit_words);
            }
            copy_async_commit();
            here = here + round_columns();
            held = held + 1u == RING ? 0u : held + 1u;
        }
    } else {
        TokenPlace place = token_place(sizes.x_stride, tokens, lane);
        DEVICE(const T) here = x + first_token * sizes.x_stride + unit * unit_blocks() * 64u;
        uint i = 0u;
        // Rounds after which as many again are to come need no bounds.
        for (; i + 2u * DEPTH <= count; i += DEPTH) {
            UNROLL
            for (uint d = 0u; d < 4u; ++d) {
                if (d < DEPTH) {
                    multiply_unit<false, DEVICE(const T)>(
                        &fetched[d], here + d * round_columns(), sizes.x_stride, place, 0u, &products,
                        &totals);
                    fetch(
                        streams, (d + DEPTH) * round_blocks, scaling, &sizes,
                        unit + (i + d + DEPTH) * K_GROUPS, lane, &fetched[d]);
                }
            }
            step_streams(streams, DEPTH * round_blocks);
            here = here + DEPTH * round_columns();
        }
        for (; i < count; i += DEPTH) {
            UNROLL
            for (uint d = 0u; d < 4u; ++d) {
                if (d < DEPTH && i + d < count) {
                    uint columns = sizes.columns - (unit + (i + d) * K_GROUPS) * unit_blocks() * 64u;
                    multiply_unit<true, DEVICE(const T)>(
                        &fetched[d], here + d * round_columns(), sizes.x_stride, place, columns,
                        &products, &totals);
                    if (i + d + DEPTH < count) {
                        fetch(
                            streams, (d + DEPTH) * round_blocks, scaling, &sizes,
                            unit + (i + d + DEPTH) * K_GROUPS, lane, &fetched[d]);
                    }
                }
            }
            step_streams(streams, DEPTH * round_blocks);
            here = here + DEPTH * round_columns();
        }
    }
    if (TILES == 4u) {
        allow_next();
    }

    // The SIMD-groups along k add up through threadgroup memory: [k group][token][row].
    uint group_size = group_rows * TILES * 8u;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 8u; ++n) {
            UNROLL
            for (uint e = 0u; e < 4u; ++e) {
                if (r < ROW_BLOCKS && n < TILES) {
                    uint row = (row_group * ROW_BLOCKS + r) * 16u + fragment_row(lane) + 8u * (e / 2u);
                    uint token = n * 8u + 2u * fragment_quad(lane) + e % 2u;
                    scratch[k_group * group_size + token * group_rows + row] =
                        PRESCALED ? sum_element(&products.tile[r][n], e) : totals.element[r][n][e];
                }
            }
        }
    }
    if (NORM_IN) {
        ROLLED
        for (uint token = 0u; token < min(tokens, 8u); ++token) {
            float sum = 0.0f;
            if (token == 0u) {
                UNROLL
                for (uint i = 0u; i < EARLY_SQUARES; ++i) {
                    sum = sum + early_float(early_squares[i], 0.0f);
                }
            }
            uint done = token == 0u ? EARLY_SQUARES : 0u;
            sum = simd_sum(
                sum + add_squares(group_squares, square_count, token, done, thread_index, threads.x));
            if (lane == 0u) {
                square_sums[token * simd_groups + simd_group] = sum;
            }
        }
    }
    barrier_threadgroup();
    for (uint i = thread_index; i < outputs * TILES * 8u; i += threads.x) {
        uint local = i % outputs;
        uint token = i / outputs;
        uint row = group.x * outputs + local;
        bool inside = row < sizes.rows && token < tokens;
        float square = 0.0f;
        if (inside) {
            // Gate and up are the two row blocks of a SIMD-group.
            uint at = token * group_rows + (GATED ? local / 16u * 32u + local % 16u : local);
            float first = 0.0f;
            float second = 0.0f;
            for (uint k = 0u; k < K_GROUPS; ++k) {
                first = first + scratch[k * group_size + at];
                if (GATED) {
                    second = second + scratch[k * group_size + at + 16u];
                }
            }
            if (NORM_IN) {
                float sum = 0.0f;
                for (uint g = 0u; g < simd_groups; ++g) {
                    sum = sum + square_sums[token * simd_groups + g];
                }
                float scale = rsqrt(sum / float(sizes.columns) + sizes.epsilon);
                first = first * scale;
                second = second * scale;
            }
            if (SPLITS == 1u) {
                float factor = sum_factor(&sizes);
                float value = finished(bias, sizes.rows, row, first * factor, second * factor);
                uint place = (first_token + token) * sizes.y_stride + row;
                bool known = early && i == thread_index;
                if (ACCUMULATE) {
                    value = value + (known ? early_float(early_y, T()) : load_float(y, place));
                }
                store_float(y, place, value);
                if (NORM_OUT) {
                    float weight = known ? early_float(early_weight, 0.0f) : next_weight[row];
                    float weighted = value * (sizes.offset + weight);
                    // As far as T reaches: an infinity would spread to every sum.
                    weighted = clamp(weighted, -operand_reach(T()), operand_reach(T()));
                    store_float(scaled, (first_token + token) * sizes.rows + row, weighted);
                    square = value * value;
                }
            } else {
                uint plane = (GATED ? 2u : 1u) * sizes.tokens * sizes.rows;
                uint place = group.z * plane + (first_token + token) * sizes.rows + row;
                partial[place] = first;
                if (GATED) {
                    partial[place + sizes.tokens * sizes.rows] = second;
                }
            }
        }
        if (NORM_OUT) {
            // Sixteen neighbouring lanes have the rows of one block: `outputs` is a multiple of 16.
            square = square + simd_shuffle_xor(square, 1u);
            square = square + simd_shuffle_xor(square, 2u);
            square = square + simd_shuffle_xor(square, 4u);
            square = square + simd_shuffle_xor(square, 8u);
            if (inside && lane % 16u == 0u) {
                squares_out[(first_token + token) * row_blocks + row / 16u] = square;
            }
        }
    }
}

// Adds up the parts of a split product and finishes it. partial: [SPLITS, 1 or 2 (GATED), tokens, rows]. One thread an element of
// y along x.
kernel void gemm_reduce(
    IN(float) partial [[buffer(0)]],
    IN_OPTIONAL(float) bias [[buffer(1)]],
    INOUT(T) y [[buffer(2)]],
    INLINE(GemmArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    GemmArgs sizes = args;
    uint i = group.x * threads.x + thread_index;
    if (i < sizes.rows * sizes.tokens) {
        uint plane = sizes.rows * sizes.tokens;
        float first = 0.0f;
        float second = 0.0f;
        for (uint split = 0u; split < SPLITS; ++split) {
            first = first + partial[split * (GATED ? 2u : 1u) * plane + i];
            if (GATED) {
                second = second + partial[(split * 2u + 1u) * plane + i];
            }
        }
        float factor = sum_factor(&sizes);
        uint row = i % sizes.rows;
        ulong place = ulong(i / sizes.rows) * sizes.y_stride + row;
        finish(y, place, bias, sizes.rows, row, first * factor, second * factor);
    }
}
