// The group formats of crates/formats as they lie in memory: codes in dense strings of bits, scales and zero points in
// buffers of their own (crates/formats/src/group/mod.rs).
//
// A file that includes this declares, before the include, the specialisation constants
//   CODE    what a code is (below), BITS  its width, 2, 3, 4 or 8,
//   SCALE   what a scale is (below).
//
// Eight codes are BITS whole bytes, so a thread that takes eight columns shares no byte with another.

#define PACK_E2M1 0u
#define PACK_E4M3 1u
#define PACK_INTEGER 2u

#define SCALE_IS_F16 0u
#define SCALE_IS_F32 1u
#define SCALE_IS_E8M0 2u
#define SCALE_IS_E4M3 3u

// The number that an E2M1 code stands for (OCP Microscaling 1.0, §5.3.3).
static inline float float_from_e2m1_code(uint code) {
    uint magnitude = code & 7u;
    uint bits = magnitude < 2u ? as_uint(float(magnitude) * 0.5f) : (magnitude << 22u) + (126u << 23u);
    return as_float(bits | ((code & 8u) << 28u));
}

// The number that an E4M3 code stands for; 0x7f and 0xff are NaN.
static inline float float_from_e4m3_code(uint code) {
    uint magnitude = code & 0x7fu;
    uint bits = magnitude < 8u ? as_uint(float(magnitude) * 0.001953125f)
                               : (magnitude << 20u) + (120u << 23u);
    bits = magnitude == 0x7fu ? 0x7fc00000u : bits;
    return as_float(bits | ((code & 0x80u) << 24u));
}

// 2^(code - 127); 255 is NaN.
static inline float float_from_e8m0_code(uint code) {
    return code == 0u ? as_float(0x00400000u) : code == 255u ? as_float(0x7fc00000u) : as_float(code << 23u);
}

// Scale `index` of a buffer of scales.
static inline float read_scale(DEVICE(const uchar) scales, ulong index) {
    if (SCALE == SCALE_IS_F16) {
        return float(as_half(*device_cast(const ushort, scales + index * 2u)));
    }
    if (SCALE == SCALE_IS_F32) {
        return as_float(*device_cast(const uint, scales + index * 4u));
    }
    uint code = uint(scales[index]);
    return SCALE == SCALE_IS_E8M0 ? float_from_e8m0_code(code) : float_from_e4m3_code(code);
}

// Code j of eight in two words, the first in the lowest bits.
static inline uint code_at(uint2 words, uint j) {
    uint bit = j * BITS;
    uint shifted = bit < 32u ? words.x >> (bit % 32u) : words.y >> (bit % 32u);
    return shifted & ((1u << BITS) - 1u);
}
