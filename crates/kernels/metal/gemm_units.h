// What a SIMD-group of gemm does with its units: ask for them, multiply them, scale sums; and what a norm between two products takes.
//
// gemm.metal includes this, with its constants, GemmArgs and Operand in front.

#define E2M1_MULTIPLIED
#include "weights.h"
#include "fragment.h"
#include "operands.h"
#include "prefetch.h"
#include "epilogue.h"

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
    // Index of the unit's pair of scales (scales_step()).
    uint scale;
};

// Whether a lane keeps where its codes and scales are and steps from one round to the next: fewer instructions, but registers, which
// SIMD-groups with several units on their way in registers of their own have not. Integers that are not staged are faster for it alone, and
// slower among the products of a model.
static inline bool keeps_places() {
    return STAGED || (CODE == CODE_FP4 && RING == 0u && ROW_BLOCKS == 1u && DEPTH == 1u);
}

// Words from one lane's codes to the next one's, where the stream's place is the lane's own; 0 where it is the block's. Where a plane of
// high bits follows, one place does not do.
static inline uint lane_words() {
    return !keeps_places() ? 0u : code_bits() % 4u == 0u ? 4u : code_bits() == 2u ? 2u : 0u;
}

// Whether each unit has a pair of scales of its own for every row, whose places are kept.
static inline bool scales_step() { return keeps_places() && GROUP == unit_blocks() * 64u; }

struct Scales {
    DEVICE(const uchar) scales;
    DEVICE(const uchar) mins;
    DEVICE(const half) supers;
};

// The streams' places go on by so many blocks, of whole units.
static inline void step_streams(THREAD(Stream) streams, uint blocks) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        streams[r].codes = streams[r].codes + blocks * (32u * code_bits());
        if (scales_step()) {
            streams[r].scale += blocks / unit_blocks() * 8u;
        }
    }
}

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
                    load_slot(
                        streams[r].codes + (ahead + b) * words, lane_words() == 0u ? slot : 0u,
                        &out->slot[r][b]);
                }
            }
            if (SCALE != SCALE_NONE) {
                uint row_block = streams[r].row_block;
                uint group = row_block * args->groups + (GROUP == 0u ? 0u : column / GROUP);
                UNROLL
                for (uint i = 0u; i < 4u; ++i) {
                    if (i < groups_in_unit()) {
                        uint place = scales_step() ? streams[r].scale + ahead / unit_blocks() * 8u
                                                   : (group + i) * 8u + g;
                        load_scale(
                            weights.scales, weights.mins, weights.supers, place,
                            super_place(row_block, supers_per_row, column, g), &out->scale[r][i]);
                    }
                }
            }
        }
    }
}

// ---- Weights in threadgroup memory ---------------------------------------------------------------
//
// Until x is there, memory is as busy as the units on their way keep it; and while the last threadgroups of one product finish, only
// those of the next that already have a place. Registers hold too few of either: a threadgroup whose units wait in threadgroup memory
// needs fewer threads, so that more of them, and of the products to come, have a place. A lane copies what it will read itself, but
// for the scales. Metal has no asynchronous copies, and stays with registers.

// Words of one row block of a unit: two blocks of codes, 16 scales.
#define RING_ROW_WORDS 264u

static inline uint ring_unit_words() { return ROW_BLOCKS * RING_ROW_WORDS; }

static inline void ring_fetch(
    THREAD(const Stream) streams, uint ahead, Scales weights, THREAD(const GemmArgs) args, uint unit,
    uint lane, THREADGROUP(uint) held) {
    uint slot = fragment_row(lane) * 4u + fragment_quad(lane);
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            THREADGROUP(uint) row = held + r * RING_ROW_WORDS;
            UNROLL
            for (uint b = 0u; b < 2u; ++b) {
                copy_async(row + b * 128u + lane * 4u, streams[r].codes + (ahead + b) * 128u + slot * 4u);
            }
            if (lane < 2u) {
                uint group = streams[r].row_block * args->groups + (GROUP == 0u ? 0u : unit * 128u / GROUP);
                copy_async(
                    row + 256u + lane * 4u, device_cast(const uint, weights.scales) + group * 8u + lane * 4u);
            }
        }
    }
}

static inline void ring_take(THREADGROUP(const uint) held, uint lane, THREAD(Fetched) out) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        if (r < ROW_BLOCKS) {
            THREADGROUP(const uint) row = held + r * RING_ROW_WORDS;
            UNROLL
            for (uint b = 0u; b < 2u; ++b) {
                uint4 words = *threadgroup_cast(const uint4, row + b * 128u + lane * 4u);
                out->slot[r][b].word[0] = words.x;
                out->slot[r][b].word[1] = words.y;
                out->slot[r][b].word[2] = words.z;
                out->slot[r][b].word[3] = words.w;
            }
            out->scale[r][0].scale.x = row[256u + fragment_row(lane)];
        }
    }
}

struct Sums {
    SumFragment tile[2][8];
};

// A product waits for the one before it where it adds to the same sums. Where few weights are in registers there are some for several
// sums, which take the places of tiles that are not there, and that many products are under way at once. Where there are not, fewer
// threads would fit, which costs more.
static inline bool has_registers() {
    return TILES == 1u && !STAGED && !PRESCALED && (RING != 0u || (ROW_BLOCKS == 1u && DEPTH == 1u));
}

static inline uint chains() {
    uint steps = GROUP == 16u ? 1u : GROUP == 32u ? 2u : 4u;
    return !has_registers() ? 1u : min(ROW_BLOCKS == 1u ? 4u : 2u, steps);
}

static inline void clear_all(THREAD(Sums) sums) {
    UNROLL
    for (uint r = 0u; r < 2u; ++r) {
        UNROLL
        for (uint n = 0u; n < 8u; ++n) {
            if (r < ROW_BLOCKS && n < TILES * chains()) {
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
                        float product = sum_element(&products->tile[r][n], e);
                        UNROLL
                        for (uint c = 1u; c < 4u; ++c) {
                            if (c < chains()) {
                                product = product + sum_element(&products->tile[r][c], e);
                            }
                        }
                        total = fma(e < 2u ? scale.x : scale.y, product, total);
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
        ones.pair[i] = operand_one(T());
    }
    // So is x, all at once: threads would wait for one part after the other.
    TokenFragment early[8];
    if (has_registers()) {
        UNROLL
        for (uint step = 0u; step < 8u; ++step) {
            if (step < 4u * unit_blocks()) {
                if (CHECKED) {
                    uint left = columns > step * 16u ? columns - step * 16u : 0u;
                    load_tokens_before(x + step * 16u, place, left, &early[step]);
                } else {
                    load_tokens_now(x + step * 16u, place, &early[step]);
                }
            }
        }
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
                        uint p = 2u * (step % 4u) + i / 2u;
                        THREAD(const Slot) slot = &fetched->slot[r][step / 4u];
                        uint pair;
                        if (PRESCALED) {
                            uint group = GROUP == 16u ? step : GROUP == 32u ? step / 2u : 0u;
                            pair = prescaled_operand(slot, i % 2u, p, &fetched->scale[r][group], T());
                        } else {
                            pair = operand_pair(slot, i % 2u, p, T());
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
                    if (has_registers()) {
                        tokens = early[step];
                    } else if (CHECKED) {
                        uint left = columns > step * 16u ? columns - step * 16u : 0u;
                        load_tokens_before(here, place, left, &tokens);
                    } else {
                        load_tokens(here, place, &tokens);
                    }
                    UNROLL
                    for (uint r = 0u; r < 2u; ++r) {
                        if (r < ROW_BLOCKS) {
                            uint chain = (n + step % chains()) % 8u;
                            multiply_accumulate(&products->tile[r][chain], &weights[r], &tokens);
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

// Where a thread copies pieces of x, of 16 bytes: it has the same piece of every so-many-th token.
struct StagePlace {
    // The piece of its first token in the next round to be copied.
    DEVICE(const T) source;
    // That piece's column.
    uint column;
    // Elements from where a round of x lies in threadgroup memory.
    uint to;
    // Tokens from its first one on.
    uint tokens;
};

// Tokens whose pieces fit into one pass of the threadgroup.
static inline uint tokens_at_once() { return 4u * ROW_GROUPS / unit_blocks(); }

static inline StagePlace stage_start(
    DEVICE(const T) x, THREAD(const GemmArgs) args, uint tokens, uint column, uint thread_index) {
    uint pieces = round_columns() / 8u;
    uint first = thread_index / pieces;
    uint piece = thread_index % pieces * 8u;
    StagePlace place;
    place.column = kept(column + piece);
    place.source = x + first * args->x_stride + column + piece;
    place.to = kept(first * staged_stride() + piece);
    tokens = min(tokens, TILES * 8u);
    place.tokens = kept(tokens > first ? tokens - first : 0u);
    return place;
}

// Zeros for tokens that are not there: nothing else is written there.
static inline void stage_no_tokens(THREADGROUP(T) staged, THREAD(const StagePlace) place, uint thread_index) {
    uint first = thread_index / (round_columns() / 8u);
    UNROLL
    for (uint pass = 0u; pass * tokens_at_once() < TILES * 8u; ++pass) {
        uint token = pass * tokens_at_once();
        if (token >= place->tokens && first + token < TILES * 8u) {
            *threadgroup_cast(uint4, staged + place->to + token * staged_stride()) =
                make_uint4(0u, 0u, 0u, 0u);
        }
    }
}

// Copies the next round of x, tokens × round_columns(); columns past the last are zero.
static inline void stage(THREAD(const GemmArgs) args, THREADGROUP(T) staged, THREAD(StagePlace) place) {
    THREADGROUP(T) destination = staged + place->to;
    if (place->column < args->columns) {
        UNROLL
        for (uint pass = 0u; pass * tokens_at_once() < TILES * 8u; ++pass) {
            uint token = pass * tokens_at_once();
            if (token < place->tokens) {
                copy_async(destination + token * staged_stride(), place->source + token * args->x_stride);
            }
        }
    } else {
        UNROLL
        for (uint pass = 0u; pass * tokens_at_once() < TILES * 8u; ++pass) {
            uint token = pass * tokens_at_once();
            if (token < place->tokens) {
                *threadgroup_cast(uint4, destination + token * staged_stride()) =
                    make_uint4(0u, 0u, 0u, 0u);
            }
        }
    }
    place->column += round_columns();
    place->source = place->source + round_columns();
}

// What sums still have to be multiplied with.
static inline float sum_factor(THREAD(const GemmArgs) args) {
    return args->factor * (PRESCALED ? 1.0f : operand_factor(T()));
}

// A norm between two products needs no dispatch of its own: norm(y) = y · weight / rms(y), so that the product before
// it writes y · weight and the squares of each 16 rows, and the product after it divides its sums by rms(y). That is
// the same arithmetic in another order; the parts are added up in a fixed one, so a result does not depend on which
// threadgroup was first.

// This thread's part of the squares of token `token`, of [tokens, columns / 16], from its `done`-th on. Code that is not unrolled: of
// eight tokens most are not there, and what the instruction cache had to fetch for nothing cost more than it saved.
static inline float add_squares(
    DEVICE(const float) squares, uint count, uint token, uint done, uint thread_index, uint threads) {
    float sum = 0.0f;
    ROLLED
    for (uint i = thread_index + done * threads; i < count; i += threads) {
        sum = sum + squares[token * count + i];
    }
    return sum;
}

// Squares of the first token that a thread has asked for before it multiplies.
#define EARLY_SQUARES 2u
