// The dialect of docs/kernels.md for Apple's compiler: Metal Shading Language 3.0, Apple GPU family 7
// and later. Sections (§) are those of the Metal Shading Language Specification.
//
// The library must be compiled with language version 3.0 and with the mathematics mode "safe": under
// fast mathematics the results of operations on NaN and infinity are undefined (§1.6.3, §8.1), and
// with them `isnan`, `isinf` and masks of -INFINITY.

#include <metal_stdlib>
#include <metal_atomic>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>

using namespace metal;

#define MARLIN_TARGET_METAL 1

// Kernels and their parameters (§5.1.3, §5.2.1).
//
// `device` buffers that are arguments of one kernel must not overlap (§5.2): Apple's compiler may
// reorder loads and stores across them. What is read and written is one INOUT parameter.
#define IN(T) device const T *
#define IN_OPTIONAL(T) device const T *
#define OUT(T) device T *
#define INOUT(T) device T *
#define INOUT_OPTIONAL(T) device T *
#define INLINE(T) constant T &

// A function constant (§5.8.1): constant after specialisation, never a constant expression.
#define SPECIALISE(type, name, index) constant type name [[function_constant(index)]]

// Read by the build, which compiles the file once for each type.
#define ELEMENTS(...) static_assert(true, "")

// Checked by the launcher against the pipeline's threadExecutionWidth, which is 32 on every
// Apple GPU of family 7 and later.
#define REQUIRES_SIMD_WIDTH(width)

#define UNROLL _Pragma("clang loop unroll(enable)")
#define ROLLED _Pragma("clang loop unroll(disable)")

// Address spaces (§4).
#define DEVICE(T) device T *
#define THREADGROUP(T) threadgroup T *
#define THREAD(T) thread T *
#define THREADGROUP_ARRAY(T, name, n) threadgroup T name[n]
#define CONSTANT_TABLE(T, name, n) constant T name[n]

// `reinterpret_cast` changes neither the address space nor constness, as a C-style cast could.
#define device_cast(T, p) (reinterpret_cast<device T *>(p))
#define threadgroup_cast(T, p) (reinterpret_cast<threadgroup T *>(p))

// Vectors (§2.2.2).
static inline uchar2 make_uchar2(uchar x, uchar y) { return uchar2(x, y); }
static inline uchar4 make_uchar4(uchar x, uchar y, uchar z, uchar w) { return uchar4(x, y, z, w); }
static inline ushort2 make_ushort2(ushort x, ushort y) { return ushort2(x, y); }
static inline ushort4 make_ushort4(ushort x, ushort y, ushort z, ushort w) { return ushort4(x, y, z, w); }
static inline uint2 make_uint2(uint x, uint y) { return uint2(x, y); }
static inline uint3 make_uint3(uint x, uint y, uint z) { return uint3(x, y, z); }
static inline uint4 make_uint4(uint x, uint y, uint z, uint w) { return uint4(x, y, z, w); }
static inline int2 make_int2(int x, int y) { return int2(x, y); }
static inline int4 make_int4(int x, int y, int z, int w) { return int4(x, y, z, w); }
static inline half2 make_half2(half x, half y) { return half2(x, y); }
static inline half4 make_half4(half x, half y, half z, half w) { return half4(x, y, z, w); }
static inline float2 make_float2(float x, float y) { return float2(x, y); }
static inline float4 make_float4(float x, float y, float z, float w) { return float4(x, y, z, w); }

// Bits (§2.21).
static inline uint as_uint(float x) { return as_type<uint>(x); }
static inline uint as_uint(half2 x) { return as_type<uint>(x); }
static inline int as_int(float x) { return as_type<int>(x); }
static inline float as_float(uint x) { return as_type<float>(x); }
static inline half as_half(ushort x) { return as_type<half>(x); }
static inline ushort as_ushort(half x) { return as_type<ushort>(x); }
static inline half2 as_half2(uint x) { return as_type<half2>(x); }

static inline half2 half2_fma(half2 a, half2 b, half2 c) { return fma(a, b, c); }
static inline float2 float2_from_half2(half2 x) { return float2(x); }
static inline half2 half2_from_float2(float2 x) { return half2(x); }

// The upper half of a float. `bfloat` is a type of Metal 3.1 only (§2.1).
struct bf16 {
    ushort bits;
};

static inline float float_from_bf16(bf16 x) { return as_type<float>(uint(x.bits) << 16); }

// Rounds to nearest, ties to even; every NaN becomes a quiet one, so that none rounds to infinity.
static inline bf16 bf16_from_float(float x) {
    uint bits = as_type<uint>(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    bf16 out;
    out.bits = ushort((nan ? (bits | 0x400000u) : rounded) >> 16);
    return out;
}

// Elements as floats. The index is a type parameter so that 32-bit and 64-bit ones both keep theirs:
// 64-bit integer arithmetic costs several instructions on these GPUs.
template <typename I> static inline float load_float(device const float *p, I i) { return p[i]; }
template <typename I> static inline float load_float(device const half *p, I i) { return float(p[i]); }
template <typename I> static inline float load_float(device const bf16 *p, I i) {
    return float_from_bf16(p[i]);
}
template <typename I> static inline float load_float(threadgroup const float *p, I i) { return p[i]; }
template <typename I> static inline float load_float(threadgroup const half *p, I i) {
    return float(p[i]);
}
template <typename I> static inline float load_float(threadgroup const bf16 *p, I i) {
    return float_from_bf16(p[i]);
}
template <typename I> static inline void store_float(device float *p, I i, float v) { p[i] = v; }
template <typename I> static inline void store_float(device half *p, I i, float v) { p[i] = half(v); }
template <typename I> static inline void store_float(device bf16 *p, I i, float v) {
    p[i] = bf16_from_float(v);
}
template <typename I> static inline void store_float(threadgroup float *p, I i, float v) { p[i] = v; }
template <typename I> static inline void store_float(threadgroup half *p, I i, float v) {
    p[i] = half(v);
}
template <typename I> static inline void store_float(threadgroup bf16 *p, I i, float v) {
    p[i] = bf16_from_float(v);
}

// Metal has no cache hints and, in the language, no asynchronous copy: both are plain accesses.
template <typename T> static inline T load_streaming(device const T *p) { return *p; }
template <typename T> static inline T load_constant(device const T *p) { return *p; }

template <typename D, typename S>
static inline void copy_async(threadgroup D *destination, device const S *source) {
    *reinterpret_cast<threadgroup uint4 *>(destination) =
        *reinterpret_cast<device const uint4 *>(source);
}
static inline void copy_async_commit() {}
template <int pending> static inline void copy_async_wait() {}

// Barriers (§6.9.1).
static inline void barrier_threadgroup() { threadgroup_barrier(mem_flags::mem_threadgroup); }
static inline void barrier_device() {
    threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
}
static inline void barrier_team(uint, uint) { barrier_threadgroup(); }
static inline void barrier_simdgroup() {
    simdgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
}

// SIMD-groups (§6.9.2): the permutations and reductions have Metal's own names. The vote's bits
// above the SIMD-group's width are undefined there, so they are cleared; the width is 32.
static inline ulong marlin_simd_ballot(bool predicate) {
    return ulong(uint(static_cast<simd_vote::vote_t>(metal::simd_ballot(predicate))));
}
#define simd_ballot(predicate) marlin_simd_ballot(predicate)

// Atomics (§6.15.4), all relaxed. Macros, because `metal` declares functions of some of these
// names, without an order, on some systems.
#define MARLIN_ATOMICS(space)                                                                         \
    static inline uint marlin_atomic_add(space atomic_uint *p, uint v) {                              \
        return atomic_fetch_add_explicit(p, v, memory_order_relaxed);                                 \
    }                                                                                                 \
    static inline uint marlin_atomic_max(space atomic_uint *p, uint v) {                              \
        return atomic_fetch_max_explicit(p, v, memory_order_relaxed);                                 \
    }                                                                                                 \
    static inline uint marlin_atomic_min(space atomic_uint *p, uint v) {                              \
        return atomic_fetch_min_explicit(p, v, memory_order_relaxed);                                 \
    }                                                                                                 \
    static inline uint marlin_atomic_or(space atomic_uint *p, uint v) {                               \
        return atomic_fetch_or_explicit(p, v, memory_order_relaxed);                                  \
    }                                                                                                 \
    static inline uint marlin_atomic_load(space const atomic_uint *p) {                               \
        return atomic_load_explicit(p, memory_order_relaxed);                                         \
    }                                                                                                 \
    static inline void marlin_atomic_store(space atomic_uint *p, uint v) {                            \
        atomic_store_explicit(p, v, memory_order_relaxed);                                            \
    }                                                                                                 \
    static inline uint marlin_atomic_exchange(space atomic_uint *p, uint v) {                         \
        return atomic_exchange_explicit(p, v, memory_order_relaxed);                                  \
    }
MARLIN_ATOMICS(device)
MARLIN_ATOMICS(threadgroup)
#undef MARLIN_ATOMICS
#define atomic_add(p, v) marlin_atomic_add(p, v)
#define atomic_max(p, v) marlin_atomic_max(p, v)
#define atomic_min(p, v) marlin_atomic_min(p, v)
#define atomic_or(p, v) marlin_atomic_or(p, v)
#define atomic_load(p) marlin_atomic_load(p)
#define atomic_store(p, v) marlin_atomic_store(p, v)
#define atomic_exchange(p, v) marlin_atomic_exchange(p, v)

// Mathematics beyond Metal's own (§6.2 to §6.5).
static inline float fast_exp(float x) { return fast::exp2(x * 1.44269504f); }

static inline int dot4_i8(int a, int b, int c) {
    char4 x = as_type<char4>(a);
    char4 y = as_type<char4>(b);
    return c + int(x.x) * int(y.x) + int(x.y) * int(y.y) + int(x.z) * int(y.z) + int(x.w) * int(y.w);
}

// Dispatches of one encoder overlap as its barriers allow; there is nothing to say from inside a kernel.
static inline void allow_next() {}
static inline void wait_for_previous() {}
