// Mathematics, through the compiler's builtins.
#pragma once

#include "scalar.h"

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline half fma(half a, half b, half c) { return marlin::half_fma(a, b, c); }

static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
static inline float abs(float a) { return __builtin_fabsf(a); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int abs(int a) { return a < 0 ? -a : a; }
static inline uint min(uint a, uint b) { return a < b ? a : b; }
static inline uint max(uint a, uint b) { return a > b ? a : b; }
static inline uint abs(uint a) { return a; }
static inline float clamp(float x, float low, float high) { return min(max(x, low), high); }
static inline int clamp(int x, int low, int high) { return min(max(x, low), high); }
static inline uint clamp(uint x, uint low, uint high) { return min(max(x, low), high); }

static inline float exp(float x) { return __builtin_expf(x); }
static inline float exp2(float x) { return __builtin_exp2f(x); }
static inline float fast_exp(float x) { return __builtin_expf(x); }
static inline float log(float x) { return __builtin_logf(x); }
static inline float log2(float x) { return __builtin_log2f(x); }
static inline float sqrt(float x) { return __builtin_sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
static inline float sin(float x) { return __builtin_sinf(x); }
static inline float cos(float x) { return __builtin_cosf(x); }
static inline float pow(float x, float y) { return __builtin_powf(x, y); }
static inline float tanh(float x) { return __builtin_tanhf(x); }
static inline float floor(float x) { return __builtin_floorf(x); }
static inline float ceil(float x) { return __builtin_ceilf(x); }
static inline float rint(float x) { return __builtin_rintf(x); }
static inline bool isnan(float x) { return x != x; }
static inline bool isinf(float x) { return __builtin_fabsf(x) == __builtin_inff(); }

static inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }
static inline uint popcount(ulong x) { return uint(__builtin_popcountl(x)); }
static inline uint clz(uint x) { return x == 0 ? 32u : uint(__builtin_clz(x)); }
static inline uint mulhi(uint a, uint b) { return uint((ulong(a) * ulong(b)) >> 32); }

static inline float select(float a, float b, bool condition) { return condition ? b : a; }
static inline int select(int a, int b, bool condition) { return condition ? b : a; }
static inline uint select(uint a, uint b, bool condition) { return condition ? b : a; }
static inline half select(half a, half b, bool condition) { return condition ? b : a; }

static inline int dot4_i8(int a, int b, int c) {
    for (int shift = 0; shift < 32; shift += 8) {
        c += int((signed char)(uint(a) >> shift)) * int((signed char)(uint(b) >> shift));
    }
    return c;
}
