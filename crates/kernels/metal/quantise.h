// Activations as 8-bit codes: what quantise_activations and the fused transforms share.

// 8-bit codes.
#define CODE_INT8 0u
#define CODE_E4M3 1u

// The magnitude's bits: for numbers they are ordered as the magnitudes are, infinity comes above them, NaN
// above infinity. So the greatest of the bits cannot lose a NaN, as a floating-point maximum would.
static inline uint magnitude_bits(float v) { return as_uint(v) & 0x7fffffffu; }

static inline uint greatest_magnitude(THREAD(const float) v, uint n, uint greatest) {
    UNROLL
    for (uint j = 0u; j < n; ++j) {
        greatest = max(greatest, magnitude_bits(v[j]));
    }
    return greatest;
}

// The scale of values whose greatest magnitude has these bits: greatest / reach; NaN where something is not
// finite, so that products are NaN rather than silently wrong.
static inline float code_scale(uint greatest, float reach) {
    return greatest < 0x7f800000u ? as_float(greatest) / reach : as_float(0x7fc00000u);
}

// 1 / scale; 0 where that would overflow or the scale is NaN, and all codes are 0.
static inline float code_inverse(float scale) {
    return scale > 1.17549435e-38f ? 1.0f / scale : 0.0f;
}

// The E4M3 code nearest to v, ties to even (OCP 8-bit Floating Point Specification 1.0, §5). v is a number;
// above 448 it saturates.
static inline uint e4m3_from_float(float v) {
    uint bits = as_uint(v);
    uint sign = (bits >> 24u) & 0x80u;
    uint magnitude = bits & 0x7fffffffu;
    if (magnitude < 0x3c800000u) {
        // Below 2^-6: whole multiples of 2^-9.
        return sign | uint(rint(as_float(magnitude) * 512.0f));
    }
    uint rounded = magnitude + 0x7ffffu + ((magnitude >> 20u) & 1u);
    return sign | min((rounded >> 20u) - (120u << 3u), 0x7eu);
}

// The code of v · inverse: round to nearest, ties to even; 0 where inverse is 0, whatever v is.
static inline uint code_from_float(uint code, float v, float inverse) {
    float scaled = inverse > 0.0f ? v * inverse : 0.0f;
    if (code == CODE_E4M3) {
        return e4m3_from_float(scaled);
    }
    return uint(int(clamp(rint(scaled), -127.0f, 127.0f))) & 255u;
}

static inline float code_reach(uint code) { return code == CODE_E4M3 ? 448.0f : 127.0f; }

// Four codes in a word, the first lowest.
static inline uint four_codes(uint code, THREAD(const float) v, float inverse) {
    return code_from_float(code, v[0], inverse) | (code_from_float(code, v[1], inverse) << 8u)
        | (code_from_float(code, v[2], inverse) << 16u)
        | (code_from_float(code, v[3], inverse) << 24u);
}
