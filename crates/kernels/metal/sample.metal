// Choosing the next token where the logits are, in the order of llama.cpp's default sampler chain: penalties →
// top-k → top-p → min-p → temperature → draw. One token of 4 bytes a sequence leaves the device.
//
//   logits_prepare      penalties, greatest logit of each block                 (logits.metal)
//   sample_histogram    how far below the greatest logit the others are, and mass by block
//   sample_candidates   the few tokens that top-k, top-p and min-p can leave, as a list
//   sample_choose       exact cuts and the draw, one threadgroup a sequence  (sample_choose.metal)
//
// Every filter keeps a head of one order — greater logit first, then lower token — so nothing is ever
// sorted: a cut is the first place of that order at which a sum of weights reaches a target, found by
// radix descent over the keys. Without top-k and top-p the draw goes through the tokens in order of their
// ids, by the blocks' masses. Weights are summed in fixed point, so neither the order in which threads
// arrive nor the SIMD width changes a choice.
//
// All of these dispatches are short, so each may be launched while the one before still runs
// (allow_next, wait_for_previous): the launch is most of what there is to gain.

#include "order.h"
#include "sampler_settings.h"
#include "sample_filters.h"

// Sizes of one call.
struct SampleArgs {
    uint vocabulary; // Logits of a row.
    uint blocks;     // Blocks of a row.
    uint capacity;   // Candidates that the list holds.
    uint token_bits; // Bits of a token.
};

// The greatest of the blocks' maxima: the second step of arg-max. maxima, indices: [rows, blocks]; outputs: [rows, 2],
// slot and position; tokens: [rows]; sampled: [slots].
kernel void arg_max_choose(
    IN(float) maxima [[buffer(0)]],
    IN(uint) indices [[buffer(1)]],
    IN(uint) outputs [[buffer(2)]],
    OUT(uint) tokens [[buffer(3)]],
    OUT(uint) sampled [[buffer(4)]],
    INLINE(SampleArgs) args [[buffer(5)]],
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
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    Best best = best_of_nothing();
    for (uint b = place.index; b < args.blocks; b += place.threads) {
        uint at = group.x * args.blocks + b;
        best = better(best, maxima[at], indices[at]);
    }
    best = threadgroup_best(best, best_values, best_indices, place);
    if (place.index == 0u) {
        Chosen to;
        to.tokens = tokens;
        to.sampled = sampled;
        to.output = group.x;
        to.slot = outputs[2u * group.x];
        choose(to, best.index);
    }
}

// Counts tokens by their distance to the greatest logit, where top-k or top-p cut, and sums each
// block's mass: at temperature 1, which top-p is about, and at the sequence's, over what min-p leaves.
//
// adjusted: [outputs, vocabulary]; maxima: [outputs, blocks]; outputs: [outputs, 2]; settings: [slots, SAMPLER_WORDS];
// histogram: [outputs, SAMPLE_BINS], cleared; masses: [outputs, blocks, 2] in units of 2^-44.
//
// Classes are linear in the distance, not digits of the float: a class is e^(1/32) wide in weight wherever the
// greatest logit lies, and only the counts need to go through atomics, whose sum has no order.
// Two exponentials a logit at most; bytes bound it (600 KB for 150 thousand logits, from cache).
kernel void sample_histogram(
    IN(float) adjusted [[buffer(0)]],
    IN(float) maxima [[buffer(1)]],
    IN(uint) outputs [[buffer(2)]],
    IN(uint) settings [[buffer(3)]],
    INOUT(atomic_uint) histogram [[buffer(4)]],
    OUT(ulong) masses [[buffer(5)]],
    INLINE(SampleArgs) args [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(atomic_uint, bins, SAMPLE_BINS);
    THREADGROUP_ARRAY(float, partial, 128);
    THREADGROUP_ARRAY(ulong, partial_mass, 128);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint output = group.y;
    SamplerSettings s = load_settings(settings, outputs[2u * output]);
    float greatest = greatest_of_blocks(maxima + output * args.blocks, args.blocks, partial, place);
    Filters f = filters_of(s, greatest, args.vocabulary);
    if (!f.draws) {
        return;
    }
    bool listed = f.cuts_k || f.cuts_p;
    for (uint b = place.index; b < SAMPLE_BINS; b += place.threads) {
        atomic_store(&bins[b], 0u);
    }
    barrier_threadgroup();

    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.vocabulary);
    ulong mass = 0u;
    ulong tempered = 0u;
    for (uint i = start + place.index; i < end; i += place.threads) {
        float logit = adjusted[output * args.vocabulary + i];
        if (listed) {
            mass = mass + fixed_mass(exp(logit - greatest));
            uint bin = bin_of(f, logit);
            if (bin < SAMPLE_BINS) {
                atomic_add(&bins[bin], 1u);
            }
        } else if (logit >= f.least) {
            tempered = tempered + tempered_mass(f, logit);
        }
    }
    mass = threadgroup_sum_ulong(mass, partial_mass, place);
    tempered = threadgroup_sum_ulong(tempered, partial_mass, place);
    if (place.index == 0u) {
        uint at = 2u * (output * args.blocks + group.x);
        masses[at] = mass;
        masses[at + 1u] = tempered;
    }
    if (listed) {
        for (uint b = place.index; b < SAMPLE_BINS; b += place.threads) {
            uint count = atomic_load(&bins[b]);
            if (count > 0u) {
                atomic_add(&histogram[output * SAMPLE_BINS + b], count);
            }
        }
    }
}

// The last class that can hold a token which the filters leave.
//
// A class's mass is at least its count times the weight at its far edge; the 2^-10 taken off covers the
// rounding of that edge. With top-k and top-p both, top-p is about the mass of the k tokens, so all k
// are wanted; otherwise the narrowest filter decides.
static inline uint last_bin(
    Filters f, SamplerSettings s, DEVICE(const uint) histogram, ulong total,
    THREADGROUP(atomic_uint) last, THREADGROUP(ulong) partial, Place place) {
    if (place.index == 0u) {
        atomic_store(&last[0], SAMPLE_BINS - 1u);
    }
    barrier_threadgroup();
    uint share = (SAMPLE_BINS + place.threads - 1u) / place.threads;
    uint first = place.index * share;
    uint past = min(first + share, SAMPLE_BINS);
    ulong target = f.cuts_k ? ulong(s.top_k) : top_p_target(s.top_p, total);
    ulong sum = 0u;
    // Twice over the same few classes: their sum, then the one at which the sum reaches the target.
    for (uint pass = 0u; pass < 2u; ++pass) {
        ulong running = sum;
        for (uint b = first; b < past; ++b) {
            ulong weight = ulong(histogram[b]);
            if (!f.cuts_k) {
                float edge = float(b + 1u) * (f.range / float(SAMPLE_BINS));
                weight = weight * fixed_mass(exp(-edge) * 0.9990234375f);
            }
            if (pass == 1u && running < target && running + weight >= target) {
                atomic_min(&last[0], b);
            }
            running = running + weight;
        }
        if (pass == 0u) {
            Prefix prefix = threadgroup_prefix_ulong(running, partial, place);
            sum = prefix.inclusive - running;
        }
    }
    barrier_threadgroup();
    uint bin = atomic_load(&last[0]);
    if (!(f.cuts_k && f.cuts_p) && s.log_min_p > -INFINITY) {
        bin = min(bin, bin_of(f, f.least));
    }
    return bin;
}

// Lists the tokens up to the last class that counts, each as its distance to the greatest logit in the
// order of floats, and its id. In no order; counts: [outputs] says how many there are, and where
// that is more than the list holds, sample_choose goes through the whole row.
//
// adjusted: [outputs, vocabulary]; maxima: [outputs, blocks]; outputs: [outputs, 2]; settings: [slots, SAMPLER_WORDS];
// histogram: [outputs, SAMPLE_BINS]; masses: [outputs, blocks, 2]; keys, tokens: [outputs, capacity].
kernel void sample_candidates(
    IN(float) adjusted [[buffer(0)]],
    IN(float) maxima [[buffer(1)]],
    IN(uint) outputs [[buffer(2)]],
    IN(uint) settings [[buffer(3)]],
    IN(uint) histogram [[buffer(4)]],
    IN(ulong) masses [[buffer(5)]],
    INOUT(atomic_uint) counts [[buffer(6)]],
    OUT(uint) keys [[buffer(7)]],
    OUT(uint) tokens [[buffer(8)]],
    INLINE(SampleArgs) args [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(float, partial, 128);
    THREADGROUP_ARRAY(ulong, partial_mass, 128);
    // The last class; tokens of this block; where they begin in the list.
    THREADGROUP_ARRAY(atomic_uint, shared, 3);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint output = group.y;
    SamplerSettings s = load_settings(settings, outputs[2u * output]);
    float greatest = greatest_of_blocks(maxima + output * args.blocks, args.blocks, partial, place);
    Filters f = filters_of(s, greatest, args.vocabulary);
    if (!f.draws || !(f.cuts_k || f.cuts_p)) {
        return;
    }
    ulong total = 0u;
    if (!f.cuts_k) {
        total = sum_of_masses(
            masses + 2u * output * args.blocks, 0u, args.blocks, partial_mass, place);
    }
    if (place.index == 0u) {
        atomic_store(&shared[1], 0u);
    }
    uint last = last_bin(
        f, s, histogram + output * SAMPLE_BINS, total, shared, partial_mass, place);

    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.vocabulary);
    uint found = 0u;
    for (uint i = start + place.index; i < end; i += place.threads) {
        found = found + (bin_of(f, adjusted[output * args.vocabulary + i]) <= last ? 1u : 0u);
    }
    uint at = 0u;
    if (found > 0u) {
        at = atomic_add(&shared[1], found);
    }
    barrier_threadgroup();
    if (place.index == 0u) {
        uint of_block = atomic_load(&shared[1]);
        atomic_store(&shared[2], of_block > 0u ? atomic_add(&counts[output], of_block) : 0u);
    }
    barrier_threadgroup();
    at = at + atomic_load(&shared[2]);
    if (found > 0u) {
        uint top = ordered_from_float(greatest);
        for (uint i = start + place.index; i < end; i += place.threads) {
            float logit = adjusted[output * args.vocabulary + i];
            if (bin_of(f, logit) <= last) {
                if (at < args.capacity) {
                    keys[output * args.capacity + at] = top - ordered_from_float(logit);
                    tokens[output * args.capacity + at] = i;
                }
                at = at + 1u;
            }
        }
    }
}
