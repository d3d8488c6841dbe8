// What the kernels that choose a token share: where a choice goes, what the settings come to, and masses.
//
// Needs order.h and sampler_settings.h.

// Where a choice goes: to the host, and to the next step, which need not wait until the host has read it.
struct Chosen {
    DEVICE(uint) tokens;  // [outputs]
    DEVICE(uint) sampled; // [slots]
    uint output;
    uint slot;
};

static inline void choose(Chosen to, uint token) {
    to.tokens[to.output] = token;
    to.sampled[to.slot] = token;
}

// What the settings come to for a vocabulary and a greatest logit.
struct Filters {
    float temperature;
    float greatest;
    float least;  // min-p's threshold.
    float range;  // Distance below the greatest logit from which on a token cannot matter.
    bool draws;   // Whether anything is drawn: otherwise the arg-max is taken.
    bool cuts_k;
    bool cuts_p;
};

// Beyond 32 · max(1, temperature) below the greatest logit, weights are below e^-32 at both temperatures in
// use (top-p's is 1): all together below the step of u and of any top-p under 1, so that neither can reach them.
static inline Filters filters_of(SamplerSettings s, float greatest, uint vocabulary) {
    Filters out;
    out.temperature = s.temperature;
    out.greatest = greatest;
    out.least = greatest + s.log_min_p;
    out.range = 32.0f * max(s.temperature, 1.0f);
    out.draws = s.temperature > 0.0f && !isinf(greatest);
    out.cuts_k = s.top_k > 0u && s.top_k < vocabulary;
    out.cuts_p = s.top_p < 1.0f;
    return out;
}

static inline ulong tempered_mass(Filters f, float logit) {
    return fixed_mass(exp((logit - f.greatest) / f.temperature));
}

// The class of a logit: its distance to the greatest in SAMPLE_BINS steps of the range; SAMPLE_BINS or more
// beyond it. Never decreases as logits fall, whatever the rounding.
static inline uint bin_of(Filters f, float logit) {
    float steps = (f.greatest - logit) * (float(SAMPLE_BINS) / f.range);
    return steps < float(SAMPLE_BINS) ? uint(steps) : SAMPLE_BINS;
}

static inline float greatest_of_blocks(
    DEVICE(const float) maxima, uint blocks, THREADGROUP(float) partial, Place place) {
    float greatest = -INFINITY;
    for (uint b = place.index; b < blocks; b += place.threads) {
        greatest = max(greatest, maxima[b]);
    }
    return threadgroup_max(greatest, partial, place);
}

static inline ulong sum_of_masses(
    DEVICE(const ulong) masses, uint which, uint blocks, THREADGROUP(ulong) partial, Place place) {
    ulong sum = 0u;
    for (uint b = place.index; b < blocks; b += place.threads) {
        sum = sum + masses[2u * b + which];
    }
    return threadgroup_sum_ulong(sum, partial, place);
}

// Least mass that reaches top-p of `total`: p · total rounded up, at least 1. p in units of 2^-32.
static inline ulong top_p_target(float p, ulong total) {
    ulong parts = p > 0.0f ? ulong(p * 4294967296.0f) : ulong(0u);
    ulong low = (total & 0xffffffffu) * parts + 0xffffffffu;
    ulong target = (total >> 32u) * parts + (low >> 32u);
    return target > 0u ? target : ulong(1u);
}
