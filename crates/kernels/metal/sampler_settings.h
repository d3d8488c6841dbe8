// Settings of one sequence in device memory, so that one recording serves every setting.

// Logits that one threadgroup looks at: with 150 thousand of them, as many threadgroups as a large GPU
// has processors.
#define SAMPLE_BLOCK 1024u
// Classes of the histogram over the distance to the greatest logit.
#define SAMPLE_BINS 1024u
// 32-bit words of one sequence's settings.
#define SAMPLER_WORDS 10u
// The longest window that penalties look at, in tokens.
#define MAX_REPEAT_LAST_N 4096u

struct SamplerSettings {
    float temperature;       // 0: the most likely token.
    uint top_k;              // 0: all.
    float top_p;             // 1: all.
    float log_min_p;         // ln(min_p); -infinity: all.
    float repeat_penalty;    // 1: nothing.
    float presence_penalty;  // 0: nothing.
    float frequency_penalty; // 0: nothing.
    uint repeat_last_n;      // Tokens that the penalties look at.
    uint2 seed;
};

static inline SamplerSettings load_settings(DEVICE(const uint) settings, uint slot) {
    uint at = slot * SAMPLER_WORDS;
    SamplerSettings out;
    out.temperature = as_float(settings[at]);
    out.top_k = settings[at + 1u];
    out.top_p = as_float(settings[at + 2u]);
    out.log_min_p = as_float(settings[at + 3u]);
    out.repeat_penalty = as_float(settings[at + 4u]);
    out.presence_penalty = as_float(settings[at + 5u]);
    out.frequency_penalty = as_float(settings[at + 6u]);
    out.repeat_last_n = settings[at + 7u];
    out.seed = make_uint2(settings[at + 8u], settings[at + 9u]);
    return out;
}

static inline bool penalises(SamplerSettings s) {
    return s.repeat_last_n > 0u
        && (s.repeat_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f);
}
