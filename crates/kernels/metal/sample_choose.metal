// The last step of choosing a token (sample.metal): the exact cuts and the draw, from what sample_histogram and
// sample_candidates left.
//
// Every filter keeps a head of one order, greater logit first, then lower token: a cut is the first place of that order at
// which a sum of weights reaches a target, found by radix descent over the keys.

#include "order.h"
#include "philox.h"
#include "sampler_settings.h"
#include "sample_filters.h"

// Sizes of one call.
struct SampleChooseArgs {
    uint vocabulary; // Logits of a row.
    uint blocks;     // Blocks of a row.
    uint capacity;   // Candidates that the list holds.
    uint token_bits; // Bits of a token.
};

// The tokens among which sample_choose decides: the list, or the whole row where the list overflowed.
struct Candidates {
    DEVICE(const float) row;
    DEVICE(const uint) keys;
    DEVICE(const uint) tokens;
    bool listed;
    uint count;
    uint top;        // The greatest logit, ordered.
    uint token_bits;
};

// Place in the order, greater logit first, then lower token: distinct for every token.
static inline ulong candidate_key(THREAD(const Candidates) c, uint i) {
    if (c->listed) {
        return (ulong(c->keys[i]) << c->token_bits) | ulong(c->tokens[i]);
    }
    return (ulong(c->top - ordered_from_float(c->row[i])) << c->token_bits) | ulong(i);
}

// Four keys, `step` candidates apart, loaded before any is looked at: what follows a key goes through atomics, which
// no load would be moved across. Past the end they are greater than every limit.
struct KeyRun {
    ulong key[4];
};

static inline KeyRun candidate_run(THREAD(const Candidates) c, uint first, uint step) {
    KeyRun out;
    UNROLL
    for (uint j = 0u; j < 4u; ++j) {
        uint i = first + j * step;
        out.key[j] = ~ulong(0u);
        if (i < c->count) {
            out.key[j] = candidate_key(c, i);
        }
    }
    return out;
}

// Threadgroup memory of a cut.
struct CutScratch {
    THREADGROUP(atomic_uint) low;   // [256] mass of each digit, in two halves.
    THREADGROUP(atomic_uint) high;  // [256]
    THREADGROUP(atomic_uint) count; // [256] tokens of each digit.
    THREADGROUP(ulong) partial;     // One per SIMD-group.
    THREADGROUP(ulong) found;       // [3] digit, mass before it, tokens in it.
};

// What a cut's weights and target are.
#define CUT_TOP_K 0u
#define CUT_TOP_P 1u
#define CUT_DRAW 2u

struct Cut {
    uint kind;
    Filters filters;
    uint top_k;
    float top_p;
    ulong total; // What top-p is a part of, where top-k does not cut; otherwise that is the sum found.
    uint random; // 24 bits.
};

static inline ulong cut_weight(THREAD(const Cut) cut, THREAD(const Candidates) c, ulong key) {
    if (cut->kind == CUT_TOP_K) {
        return 1u;
    }
    float logit = float_from_ordered(c->top - uint(key >> c->token_bits));
    if (cut->kind == CUT_TOP_P) {
        return fixed_mass(exp(logit - cut->filters.greatest));
    }
    return tempered_mass(cut->filters, logit);
}

// floor(u · total) + 1 for u = bits · 2^-24: sums of whole units pass u · total when they reach it.
static inline ulong draw_target(uint bits, ulong total) {
    ulong low = ((total & 0xffffffu) * ulong(bits)) >> 24u;
    return (total >> 24u) * ulong(bits) + low + 1u;
}

static inline ulong cut_target(THREAD(const Cut) cut, ulong sum) {
    if (cut->kind == CUT_TOP_K) {
        return ulong(cut->top_k);
    }
    if (cut->kind == CUT_TOP_P) {
        return top_p_target(cut->top_p, cut->filters.cuts_k ? sum : cut->total);
    }
    return draw_target(cut->random, sum);
}

static inline void clear_digits(CutScratch scratch, Place place) {
    for (uint i = place.index; i < 256u; i += place.threads) {
        atomic_store(&scratch.low[i], 0u);
        atomic_store(&scratch.high[i], 0u);
        atomic_store(&scratch.count[i], 0u);
    }
    barrier_threadgroup();
}

// 64-bit sums from 32-bit atomics: whoever sees the lower half overflow carries.
static inline void add_to_digit(CutScratch scratch, uint digit, ulong weight) {
    uint low = uint(weight & 0xffffffffu);
    uint carry = atomic_add(&scratch.low[digit], low) + low < low ? 1u : 0u;
    uint high = uint(weight >> 32u) + carry;
    if (high > 0u) {
        atomic_add(&scratch.high[digit], high);
    }
    atomic_add(&scratch.count[digit], 1u);
}

// How far a cut has come.
struct Walk {
    bool begun;
    ulong target;
    ulong below;  // Weight before the digits found so far.
    uint digit;   // The digit found last,
    uint tokens;  // and tokens that have it.
};

// Finds the digit at which the sum of weights reaches the target, once all tokens are added. False
// where all weight together does not.
static inline bool find_digit(
    THREAD(const Cut) cut, THREAD(Walk) walk, CutScratch scratch, Place place) {
    barrier_threadgroup();
    ulong weight = 0u;
    if (place.index < 256u) {
        weight = (ulong(atomic_load(&scratch.high[place.index])) << 32u)
            | ulong(atomic_load(&scratch.low[place.index]));
    }
    Prefix sums = threadgroup_prefix_ulong(weight, scratch.partial, place);
    if (!walk->begun) {
        walk->begun = true;
        walk->target = cut_target(cut, sums.total);
        if (walk->target > sums.total) {
            return false;
        }
    }
    ulong reached = walk->below + sums.inclusive;
    if (place.index < 256u && reached >= walk->target && reached - weight < walk->target) {
        scratch.found[0] = place.index;
        scratch.found[1] = reached - weight;
        scratch.found[2] = atomic_load(&scratch.count[place.index]);
    }
    barrier_threadgroup();
    walk->digit = uint(scratch.found[0]);
    walk->below = scratch.found[1];
    walk->tokens = uint(scratch.found[2]);
    // Everyone has read before the next digit is written.
    barrier_threadgroup();
    return true;
}

// Classes of a whole row, as the first digit: those of the histogram, four and four, and all that is beyond them
// with the last. Their order is that of the keys, and a flat distribution spreads over them, which it does not over the
// first bits of floats.
static inline uint class_of_key(Filters f, THREAD(const Candidates) c, ulong key) {
    uint bin = bin_of(f, float_from_ordered(c->top - uint(key >> c->token_bits)));
    return min(bin / (SAMPLE_BINS / 256u), 255u);
}

// The first digit of a cut through a whole row; lists the tokens of its class, if there is room, as the
// candidates that are left. False where all weight together does not reach the target.
static inline bool narrow_row(
    THREAD(const Cut) cut, THREAD(Candidates) c, THREAD(Walk) walk, ulong limit,
    DEVICE(uint) keys, DEVICE(uint) tokens, uint capacity, CutScratch scratch, Place place) {
    clear_digits(scratch, place);
    for (uint base = place.index; base < c->count; base += 4u * place.threads) {
        KeyRun run = candidate_run(c, base, place.threads);
        UNROLL
        for (uint j = 0u; j < 4u; ++j) {
            if (run.key[j] <= limit) {
                add_to_digit(
                    scratch, class_of_key(cut->filters, c, run.key[j]),
                    cut_weight(cut, c, run.key[j]));
            }
        }
    }
    if (!find_digit(cut, walk, scratch, place)) {
        return false;
    }
    if (walk->tokens > capacity) {
        // Thousands of logits within 1/256 of the range: the digits of floats, from the beginning.
        walk->begun = false;
        walk->below = 0u;
        walk->tokens = 0u;
        return true;
    }
    if (place.index == 0u) {
        atomic_store(&scratch.count[0], 0u);
    }
    // The list may hold what an earlier cut has read.
    barrier_device();
    for (uint base = place.index; base < c->count; base += 4u * place.threads) {
        KeyRun run = candidate_run(c, base, place.threads);
        UNROLL
        for (uint j = 0u; j < 4u; ++j) {
            if (run.key[j] <= limit
                && class_of_key(cut->filters, c, run.key[j]) == walk->digit) {
                uint at = atomic_add(&scratch.count[0], 1u);
                keys[at] = uint(run.key[j] >> c->token_bits);
                tokens[at] = uint(run.key[j] & ((ulong(1u) << c->token_bits) - 1u));
            }
        }
    }
    barrier_device();
    c->listed = true;
    c->count = walk->tokens;
    return true;
}

// The key of the first candidate, in order and up to `limit`, at which the sum of weights reaches the
// target; `limit` itself where none does.
//
// Descends the keys eight bits at a time: weights are added up by digit, and the digit at which the sum
// passes the target is the next eight bits. The first digits start where the limit's do, so that none are the
// same for all; a digit with a single token ends it.
static inline ulong cut_at(
    THREAD(const Cut) cut, Candidates c, ulong limit, DEVICE(uint) keys, DEVICE(uint) tokens,
    uint capacity, CutScratch scratch, Place place) {
    Walk walk;
    walk.begun = false;
    walk.target = 0u;
    walk.below = 0u;
    walk.digit = 0u;
    walk.tokens = 0u;
    if (!c.listed) {
        if (!narrow_row(cut, &c, &walk, limit, keys, tokens, capacity, scratch, place)) {
            return limit;
        }
    }
    uint high_word = uint(limit >> 32u);
    uint shift = high_word != 0u ? 64u - clz(high_word) : 32u - clz(uint(limit & 0xffffffffu));
    ulong prefix = 0u;
    while (shift > 0u && walk.tokens != 1u) {
        uint width = min(shift, 8u);
        uint above = shift;
        shift = shift - width;
        clear_digits(scratch, place);
        for (uint base = place.index; base < c.count; base += 4u * place.threads) {
            KeyRun run = candidate_run(&c, base, place.threads);
            UNROLL
            for (uint j = 0u; j < 4u; ++j) {
                ulong key = run.key[j];
                if (key <= limit && (key >> above) == prefix) {
                    uint digit = uint(key >> shift) & ((1u << width) - 1u);
                    add_to_digit(scratch, digit, cut_weight(cut, &c, key));
                }
            }
        }
        if (!find_digit(cut, &walk, scratch, place)) {
            return limit;
        }
        prefix = (prefix << width) | ulong(walk.digit);
    }
    // The one token left with these digits.
    for (uint base = place.index; base < c.count; base += 4u * place.threads) {
        KeyRun run = candidate_run(&c, base, place.threads);
        UNROLL
        for (uint j = 0u; j < 4u; ++j) {
            if (run.key[j] <= limit && (run.key[j] >> shift) == prefix) {
                scratch.found[0] = run.key[j];
            }
        }
    }
    barrier_threadgroup();
    ulong key = scratch.found[0];
    barrier_threadgroup();
    return key;
}

// The first block at which the running sum of tempered masses reaches `target`, to found[0], and the sum before
// it, to found[1], for every thread to read; both stay as they are where none does.
static inline void find_block(
    DEVICE(const ulong) masses, uint blocks, ulong target, THREADGROUP(ulong) partial,
    THREADGROUP(ulong) found, Place place) {
    ulong before = 0u;
    for (uint base = 0u; base < blocks; base += place.threads) {
        uint b = base + place.index;
        ulong mass = 0u;
        if (b < blocks) {
            mass = masses[2u * b + 1u];
        }
        Prefix sums = threadgroup_prefix_ulong(mass, partial, place);
        ulong reached = before + sums.inclusive;
        if (reached >= target && reached - mass < target) {
            found[0] = b;
            found[1] = reached - mass;
        }
        before = before + sums.total;
    }
    barrier_threadgroup();
}

// The draw, and the cuts that come before it.
//
// adjusted: [outputs, vocabulary]; maxima, indices: [outputs, blocks]; masses: [outputs, blocks, 2]; counts: [outputs];
// keys, candidate_tokens: [outputs, capacity]; outputs: [outputs, 2]; settings: [slots, SAMPLER_WORDS]; draws: [slots],
// numbers drawn so far, counted up by each draw (so one output a slot); tokens: [outputs]; sampled: [slots].
//
// One threadgroup of at least 256 threads a sequence. Latency bounds it: some three passes over a few dozen
// candidates for each of top-k, top-p and the draw, six barriers each. Where the list has overflowed, each of
// them goes through the row twice, to find a class and to list it anew.
kernel void sample_choose(
    IN(float) adjusted [[buffer(0)]],
    IN(float) maxima [[buffer(1)]],
    IN(uint) indices [[buffer(2)]],
    IN(ulong) masses [[buffer(3)]],
    IN(uint) counts [[buffer(4)]],
    INOUT(uint) keys [[buffer(5)]],
    INOUT(uint) candidate_tokens [[buffer(6)]],
    IN(uint) outputs [[buffer(7)]],
    IN(uint) settings [[buffer(8)]],
    INOUT(ulong) draws [[buffer(9)]],
    OUT(uint) tokens [[buffer(10)]],
    OUT(uint) sampled [[buffer(11)]],
    INLINE(SampleChooseArgs) args [[buffer(12)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(float, best_values, 128);
    THREADGROUP_ARRAY(uint, best_indices, 128);
    THREADGROUP_ARRAY(ulong, partial, 128);
    THREADGROUP_ARRAY(ulong, found, 3);
    THREADGROUP_ARRAY(atomic_uint, digit_low, 256);
    THREADGROUP_ARRAY(atomic_uint, digit_high, 256);
    THREADGROUP_ARRAY(atomic_uint, digit_count, 256);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint output = group.x;
    uint slot = outputs[2u * output];
    Chosen to;
    to.tokens = tokens;
    to.sampled = sampled;
    to.output = output;
    to.slot = slot;
    SamplerSettings s = load_settings(settings, slot);
    Best best = best_of_nothing();
    for (uint b = place.index; b < args.blocks; b += place.threads) {
        uint at = output * args.blocks + b;
        best = better(best, maxima[at], indices[at]);
    }
    best = threadgroup_best(best, best_values, best_indices, place);
    Filters f = filters_of(s, best.value, args.vocabulary);
    if (!(s.temperature > 0.0f)) {
        if (place.index == 0u) {
            choose(to, best.index);
        }
        return;
    }
    ulong draw = draws[slot];
    // Everyone has read the count before it goes up.
    barrier_device();
    if (place.index == 0u) {
        draws[slot] = draw + 1u;
    }
    if (!f.draws) {
        // No finite logit, or an infinite one: nothing to choose from by probability.
        if (place.index == 0u) {
            choose(to, best.index);
        }
        return;
    }
    uint random = philox_bits(s.seed, draw);
    DEVICE(const ulong) row_masses = masses + 2u * output * args.blocks;
    DEVICE(const float) row = adjusted + output * args.vocabulary;

    if (!f.cuts_k && !f.cuts_p) {
        ulong total = sum_of_masses(row_masses, 1u, args.blocks, partial, place);
        ulong target = draw_target(random, total);
        // Masses are the same sums here as in sample_histogram, so something is found; the most
        // likely token is what is left to a compiler that rounds an exponential in two ways.
        if (place.index == 0u) {
            found[0] = ulong(best.index / SAMPLE_BLOCK);
            found[1] = 0u;
            found[2] = ulong(best.index);
        }
        find_block(row_masses, args.blocks, target, partial, found, place);
        uint start = uint(found[0]) * SAMPLE_BLOCK;
        ulong before = found[1];
        uint end = min(start + SAMPLE_BLOCK, args.vocabulary);
        for (uint base = start; base < end; base += place.threads) {
            uint i = base + place.index;
            ulong mass = 0u;
            if (i < end) {
                float logit = row[i];
                mass = logit >= f.least ? tempered_mass(f, logit) : ulong(0u);
            }
            Prefix sums = threadgroup_prefix_ulong(mass, partial, place);
            ulong reached = before + sums.inclusive;
            if (reached >= target && reached - mass < target) {
                found[2] = ulong(i);
            }
            before = before + sums.total;
        }
        barrier_threadgroup();
        if (place.index == 0u) {
            choose(to, uint(found[2]));
        }
        return;
    }

    Candidates c;
    c.listed = counts[output] <= args.capacity;
    c.count = c.listed ? counts[output] : args.vocabulary;
    c.row = row;
    c.keys = keys + output * args.capacity;
    c.tokens = candidate_tokens + output * args.capacity;
    c.top = ordered_from_float(best.value);
    c.token_bits = args.token_bits;
    CutScratch scratch;
    scratch.low = digit_low;
    scratch.high = digit_high;
    scratch.count = digit_count;
    scratch.partial = partial;
    scratch.found = found;

    DEVICE(uint) spare_keys = keys + output * args.capacity;
    DEVICE(uint) spare_tokens = candidate_tokens + output * args.capacity;

    // No key of the list is greater than the least likely candidate's; in a row all keys may be.
    float least = -INFINITY;
    if (c.listed) {
        least = best.value;
        for (uint i = place.index; i < c.count; i += place.threads) {
            least = min(least, float_from_ordered(c.top - c.keys[i]));
        }
        least = -threadgroup_max(-least, best_values, place);
    }
    ulong same = (ulong(1u) << args.token_bits) - 1u;
    ulong limit = (ulong(c.top - ordered_from_float(least)) << args.token_bits) | same;
    Cut cut;
    cut.filters = f;
    cut.top_k = s.top_k;
    cut.top_p = s.top_p;
    cut.total = 0u;
    cut.random = random;
    if (f.cuts_k) {
        cut.kind = CUT_TOP_K;
        limit = cut_at(&cut, c, limit, spare_keys, spare_tokens, args.capacity, scratch, place);
    }
    if (f.cuts_p) {
        cut.kind = CUT_TOP_P;
        cut.total = sum_of_masses(row_masses, 0u, args.blocks, partial, place);
        limit = cut_at(&cut, c, limit, spare_keys, spare_tokens, args.capacity, scratch, place);
    }
    if (f.least > -INFINITY) {
        // -0 passes a threshold of 0 and comes after it in the order.
        float threshold = f.least == 0.0f ? -0.0f : f.least;
        ulong within = (ulong(c.top - ordered_from_float(threshold)) << args.token_bits) | same;
        limit = within < limit ? within : limit;
    }
    cut.kind = CUT_DRAW;
    ulong chosen =
        cut_at(&cut, c, limit, spare_keys, spare_tokens, args.capacity, scratch, place);
    if (place.index == 0u) {
        choose(to, uint(chosen & same));
    }
}
