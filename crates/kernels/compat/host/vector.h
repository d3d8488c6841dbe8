// Vectors, with Metal's sizes and alignments (Metal Shading Language Specification 3.0, §2.2).
#pragma once

#define MARLIN_VECTOR2(T, V, alignment) \
    struct alignas(alignment) V { T x, y; }; \
    static inline V make_##V(T x, T y) { V v; v.x = x; v.y = y; return v; }
#define MARLIN_VECTOR3(T, V, alignment) \
    struct alignas(alignment) V { T x, y, z; }; \
    static inline V make_##V(T x, T y, T z) { V v; v.x = x; v.y = y; v.z = z; return v; }
#define MARLIN_VECTOR4(T, V, alignment) \
    struct alignas(alignment) V { T x, y, z, w; }; \
    static inline V make_##V(T x, T y, T z, T w) { \
        V v; v.x = x; v.y = y; v.z = z; v.w = w; return v; \
    }

MARLIN_VECTOR2(uchar, uchar2, 2)
MARLIN_VECTOR4(uchar, uchar4, 4)
MARLIN_VECTOR2(ushort, ushort2, 4)
MARLIN_VECTOR4(ushort, ushort4, 8)
MARLIN_VECTOR2(uint, uint2, 8)
MARLIN_VECTOR3(uint, uint3, 16)
MARLIN_VECTOR4(uint, uint4, 16)
MARLIN_VECTOR2(int, int2, 8)
MARLIN_VECTOR4(int, int4, 16)
MARLIN_VECTOR2(half, half2, 4)
MARLIN_VECTOR4(half, half4, 8)
MARLIN_VECTOR2(float, float2, 8)
MARLIN_VECTOR4(float, float4, 16)

#define MARLIN_VECTOR_OPERATOR2(T, V, op) \
    static inline V operator op(V a, V b) { return make_##V(a.x op b.x, a.y op b.y); } \
    static inline V operator op(V a, T b) { return make_##V(a.x op b, a.y op b); } \
    static inline V operator op(T a, V b) { return make_##V(a op b.x, a op b.y); } \
    static inline V &operator op##=(V &a, V b) { return a = a op b; } \
    static inline V &operator op##=(V &a, T b) { return a = a op b; }
#define MARLIN_VECTOR_OPERATOR4(T, V, op) \
    static inline V operator op(V a, V b) { \
        return make_##V(a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w); \
    } \
    static inline V operator op(V a, T b) { \
        return make_##V(a.x op b, a.y op b, a.z op b, a.w op b); \
    } \
    static inline V operator op(T a, V b) { \
        return make_##V(a op b.x, a op b.y, a op b.z, a op b.w); \
    } \
    static inline V &operator op##=(V &a, V b) { return a = a op b; } \
    static inline V &operator op##=(V &a, T b) { return a = a op b; }

MARLIN_VECTOR_OPERATOR2(float, float2, +)
MARLIN_VECTOR_OPERATOR2(float, float2, -)
MARLIN_VECTOR_OPERATOR2(float, float2, *)
MARLIN_VECTOR_OPERATOR4(float, float4, +)
MARLIN_VECTOR_OPERATOR4(float, float4, -)
MARLIN_VECTOR_OPERATOR4(float, float4, *)
MARLIN_VECTOR_OPERATOR2(half, half2, +)
MARLIN_VECTOR_OPERATOR2(half, half2, -)
MARLIN_VECTOR_OPERATOR2(half, half2, *)
MARLIN_VECTOR_OPERATOR4(half, half4, +)
MARLIN_VECTOR_OPERATOR4(half, half4, -)
MARLIN_VECTOR_OPERATOR4(half, half4, *)

#undef MARLIN_VECTOR2
#undef MARLIN_VECTOR3
#undef MARLIN_VECTOR4
#undef MARLIN_VECTOR_OPERATOR2
#undef MARLIN_VECTOR_OPERATOR4

static inline half2 as_half2(uint bits) { half2 h; __builtin_memcpy(&h, &bits, 4); return h; }
static inline uint as_uint(half2 h) { uint bits; __builtin_memcpy(&bits, &h, 4); return bits; }
static inline float2 float2_from_half2(half2 h) { return make_float2(float(h.x), float(h.y)); }
static inline half2 half2_from_float2(float2 f) { return make_half2(half(f.x), half(f.y)); }
static inline half2 half2_fma(half2 a, half2 b, half2 c) {
    return make_half2(marlin::half_fma(a.x, b.x, c.x), marlin::half_fma(a.y, b.y, c.y));
}
