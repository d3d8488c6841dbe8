// Scalars: integers, half and bf16.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
// 64 bits on every host that this is compiled for (LP64), as in Metal.
typedef unsigned long ulong;

static_assert(sizeof(ulong) == 8, "ulong has 64 bits");

static inline uint as_uint(float x) { uint b; __builtin_memcpy(&b, &x, 4); return b; }
static inline uint as_uint(int x) { return uint(x); }
static inline uint as_uint(uint x) { return x; }
static inline int as_int(float x) { int b; __builtin_memcpy(&b, &x, 4); return b; }
static inline int as_int(uint x) { return int(x); }
static inline int as_int(int x) { return x; }
static inline float as_float(uint x) { float f; __builtin_memcpy(&f, &x, 4); return f; }
static inline float as_float(int x) { return as_float(uint(x)); }

namespace marlin {

// binary32 to binary16, to nearest, ties to even (IEEE 754-2019, 4.3.1).
static inline ushort half_bits(float value) {
    uint bits = as_uint(value);
    uint sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits >= 0x47800000u) { // 65536 and above, infinity, NaN
        return ushort(sign | (bits > 0x7f800000u ? 0x7e00u | ((bits >> 13) & 0x3ffu) : 0x7c00u));
    }
    if (bits < 0x38800000u) {
        // Below the smallest normal number: adding 0.5 leaves the subnormal's bits, rounded by
        // the addition, at the bottom of the significand.
        return ushort(sign | (as_uint(as_float(bits) + 0.5f) - 0x3f000000u));
    }
    uint odd = (bits >> 13) & 1u;
    return ushort(sign | ((bits + 0xc8000fffu + odd) >> 13));
}

// binary16 to binary32, exact.
static inline float half_value(ushort half) {
    uint shifted = uint(half & 0x7fffu) << 13;
    uint exponent = shifted & 0x0f800000u;
    uint sign = uint(half & 0x8000u) << 16;
    if (exponent == 0x0f800000u) { // infinity, NaN
        return as_float(sign | (shifted + 0x70000000u));
    }
    if (exponent == 0) { // zero, subnormal: the subtraction renormalises
        return as_float(sign | as_uint(as_float(shifted + 0x38800000u) - 6.103515625e-05f));
    }
    return as_float(sign | (shifted + 0x38000000u));
}

} // namespace marlin

// IEEE 754 binary16. Sum, difference, product and quotient are rounded once: computed in binary32, whose
// 24 bits are at least 2·11 + 2, so that the second rounding changes nothing (Figueroa, "When is
// double rounding innocuous?", 1995).
struct half {
    ushort bits;

    half() = default;
    explicit half(float value) : bits(marlin::half_bits(value)) {}
    // From integers only through float, as the dialect asks.
    explicit half(int) = delete;
    explicit half(uint) = delete;
    explicit operator float() const { return marlin::half_value(bits); }

    half &operator+=(half o);
    half &operator-=(half o);
    half &operator*=(half o);
    half &operator/=(half o);
};

// The upper half of a binary32.
struct bf16 {
    ushort bits;
};

#define MARLIN_HALF_OPERATOR(op) \
    static inline half operator op(half a, half b) { return half(float(a) op float(b)); } \
    inline half &half::operator op##=(half o) { return *this = *this op o; }
MARLIN_HALF_OPERATOR(+)
MARLIN_HALF_OPERATOR(-)
MARLIN_HALF_OPERATOR(*)
MARLIN_HALF_OPERATOR(/)
#undef MARLIN_HALF_OPERATOR

#define MARLIN_HALF_COMPARISON(op) \
    static inline bool operator op(half a, half b) { return float(a) op float(b); }
MARLIN_HALF_COMPARISON(==)
MARLIN_HALF_COMPARISON(!=)
MARLIN_HALF_COMPARISON(<)
MARLIN_HALF_COMPARISON(<=)
MARLIN_HALF_COMPARISON(>)
MARLIN_HALF_COMPARISON(>=)
#undef MARLIN_HALF_COMPARISON

static inline half as_half(ushort bits) { half h; h.bits = bits; return h; }
static inline ushort as_ushort(half h) { return h.bits; }
static inline half operator-(half a) { return as_half(ushort(a.bits ^ 0x8000u)); }

static inline float float_from_bf16(bf16 b) { return as_float(uint(b.bits) << 16); }

// To nearest, ties to even; a NaN stays one.
static inline bf16 bf16_from_float(float value) {
    uint bits = as_uint(value);
    bf16 out;
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        out.bits = ushort((bits >> 16) | 0x40u);
    } else {
        out.bits = ushort((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    return out;
}

namespace marlin {

// a·b + c, rounded once. The product is exact in binary64; the sum is rounded to odd, twice, which
// keeps the last rounding correct (Boldo and Melquiond, "Emulation of a FMA and correctly
// rounded sums", 2008).
static inline half half_fma(half a, half b, half c) {
    double product = double(float(a)) * double(float(b));
    double addend = float(c);
    double sum = product + addend;
    double bb = sum - product;
    double error = (product - (sum - bb)) + (addend - bb);
    uint64_t bits;
    __builtin_memcpy(&bits, &sum, 8);
    if (error != 0 && sum - sum == 0 && (bits & 1) == 0) {
        bits += ((error > 0) == (sum > 0)) ? 1 : -1;
        __builtin_memcpy(&sum, &bits, 8);
    }
    if (sum - sum != 0 || sum == 0) { // infinity, NaN, zero
        return half(float(sum));
    }
    // binary64 to binary32, rounded to odd. Exponents of half arithmetic lie well inside.
    __builtin_memcpy(&bits, &sum, 8);
    uint sticky = (bits & 0x1fffffffu) != 0;
    bits &= ~uint64_t(0x1fffffffu);
    __builtin_memcpy(&sum, &bits, 8);
    return half(as_float(as_uint(float(sum)) | sticky));
}

} // namespace marlin
