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

#include "weights.h"
#include "fragment.h"

// Blocks of a unit: what a SIMD-group multiplies between two scalings.
static inline uint unit_blocks() { return WIDE ? 2u : 1u; }

// Groups that a unit has scales for.
static inline uint groups_in_unit() { return GROUP == 16u ? 4u : GROUP == 32u ? 2u : 1u; }

// Everything of one unit that comes from memory, for one lane.
struct Fetched {
    Slot slot[2][2];
    StoredScale scale[2][4];
};

// Where one lane reads a row block's weights.
struct Stream {
    DEVICE(const uint) codes;
    uint row_block;
};

struct Scales {
    DEVICE(const uchar) scales;
    DEVICE(const uchar) mins;
    DEVICE(const half) supers;
};

// Reads the unit whose codes are `ahead` blocks past the stream's place, and which is unit `unit` of its row block.
static inline void fetch(
    THREAD(const Stream) streams, uint ahead, Scales weights, THREAD(const GemmArgs) args,
    uint unit, uint lane, THREAD(Fetched) out) {
    uint g = fragment_row(lane);
    uint slot = g * 4u + fragment_quad(lane);
    uint words = 32u * code_bits();
    uint supers_per_row = (args->blocks + 3u) / 4u;
    uint column = unit * unit_blocks() * 64u;
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            UNROLL
            for (uint b = 0u; b < 2u; ++b) {
                if (b < unit_blocks()) {
                    load_slot(streams[r].codes + (ahead + b) * words, slot, &out->slot[r][b]);
                }
            }
            if (SCALE != SCALE_NONE) {
                uint row_block = streams[r].row_block;
                uint group = row_block * args->groups + (GROUP == 0u ? 0u : column / GROUP);
                UNROLL
                for (uint i = 0u; i < 4u; ++i) {
                    if (i < groups_in_unit()) {
                        load_scale(
                            weights.scales, weights.mins, weights.supers, (group + i) * 8u + g,
                            super_place(row_block, supers_per_row, column, g), &out->scale[r][i]);
                    }
                }
            }
        }
    }
}

struct Sums {
    SumFragment tile[2][8];
};

static inline void clear_all(THREAD(Sums) sums) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 8u; ++n) {
            if (r < ROW_BLOCKS && n < TILES) {
                clear_sums(&sums->tile[r][n]);
            }
        }
    }
}

// What a lane keeps for good: plain floats, so that scaling them is the same everywhere.
struct Totals {
    float element[2][8][4];
};

// totals += scale · products + min · Σ x. The sums of x come from a product with a fragment of
// ones, in the very lanes that need them.
static inline void apply_scales(
    THREAD(Totals) totals, THREAD(Sums) products, THREAD(SumFragment) x_sums,
    THREAD(const Fetched) fetched, uint i) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            float2 scale = scale_of(&fetched->scale[r][i]);
            float2 min = min_of(&fetched->scale[r][i]);
            UNROLL
            for (uint n = 0u; n < 8u; ++n) {
                UNROLL
                for (uint e = 0u; e < 4u; ++e) {
                    if (n < TILES) {
                        float total = totals->element[r][n][e];
                        total = fma(e < 2u ? scale.x : scale.y, sum_element(&products->tile[r][n], e), total);
                        if (MIN != MIN_NONE) {
                            total = fma(e < 2u ? min.x : min.y, sum_element(&x_sums[n], e), total);
                        }
                        totals->element[r][n][e] = total;
                    }
                }
            }
        }
    }
}

// Multiplies one unit. X is a pointer to x at the unit's first column and the tile's first token; where CHECKED, only
// `columns` columns are left there.
template <bool CHECKED, typename X>
static inline void multiply_unit(
    THREAD(const Fetched) fetched, X x, uint stride, TokenPlace place, uint columns,
    THREAD(Sums) products, THREAD(Totals) totals) {
    SumFragment x_sums[8];
    WeightFragment ones;
    UNROLL
    for (uint i = 0u; i < 4u; ++i) {
        ones.pair[i] = 0x3c003c00u;
    }
    UNROLL
    for (uint step = 0u; step < 8u; ++step) {
        if (step < 4u * unit_blocks()) {
            bool begins = step == 0u || GROUP == 16u || (GROUP == 32u && step == 2u);
            bool ends = step == 4u * unit_blocks() - 1u || GROUP == 16u || (GROUP == 32u && step == 1u);
            if (begins && !PRESCALED) {
                clear_all(products);
                UNROLL
                for (uint n = 0u; n < 8u; ++n) {
                    if (MIN != MIN_NONE && n < TILES) {
                        clear_sums(&x_sums[n]);
                    }
                }
            }
            WeightFragment weights[2];
            UNROLL
            for (uint r = 0u; r < 2u; ++r) {
                if (r < ROW_BLOCKS) {
                    UNROLL
                    for (uint i = 0u; i < 4u; ++i) {
                        uint pair = slot_pair(
                            &fetched->slot[r][step / 4u], i % 2u, 2u * (step % 4u) + i / 2u);
                        if (PRESCALED) {
                            uint group = GROUP == 16u ? step : GROUP == 32u ? step / 2u : 0u;
                            pair = prescaled_pair(pair, fetched->scale[r][group].scale.x, i % 2u);
                        }
                        weights[r].pair[i] = pair;
                    }
                }
            }
            UNROLL
            for (uint n = 0u; n < 8u; ++n) {
                if (n < TILES) {
                    TokenFragment tokens;
                    X here = x + n * 8u * stride + step * 16u;
                    if (CHECKED) {
                        uint left = columns > step * 16u ? columns - step * 16u : 0u;
                        load_tokens_before(here, place, left, &tokens);
                    } else {
                        load_tokens(here, place, &tokens);
                    }
                    UNROLL
                    for (uint r = 0u; r < 2u; ++r) {
                        if (r < ROW_BLOCKS) {
                            multiply_accumulate(&products->tile[r][n], &weights[r], &tokens);
                        }
                    }
                    if (MIN != MIN_NONE) {
                        multiply_accumulate(&x_sums[n], &ones, &tokens);
                    }
                }
            }
            if (ends && !PRESCALED) {
                apply_scales(
                    totals, products, x_sums, fetched,
                    GROUP == 16u ? step : GROUP == 32u ? step / 2u : 0u);
            }
        }
    }
}

// Columns of a round: every SIMD-group along k takes a unit.
static inline uint round_columns() { return K_GROUPS * unit_blocks() * 64u; }

// Elements of a staged row of x: the columns of one round, and padding that puts rows 32 bytes apart in
// the banks, so that a load of 8 bytes a lane meets no bank twice.
static inline uint staged_stride() { return round_columns() + 16u; }

// Copies one round of x, tokens × round_columns() from `column`, in pieces of 16 bytes; what lies outside x
// is zero. A thread has the same piece of every so-many-th token: 4 · ROW_GROUPS / unit_blocks() of them fit into
// one pass of the threadgroup.
static inline void stage(
    DEVICE(const T) x, THREAD(const GemmArgs) args, uint tokens, uint column,
    THREADGROUP(T) staged, uint thread_index) {
    uint pieces = round_columns() / 8u;
    uint tokens_at_once = 4u * ROW_GROUPS / unit_blocks();
    uint first = thread_index / pieces;
    uint k = column + thread_index % pieces * 8u;
    DEVICE(const T) source = x + first * args->x_stride + k;
    THREADGROUP(T) destination = staged + first * staged_stride() + thread_index % pieces * 8u;
    bool inside = k < args->columns;
    UNROLL
    for (uint pass = 0u; pass * tokens_at_once < TILES * 8u; ++pass) {
        uint token = first + pass * tokens_at_once;
        if (token < TILES * 8u) {
            if (inside && token < tokens) {
                copy_async(destination, source);
            } else {
                *threadgroup_cast(uint4, destination) = make_uint4(0u, 0u, 0u, 0u);
            }
        }
        source = source + tokens_at_once * args->x_stride;
        destination = destination + tokens_at_once * staged_stride();
    }
}

static inline float gate_activation(float x) {
    if (ACTIVATION == 0u) {
        return x / (1.0f + exp(-x));
    }
    float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}

// Bias, activation, residual: from sums (of gate and up) to an element of y, which it returns.
static inline float finish(
    DEVICE(T) y, DEVICE(const float) bias, THREAD(const GemmArgs) args, uint token, uint row, float first,
    float second) {
    float factor = args->factor * (PRESCALED ? 1.0f : code_factor());
    first = first * factor;
    second = second * factor;
    if (HAS_BIAS) {
        first = first + bias[row];
        if (GATED) {
            second = second + bias[(args->rows + 15u) / 16u * 16u + row];
        }
    }
    float value = GATED ? gate_activation(first) * second : first;
    uint at = token * args->y_stride + row;
    if (ACCUMULATE) {
        value = value + load_float(y, at);
    }
    store_float(y, at, value);
    return value;
}

// A norm between two products needs no dispatch of its own: norm(y) = y · weight / rms(y), so that the product before
// it writes y · weight and the squares of each 16 rows, and the product after it divides its sums by rms(y). That is
// the same arithmetic in another order; the parts are added up in a fixed one, so a result does not depend on which
// threadgroup was first.

// This thread's part of the squares of each token, of [tokens, columns / 16].
static inline void load_squares(
    DEVICE(const float) squares, THREAD(const GemmArgs) args, uint first_token, uint tokens, uint thread_index,
    uint threads, THREAD(float) parts) {
    uint count = (args->columns + 15u) / 16u;
    UNROLL
    for (uint token = 0u; token < 8u; ++token) {
        parts[token] = 0.0f;
        if (token < tokens) {
            for (uint i = thread_index; i < count; i += threads) {
                parts[token] = parts[token] + squares[(first_token + token) * count + i];
            }
        }
    }
}

// W in the fragment layout (codes, scales, mins, supers: crates/formats/src/fragment.rs), x: [tokens, columns], bias:
// [rows] (gate and up one after the other, up from a multiple of 16), y: [tokens, rows], partial: [SPLITS, rows to a
// multiple of 16 (gate and up), tokens] f32.
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

    Stream streams[2];
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        // Gate and up, or neighbours; a SIMD-group past the last rows repeats them and stores nothing.
        uint row_block = GATED ? min(first_row_block, row_blocks - 1u) + r * row_blocks
                               : min(first_row_block + r, row_blocks - 1u);
        streams[r].row_block = row_block;
        streams[r].codes =
            codes + (row_block * sizes.blocks + unit * unit_blocks()) * (32u * code_bits());
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
    UNROLL
    for (uint d = 0u; d < 4u; ++d) {
        if (d < DEPTH && d < count) {
            fetch(streams, d * round_blocks, scaling, &sizes, unit + d * K_GROUPS, lane, &fetched[d]);
        }
    }
    // Weights are nobody's output, so they are on their way before the dispatch that makes x is done.
    wait_for_previous();
    float square_parts[8];
    if (NORM_IN) {
        load_squares(squares, &sizes, first_token, tokens, thread_index, threads.x, square_parts);
    }
    if (STAGED) {
        THREADGROUP(T) staged = threadgroup_cast(T, scratch);
        uint stage_size = TILES * 8u * staged_stride();
        TokenPlace place = token_place(staged_stride(), 8u, lane);
        uint column = first_round * round_columns();
        DEVICE(const T) first_x = x + first_token * sizes.x_stride;
        UNROLL
        for (uint i = 0u; i < 3u; ++i) {
            if (i + 1u < STAGES) {
                if (i < rounds) {
                    stage(
                        first_x, &sizes, tokens, column + i * round_columns(),
                        staged + i * stage_size, thread_index);
                }
                copy_async_commit();
            }
        }
        uint held = 0u;
        for (uint i = 0u; i < rounds; i += DEPTH) {
            UNROLL
            for (uint d = 0u; d < 4u; ++d) {
                if (d < DEPTH && i + d < rounds) {
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
                    uint next = i + d + STAGES - 1u;
                    uint freed = held == 0u ? STAGES - 1u : held - 1u;
                    if (next < rounds) {
                        stage(
                            first_x, &sizes, tokens, column + next * round_columns(),
                            staged + freed * stage_size, thread_index);
                    }
                    copy_async_commit();
                    if (i + d < count) {
                        multiply_unit<false, THREADGROUP(const T)>(
                            &fetched[d], staged + held * stage_size + k_group * unit_blocks() * 64u,
                            staged_stride(), place, 0u, &products, &totals);
                        if (i + d + DEPTH < count) {
                            fetch(
                                streams, (d + DEPTH) * round_blocks, scaling, &sizes,
                                unit + (i + d + DEPTH) * K_GROUPS, lane, &fetched[d]);
                        }
                    }
                    held = held + 1u == STAGES ? 0u : held + 1u;
                }
            }
            streams[0].codes = streams[0].codes + DEPTH * round_blocks * (32u * code_bits());
            streams[1].codes = streams[1].codes + DEPTH * round_blocks * (32u * code_bits());
        }
        barrier_threadgroup();
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
            streams[0].codes = streams[0].codes + DEPTH * round_blocks * (32u * code_bits());
            streams[1].codes = streams[1].codes + DEPTH * round_blocks * (32u * code_bits());
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
            streams[0].codes = streams[0].codes + DEPTH * round_blocks * (32u * code_bits());
            streams[1].codes = streams[1].codes + DEPTH * round_blocks * (32u * code_bits());
            here = here + DEPTH * round_columns();
        }
    }
    if (TILES == 4u) {
        allow_next();
    }

    // The SIMD-groups along k add up through threadgroup memory: [k group][token][row].
    uint group_rows = ROW_GROUPS * ROW_BLOCKS * 16u;
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
    uint simd_groups = ROW_GROUPS * K_GROUPS;
    THREADGROUP(float) square_sums = scratch + K_GROUPS * group_size;
    if (NORM_IN) {
        UNROLL
        for (uint token = 0u; token < 8u; ++token) {
            float sum = token < tokens ? simd_sum(square_parts[token]) : 0.0f;
            if (lane == 0u) {
                square_sums[token * simd_groups + simd_group] = sum;
            }
        }
    }
    barrier_threadgroup();
    uint outputs = GATED ? ROW_GROUPS * 16u : group_rows;
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
                float value = finish(y, bias, &sizes, first_token + token, row, first, second);
                if (NORM_OUT) {
                    float weighted = value * (sizes.offset + next_weight[row]);
                    // As far as half reaches: an infinity would spread to every sum.
                    weighted = min(max(weighted, -65504.0f), 65504.0f);
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
        finish(y, bias, &sizes, i / sizes.rows, i % sizes.rows, first, second);
    }
}
