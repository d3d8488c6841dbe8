// Mixture of experts around the experts' products: which experts a token goes to and with what weight,
// tokens brought into order of experts and back. Dispatches are short, so each may be launched while the one
// before still runs (allow_next, wait_for_previous).

ELEMENTS(T, half, bf16, float);

#include "order.h"

// The most experts of a layer.
#define MOE_EXPERTS 512u

// Sizes of a router.
struct RouteArgs {
    uint experts;     // Experts.
    uint chosen;      // Experts of a token.
    uint groups;      // Groups of experts; 1: no limit by group.
    uint kept_groups; // Groups that a token may choose from.
    float scaling;    // Factor on the weights.
};

// Sizes of gathering and combining.
struct CombineArgs {
    uint columns; // Features of a token.
    uint chosen;  // Experts of a token.
    uint rows;    // Pairs of token and expert, or tokens.
};

// 0: softmax over all experts; 1: sigmoid of each.
SPECIALISE(uint, SCORING, 0);
// The chosen experts' weights are divided by their sum.
SPECIALISE(bool, RENORMALISE, 1);
// There is a bias on the scores, for the choice only.
SPECIALISE(bool, HAS_BIAS, 2);
// The output is added to: the residual, or shared experts.
SPECIALISE(bool, ACCUMULATE, 3);

// The experts of each token, best first, and their weights.
//
// logits: [tokens, experts]; bias: [experts]; chosen: [tokens, args.chosen]; weights: [tokens, args.chosen].
//
// * Mixtral (Jiang et al. 2024, "Mixtral of Experts", §2.1): softmax over the chosen logits, which is the
//   softmax over all, renormalised.
// * Qwen3-MoE: softmax over all, renormalised or not (`norm_topk_prob`).
// * DeepSeek-V3 (2024, "DeepSeek-V3 Technical Report", §2.1.2): sigmoid; a bias that balances the load counts
//   for the choice only; a group's score is the sum of its two best, and only experts of the best groups
//   are chosen from; weights renormalised and scaled.
//
// One small threadgroup a token: the choice is a chain of `chosen` maxima, and latency bounds it. Equal
// scores go to the lower index, so that every device chooses alike.
kernel void moe_route(
    IN(T) logits [[buffer(0)]],
    IN_OPTIONAL(float) bias [[buffer(1)]],
    OUT(uint) chosen [[buffer(2)]],
    OUT(float) weights [[buffer(3)]],
    INLINE(RouteArgs) args [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]],
    uint simd_width [[threads_per_simdgroup]]) {
    allow_next();
    wait_for_previous();
    // What an expert weighs, and what it is chosen by: minus infinity once it cannot be chosen any more.
    THREADGROUP_ARRAY(float, scores, MOE_EXPERTS);
    THREADGROUP_ARRAY(float, choice, MOE_EXPERTS);
    THREADGROUP_ARRAY(float, group_scores, MOE_EXPERTS);
    THREADGROUP_ARRAY(float, best_values, 128);
    THREADGROUP_ARRAY(uint, best_indices, 128);
    Place place = place_of(thread_index, threads.x, lane, simd_group, simd_groups, simd_width);
    uint row = group.x * args.experts;
    // Experts that nothing speaks for can still be chosen, after all others.
    float least = -3.0e38f;

    float greatest = -INFINITY;
    for (uint e = place.index; e < args.experts; e += place.threads) {
        float logit = load_float(logits, row + e);
        scores[e] = logit;
        greatest = max(greatest, logit);
    }
    greatest = threadgroup_max(greatest, best_values, place);
    float sum = 0.0f;
    for (uint e = place.index; e < args.experts; e += place.threads) {
        float logit = scores[e];
        float by = logit;
        if (SCORING == 0u) {
            scores[e] = exp(logit - greatest);
            sum = sum + exp(logit - greatest);
        } else {
            by = 1.0f / (1.0f + exp(-logit));
            scores[e] = by;
        }
        if (HAS_BIAS) {
            by = by + bias[e];
        }
        choice[e] = by >= least ? by : least;
    }
    // Its barriers also show everyone every choice.
    sum = threadgroup_sum(sum, best_values, place);

    if (args.groups > 1u) {
        uint size = args.experts / args.groups;
        for (uint g = place.index; g < args.groups; g += place.threads) {
            float first = -INFINITY;
            float second = -INFINITY;
            for (uint i = 0u; i < size; ++i) {
                float by = choice[g * size + i];
                second = max(second, min(first, by));
                first = max(first, by);
            }
            group_scores[g] = size > 1u ? first + second : first;
        }
        barrier_threadgroup();
        for (uint e = place.index; e < args.experts; e += place.threads) {
            uint mine = e / size;
            float score = group_scores[mine];
            uint ahead = 0u;
            for (uint g = 0u; g < args.groups; ++g) {
                float other = group_scores[g];
                ahead = ahead + (other > score || (other == score && g < mine) ? 1u : 0u);
            }
            if (ahead >= args.kept_groups) {
                choice[e] = -INFINITY;
            }
        }
    }

    uint out = group.x * args.chosen;
    float total = 0.0f;
    for (uint k = 0u; k < args.chosen; ++k) {
        // A thread looks at the experts that it alone writes.
        Best best = best_of_nothing();
        for (uint e = place.index; e < args.experts; e += place.threads) {
            best = better(best, choice[e], e);
        }
        best = threadgroup_best(best, best_values, best_indices, place);
        total = total + scores[best.index];
        if (best.index % place.threads == place.index) {
            choice[best.index] = -INFINITY;
            chosen[out + k] = best.index;
            weights[out + k] = scores[best.index];
        }
    }
    float factor = args.scaling;
    if (RENORMALISE) {
        // The epsilon is DeepSeek-V3's: sigmoids can all be 0.
        factor = args.scaling / (total + 1.0e-20f);
    } else if (SCORING == 0u) {
        factor = args.scaling / sum;
    }
    barrier_device();
    for (uint k = place.index; k < args.chosen; k += place.threads) {
        weights[out + k] = weights[out + k] * factor;
    }
}

// out[s] = x[token of pair order[s]]: the experts' inputs, by expert, for products that do not look
// the rows up themselves.
//
// x: [tokens, columns]; order: [rows], pairs; out: [rows, columns]. One thread an element. Bytes bound it.
kernel void moe_gather(
    IN(T) x [[buffer(0)]],
    IN(uint) order [[buffer(1)]],
    OUT(T) out [[buffer(2)]],
    INLINE(CombineArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint column = group.x * threads.x + thread_index;
    if (column < args.columns) {
        out[group.y * args.columns + column] = x[order[group.y] / args.chosen * args.columns + column];
    }
}

// out[t] (+)= Σ_k weights[t, k] · y[places[t, k]]: each token adds its experts up, in the order in which
// it chose them: no atomics, so the sum is the same in every run.
//
// y: [tokens · chosen, columns], by expert; places: [tokens, chosen], pair to row of y; weights: [tokens, chosen]; out:
// [tokens, columns]. One thread an element. Bytes bound it: chosen + 1 elements each.
kernel void moe_combine(
    IN(T) y [[buffer(0)]],
    IN(uint) places [[buffer(1)]],
    IN(float) weights [[buffer(2)]],
    INOUT(T) out [[buffer(3)]],
    INLINE(CombineArgs) args [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint column = group.x * threads.x + thread_index;
    if (column >= args.columns) {
        return;
    }
    float sum = 0.0f;
    for (uint k = 0u; k < args.chosen; ++k) {
        uint pair = group.y * args.chosen + k;
        sum = fma(weights[pair], load_float(y, places[pair] * args.columns + column), sum);
    }
    uint at = group.y * args.columns + column;
    if (ACCUMULATE) {
        sum = sum + load_float(out, at);
    }
    store_float(out, at, sum);
}
