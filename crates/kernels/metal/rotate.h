// Rotary position embedding (Su et al. 2021, "RoFormer", eq. 34) and the norm of a head before it: what rope and rope_append
// share.
//
// A file that includes this declares ELEMENTS and, before the include, the specialisation constant
//   INTERLEAVED  pair i is (x[2i], x[2i + 1]); otherwise (x[i], x[i + pairs]).

static inline uint pair_first(uint i, uint pairs) { return INTERLEAVED ? 2u * i : i; }
static inline uint pair_second(uint i, uint pairs) { return INTERLEAVED ? 2u * i + 1u : i + pairs; }

// The angle position · frequency less whole turns, to about 1e-7 whatever the position. The product alone is
// off by up to 2^-24 of itself, a hundredth of a radian at position 131072; so its rounding error is
// kept, and whole turns are taken away with 2π in two parts (Cody & Waite 1980). A small angle
// also keeps sin and cos on their fast paths.
static inline float reduced_angle(float position, float frequency) {
    float angle = position * frequency;
    float error = fma(position, frequency, -angle);
    float turns = rint(angle * 0.15915494309189535f);
    float rest = fma(-turns, 6.28318548202514648f, angle);
    rest = fma(turns, 1.74845553e-7f, rest);
    return rest + error;
}

// A pair turned by an angle. Written as fused operations so that every kernel rounds alike.
static inline float turned_first(float a, float b, float cosine, float sine) {
    return fma(a, cosine, -(b * sine));
}
static inline float turned_second(float a, float b, float cosine, float sine) {
    return fma(a, sine, b * cosine);
}

// 1 / rms of a head's values. A lane sums the values that it will rotate, so that lanes never read what others
// write.
static inline float head_scale(
    DEVICE(const T) head, uint head_dim, uint pairs, float epsilon, uint lane, uint simd_width) {
    float sum = 0.0f;
    for (uint i = lane; i < pairs; i += simd_width) {
        float a = load_float(head, pair_first(i, pairs));
        float b = load_float(head, pair_second(i, pairs));
        sum = fma(a, a, fma(b, b, sum));
    }
    for (uint i = 2u * pairs + lane; i < head_dim; i += simd_width) {
        float a = load_float(head, i);
        sum = fma(a, a, sum);
    }
    return 1.0f / sqrt(simd_sum(sum) / float(head_dim) + epsilon);
}
