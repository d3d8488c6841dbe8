// Logits as the output head leaves them: penalties, arg-max, softmax, log-probabilities.
//
// Rows are long and few, so a row is cut into blocks of SAMPLE_BLOCK logits, one threadgroup each;
// what a block finds goes through device memory to the next dispatch. Dispatches are short, so each may be
// launched while the one before still runs (allow_next, wait_for_previous).

ELEMENTS(T, half, bf16, float);

#include "order.h"
#include "sampler_settings.h"

// Sizes of one call.
struct LogitsArgs {
    uint vocabulary;     // Logits of a row.
    uint blocks;         // Blocks of a row.
    uint history_length; // Tokens of a sequence's history, a ring.
    float softcap;       // cap · tanh(logit / cap); 0: no cap.
};

// Sizes of one softmax.
struct SoftmaxArgs {
    uint columns; // Values of a row.
    uint blocks;  // Blocks of a row.
    float scale;  // Of the values before the exponential: 1 / temperature.
};

// NaN never wins and never weighs.
static inline float logit_or_least(float logit) {
    return isnan(logit) ? -INFINITY : logit;
}

// The first step of sampling: cap, penalties, and the greatest logit of each block.
//
// logits: [outputs, vocabulary]; outputs: [outputs, 2], the sequence's slot and the position of the token that the
// logits follow; settings: [slots, SAMPLER_WORDS]; history: [slots, history_length], token at `position` in place
// position % history_length; adjusted: [outputs, vocabulary]; maxima, indices: [outputs, blocks]; histogram:
// [outputs, SAMPLE_BINS] and counts: [outputs], cleared for the steps that follow.
//
// The repetition penalty divides positive logits and multiplies the others (Keskar et al. 2019, "CTRL",
// §4.1); presence is subtracted once, frequency once per occurrence (OpenAI API reference). Each
// threadgroup counts the window's tokens that fall into its block, so nobody sorts the window and
// nothing but the block is touched. Reads and writes every logit once: bytes bound it.
kernel void logits_prepare(
    IN(T) logits [[buffer(0)]],
    IN(uint) outputs [[buffer(1)]],
    IN(uint) settings [[buffer(2)]],
    IN(uint) history [[buffer(3)]],
    OUT(float) adjusted [[buffer(4)]],
    OUT(float) maxima [[buffer(5)]],
    OUT(uint) indices [[buffer(6)]],
    OUT(uint) histogram [[buffer(7)]],
    OUT(uint) counts [[buffer(8)]],
    INLINE(LogitsArgs) args [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    THREADGROUP_ARRAY(atomic_uint, occurrences, SAMPLE_BLOCK);
    THREADGROUP_ARRAY(float, best_values, 128);
    THREADGROUP_ARRAY(uint, best_indices, 128);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint output = group.y;
    uint slot = outputs[2u * output];
    uint position = outputs[2u * output + 1u];
    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.vocabulary);
    SamplerSettings s = load_settings(settings, slot);
    bool penalised = penalises(s);

    if (group.x == 0u) {
        for (uint i = place.index; i < SAMPLE_BINS; i += place.threads) {
            histogram[output * SAMPLE_BINS + i] = 0u;
        }
        if (place.index == 0u) {
            counts[output] = 0u;
        }
    }
    if (penalised) {
        for (uint i = place.index; i < SAMPLE_BLOCK; i += place.threads) {
            atomic_store(&occurrences[i], 0u);
        }
        barrier_threadgroup();
        uint window = min(min(s.repeat_last_n, MAX_REPEAT_LAST_N), position + 1u);
        for (uint i = place.index; i < window; i += place.threads) {
            uint token = history[slot * args.history_length + (position - i) % args.history_length];
            if (token >= start && token < end) {
                atomic_add(&occurrences[token - start], 1u);
            }
        }
        barrier_threadgroup();
    }

    Best best = best_of_nothing();
    for (uint i = start + place.index; i < end; i += place.threads) {
        float logit = logit_or_least(load_float(logits, output * args.vocabulary + i));
        if (args.softcap != 0.0f) {
            logit = args.softcap * tanh(logit / args.softcap);
        }
        if (penalised) {
            uint count = atomic_load(&occurrences[i - start]);
            if (count > 0u) {
                logit = logit > 0.0f ? logit / s.repeat_penalty : logit * s.repeat_penalty;
                logit = logit - (s.presence_penalty + s.frequency_penalty * float(count));
                logit = logit_or_least(logit);
            }
        }
        adjusted[output * args.vocabulary + i] = logit;
        best = better(best, logit, i);
    }
    best = threadgroup_best(best, best_values, best_indices, place);
    if (place.index == 0u) {
        maxima[output * args.blocks + group.x] = best.value;
        indices[output * args.blocks + group.x] = best.index;
    }
}

// The greatest logit of each block and where it is, for greedy sampling without penalties.
//
// logits: [rows, vocabulary]; maxima, indices: [rows, blocks]. Reads every logit once: bytes bound it.
kernel void arg_max_blocks(
    IN(T) logits [[buffer(0)]],
    OUT(float) maxima [[buffer(1)]],
    OUT(uint) indices [[buffer(2)]],
    INLINE(LogitsArgs) args [[buffer(3)]],
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
    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.vocabulary);
    Best best = best_of_nothing();
    for (uint i = start + place.index; i < end; i += place.threads) {
        best = better(best, logit_or_least(load_float(logits, group.y * args.vocabulary + i)), i);
    }
    best = threadgroup_best(best, best_values, best_indices, place);
    if (place.index == 0u) {
        maxima[group.y * args.blocks + group.x] = best.value;
        indices[group.y * args.blocks + group.x] = best.index;
    }
}

// out = softmax(scale · x) of each row in one pass over threadgroup-strided values, one threadgroup a
// row. x, out: [rows, columns].
//
// The maximum and the sum are kept together, the sum rescaled whenever the maximum grows (Milakov & Gimelshein
// 2018, "Online normalizer calculation for softmax", alg. 3), so x is read twice, not three times.
kernel void softmax(
    IN(T) x [[buffer(0)]],
    OUT(float) out [[buffer(1)]],
    INLINE(SoftmaxArgs) args [[buffer(2)]],
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
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint row = group.x * args.columns;
    float greatest = -INFINITY;
    float sum = 0.0f;
    for (uint i = place.index; i < args.columns; i += place.threads) {
        float value = args.scale * load_float(x, row + i);
        if (value > greatest) {
            sum = sum * exp(greatest - value) + 1.0f;
            greatest = value;
        } else if (value > -INFINITY) {
            sum = sum + exp(value - greatest);
        }
    }
    float of_all = threadgroup_max(greatest, partial, place);
    sum = threadgroup_sum(greatest > -INFINITY ? sum * exp(greatest - of_all) : 0.0f, partial, place);
    for (uint i = place.index; i < args.columns; i += place.threads) {
        out[row + i] = exp(args.scale * load_float(x, row + i) - of_all) / sum;
    }
}

// The first of two passes for long rows: the greatest value of each block and the sum of the
// exponentials relative to it.
//
// x: [rows, columns]; maxima, sums: [rows, blocks].
kernel void softmax_blocks(
    IN(T) x [[buffer(0)]],
    OUT(float) maxima [[buffer(1)]],
    OUT(float) sums [[buffer(2)]],
    INLINE(SoftmaxArgs) args [[buffer(3)]],
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
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.columns);
    float greatest = -INFINITY;
    for (uint i = start + place.index; i < end; i += place.threads) {
        greatest = max(greatest, args.scale * load_float(x, group.y * args.columns + i));
    }
    greatest = threadgroup_max(greatest, partial, place);
    float sum = 0.0f;
    if (greatest > -INFINITY) {
        for (uint i = start + place.index; i < end; i += place.threads) {
            sum = sum + exp(args.scale * load_float(x, group.y * args.columns + i) - greatest);
        }
    }
    sum = threadgroup_sum(sum, partial, place);
    if (place.index == 0u) {
        maxima[group.y * args.blocks + group.x] = greatest;
        sums[group.y * args.blocks + group.x] = sum;
    }
}

// Greatest value of a row (x) and sum of its exponentials relative to it (y), from its blocks.
static inline float2 join_blocks(
    DEVICE(const float) maxima, DEVICE(const float) sums, uint first, uint blocks,
    THREADGROUP(float) partial, Place place) {
    float greatest = -INFINITY;
    for (uint b = place.index; b < blocks; b += place.threads) {
        greatest = max(greatest, maxima[first + b]);
    }
    greatest = threadgroup_max(greatest, partial, place);
    float sum = 0.0f;
    for (uint b = place.index; b < blocks; b += place.threads) {
        float block = maxima[first + b];
        if (block > -INFINITY) {
            sum = sum + sums[first + b] * exp(block - greatest);
        }
    }
    return make_float2(greatest, threadgroup_sum(sum, partial, place));
}

// The second pass: out = exp(scale · x - maximum) / sum. Every threadgroup joins the row's blocks for
// itself, which costs less than a dispatch.
//
// x, out: [rows, columns]; maxima, sums: [rows, blocks].
kernel void softmax_apply(
    IN(T) x [[buffer(0)]],
    IN(float) maxima [[buffer(1)]],
    IN(float) sums [[buffer(2)]],
    OUT(float) out [[buffer(3)]],
    INLINE(SoftmaxArgs) args [[buffer(4)]],
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
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    float2 row = join_blocks(maxima, sums, group.y * args.blocks, args.blocks, partial, place);
    uint start = group.x * SAMPLE_BLOCK;
    uint end = min(start + SAMPLE_BLOCK, args.columns);
    for (uint i = start + place.index; i < end; i += place.threads) {
        uint at = group.y * args.columns + i;
        out[at] = exp(args.scale * load_float(x, at) - row.x) / row.y;
    }
}

// The log-probability of one token of each row, after softmax_blocks: out = scale · x[token] - maximum - ln(sum).
//
// x: [rows, columns]; maxima, sums: [rows, blocks]; tokens, out: [rows].
kernel void token_log_probability(
    IN(T) x [[buffer(0)]],
    IN(float) maxima [[buffer(1)]],
    IN(float) sums [[buffer(2)]],
    IN(uint) tokens [[buffer(3)]],
    OUT(float) out [[buffer(4)]],
    INLINE(SoftmaxArgs) args [[buffer(5)]],
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
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    float2 row = join_blocks(maxima, sums, group.x * args.blocks, args.blocks, partial, place);
    if (place.index == 0u) {
        float value = args.scale * load_float(x, group.x * args.columns + tokens[group.x]);
        out[group.x] = value - row.x - log(row.y);
    }
}
