// The kernel dialect (docs/kernels.md) for NVRTC, sm_80 and later.
//
// Self-contained: whoever runs a kernel has the driver and libnvrtc, and no CUDA headers. NVRTC
// itself knows the vector types without operators, the mathematics functions and the warp
// intrinsics; half precision and asynchronous copies are PTX here (PTX ISA 7.4 and later).
//
// The device defines MARLIN_THREADS_X, _Y and _Z when it compiles for one size of threadgroup, and
// MARLIN_ALIASED when a dispatch binds memory that it writes a second time.

#define MARLIN_TARGET_CUDA 1

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#ifndef FLT_MAX
#define FLT_MAX 3.402823466e+38f
#endif

// ---- Declarations -------------------------------------------------------------------------------

// Without aliasing the compiler may move loads over stores and use the read-only path for inputs; and over
// wait_for_previous(), since what only inputs point to is constant in its eyes, and what only an output points to is nobody
// else's. Where a kernel does more before that than to wait, a load that came too early would read what is not there yet: such
// kernels (MARLIN_WORKS_BEFORE_WAITING, which kernels/src/source.rs finds out) promise the compiler nothing.
#if defined(MARLIN_ALIASED) || defined(MARLIN_WORKS_BEFORE_WAITING)
#define MARLIN_RESTRICT
#else
#define MARLIN_RESTRICT __restrict__
#endif

#ifdef MARLIN_THREADS_X
#define MARLIN_LAUNCH_BOUNDS __launch_bounds__(MARLIN_THREADS_X * MARLIN_THREADS_Y * MARLIN_THREADS_Z)
#else
#define MARLIN_THREADS_X blockDim.x
#define MARLIN_THREADS_Y blockDim.y
#define MARLIN_THREADS_Z blockDim.z
#define MARLIN_LAUNCH_BOUNDS __launch_bounds__(1024)
#endif

// A kernel's body is a function that its entry point inlines.
#define kernel static __forceinline__
#define IN(...) const __VA_ARGS__ *MARLIN_RESTRICT
#define OUT(...) __VA_ARGS__ *MARLIN_RESTRICT
#define INOUT(...) __VA_ARGS__ *MARLIN_RESTRICT
#define INOUT_OPTIONAL(...) __VA_ARGS__ *MARLIN_RESTRICT
#define IN_OPTIONAL(...) const __VA_ARGS__ *MARLIN_RESTRICT
#define INLINE(...) const __VA_ARGS__ &
#define DEVICE(...) __VA_ARGS__ *
#define THREADGROUP(...) __VA_ARGS__ *
#define THREAD(...) __VA_ARGS__ *
// 16-byte alignment is what vector accesses and asynchronous copies need.
#define THREADGROUP_ARRAY(type, name, count) __shared__ __align__(16) type name[count]
#define CONSTANT_TABLE(type, name, count) static __constant__ __align__(16) const type name[count]
#define SPECIALISE(type, name, index) static constexpr type name = MARLIN_VALUE_##name
#define ELEMENTS(...) static_assert(true, "")
#define REQUIRES_SIMD_WIDTH(width)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define device_cast(type, pointer) ((type *)(pointer))
#define threadgroup_cast(type, pointer) ((type *)(pointer))

#define MARLIN_INLINE static __forceinline__ __device__

MARLIN_INLINE uint marlin_thread_index() {
    return threadIdx.x + MARLIN_THREADS_X * (threadIdx.y + MARLIN_THREADS_Y * threadIdx.z);
}

// ---- Bits ---------------------------------------------------------------------------------------

MARLIN_INLINE uint as_uint(float v) { return __float_as_uint(v); }
MARLIN_INLINE uint as_uint(int v) { return uint(v); }
MARLIN_INLINE uint as_uint(uint v) { return v; }
MARLIN_INLINE int as_int(float v) { return __float_as_int(v); }
MARLIN_INLINE int as_int(uint v) { return int(v); }
MARLIN_INLINE int as_int(int v) { return v; }
MARLIN_INLINE float as_float(uint v) { return __uint_as_float(v); }
MARLIN_INLINE float as_float(int v) { return __int_as_float(v); }

// ---- half, bf16 ---------------------------------------------------------------------------------

struct half {
    ushort bits;
    half() = default;
    // Rounds to nearest, ties to even, as Metal does.
    explicit __forceinline__ __device__ half(float v) {
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    }
    // No other conversion: the dialect has none.
    template <typename Other> explicit half(Other) = delete;
    explicit __forceinline__ __device__ operator float() const {
        float v;
        asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
        return v;
    }
};

MARLIN_INLINE half as_half(ushort bits) {
    half out;
    out.bits = bits;
    return out;
}
MARLIN_INLINE ushort as_ushort(half v) { return v.bits; }

// One PTX instruction on halves; `rn` keeps the compiler from fusing it into an fma.
#define MARLIN_HALF_BINARY(name, instruction)                                                      \
    MARLIN_INLINE half name(half a, half b) {                                                      \
        half out;                                                                                  \
        asm(instruction ".f16 %0, %1, %2;" : "=h"(out.bits) : "h"(a.bits), "h"(b.bits));           \
        return out;                                                                                \
    }
MARLIN_HALF_BINARY(operator+, "add.rn")
MARLIN_HALF_BINARY(operator-, "sub.rn")
MARLIN_HALF_BINARY(operator*, "mul.rn")
MARLIN_HALF_BINARY(min, "min")
MARLIN_HALF_BINARY(max, "max")
#undef MARLIN_HALF_BINARY

MARLIN_INLINE half operator/(half a, half b) { return half(float(a) / float(b)); }
MARLIN_INLINE half operator-(half a) { return as_half(ushort(a.bits ^ 0x8000u)); }
MARLIN_INLINE half abs(half a) { return as_half(ushort(a.bits & 0x7fffu)); }
MARLIN_INLINE half &operator+=(half &a, half b) { return a = a + b; }
MARLIN_INLINE half &operator-=(half &a, half b) { return a = a - b; }
MARLIN_INLINE half &operator*=(half &a, half b) { return a = a * b; }
MARLIN_INLINE bool operator==(half a, half b) { return float(a) == float(b); }
MARLIN_INLINE bool operator!=(half a, half b) { return float(a) != float(b); }
MARLIN_INLINE bool operator<(half a, half b) { return float(a) < float(b); }
MARLIN_INLINE bool operator<=(half a, half b) { return float(a) <= float(b); }
MARLIN_INLINE bool operator>(half a, half b) { return float(a) > float(b); }
MARLIN_INLINE bool operator>=(half a, half b) { return float(a) >= float(b); }

struct bf16 {
    ushort bits;
};

MARLIN_INLINE bf16 bf16_from_float(float v) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}
MARLIN_INLINE float float_from_bf16(bf16 v) { return as_float(uint(v.bits) << 16); }

// ---- Vectors ------------------------------------------------------------------------------------

// NVRTC has the vectors of integers and floats, and make_… for them.
struct __align__(4) half2 {
    half x, y;
};
struct __align__(8) half4 {
    half x, y, z, w;
};

MARLIN_INLINE half2 make_half2(half x, half y) {
    half2 out;
    out.x = x;
    out.y = y;
    return out;
}
MARLIN_INLINE half4 make_half4(half x, half y, half z, half w) {
    half4 out;
    out.x = x;
    out.y = y;
    out.z = z;
    out.w = w;
    return out;
}

// A pair is one 32-bit register; these compile to nothing.
MARLIN_INLINE uint as_uint(half2 v) { return *(const uint *)&v; }
MARLIN_INLINE half2 as_half2(uint v) { return *(const half2 *)&v; }

#define MARLIN_HALF2_BINARY(name, instruction)                                                     \
    MARLIN_INLINE half2 name(half2 a, half2 b) {                                                   \
        uint out;                                                                                  \
        asm(instruction ".f16x2 %0, %1, %2;" : "=r"(out) : "r"(as_uint(a)), "r"(as_uint(b)));      \
        return as_half2(out);                                                                      \
    }
MARLIN_HALF2_BINARY(operator+, "add.rn")
MARLIN_HALF2_BINARY(operator-, "sub.rn")
MARLIN_HALF2_BINARY(operator*, "mul.rn")
MARLIN_HALF2_BINARY(min, "min")
MARLIN_HALF2_BINARY(max, "max")
#undef MARLIN_HALF2_BINARY

MARLIN_INLINE half2 half2_fma(half2 a, half2 b, half2 c) {
    uint out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(out)
        : "r"(as_uint(a)), "r"(as_uint(b)), "r"(as_uint(c)));
    return as_half2(out);
}
MARLIN_INLINE float2 float2_from_half2(half2 v) { return make_float2(float(v.x), float(v.y)); }
// The instruction takes the upper half first.
MARLIN_INLINE half2 half2_from_float2(float2 v) {
    uint out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(v.y), "f"(v.x));
    return as_half2(out);
}

MARLIN_INLINE half2 operator*(half2 a, half s) { return a * make_half2(s, s); }
MARLIN_INLINE half2 operator*(half s, half2 a) { return a * make_half2(s, s); }
MARLIN_INLINE half2 operator-(half2 a) { return as_half2(as_uint(a) ^ 0x80008000u); }

// Two pairs: two instructions.
MARLIN_INLINE half2 marlin_low(half4 v) { return make_half2(v.x, v.y); }
MARLIN_INLINE half2 marlin_high(half4 v) { return make_half2(v.z, v.w); }
MARLIN_INLINE half4 marlin_join(half2 a, half2 b) { return make_half4(a.x, a.y, b.x, b.y); }
MARLIN_INLINE half4 operator+(half4 a, half4 b) {
    return marlin_join(marlin_low(a) + marlin_low(b), marlin_high(a) + marlin_high(b));
}
MARLIN_INLINE half4 operator-(half4 a, half4 b) {
    return marlin_join(marlin_low(a) - marlin_low(b), marlin_high(a) - marlin_high(b));
}
MARLIN_INLINE half4 operator*(half4 a, half4 b) {
    return marlin_join(marlin_low(a) * marlin_low(b), marlin_high(a) * marlin_high(b));
}
MARLIN_INLINE half4 operator*(half4 a, half s) {
    return marlin_join(marlin_low(a) * s, marlin_high(a) * s);
}
MARLIN_INLINE half4 operator*(half s, half4 a) { return a * s; }
MARLIN_INLINE half4 operator-(half4 a) { return marlin_join(-marlin_low(a), -marlin_high(a)); }

#define MARLIN_FLOAT_BINARY(op)                                                                    \
    MARLIN_INLINE float2 operator op(float2 a, float2 b) {                                         \
        return make_float2(a.x op b.x, a.y op b.y);                                                \
    }                                                                                              \
    MARLIN_INLINE float4 operator op(float4 a, float4 b) {                                         \
        return make_float4(a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w);                        \
    }
MARLIN_FLOAT_BINARY(+)
MARLIN_FLOAT_BINARY(-)
MARLIN_FLOAT_BINARY(*)
#undef MARLIN_FLOAT_BINARY

MARLIN_INLINE float2 operator*(float2 a, float s) { return make_float2(a.x * s, a.y * s); }
MARLIN_INLINE float2 operator*(float s, float2 a) { return a * s; }
MARLIN_INLINE float4 operator*(float4 a, float s) {
    return make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
}
MARLIN_INLINE float4 operator*(float s, float4 a) { return a * s; }
MARLIN_INLINE float2 operator-(float2 a) { return make_float2(-a.x, -a.y); }
MARLIN_INLINE float4 operator-(float4 a) { return make_float4(-a.x, -a.y, -a.z, -a.w); }

#define MARLIN_COMPOUND(type, scalar)                                                              \
    MARLIN_INLINE type &operator+=(type &a, type b) { return a = a + b; }                          \
    MARLIN_INLINE type &operator-=(type &a, type b) { return a = a - b; }                          \
    MARLIN_INLINE type &operator*=(type &a, type b) { return a = a * b; }                          \
    MARLIN_INLINE type &operator*=(type &a, scalar s) { return a = a * s; }
MARLIN_COMPOUND(half2, half)
MARLIN_COMPOUND(half4, half)
MARLIN_COMPOUND(float2, float)
MARLIN_COMPOUND(float4, float)
#undef MARLIN_COMPOUND

// ---- Memory -------------------------------------------------------------------------------------

MARLIN_INLINE float load_float(const float *p, ulong i) { return p[i]; }
MARLIN_INLINE float load_float(const half *p, ulong i) { return float(p[i]); }
MARLIN_INLINE float load_float(const bf16 *p, ulong i) { return float_from_bf16(p[i]); }
MARLIN_INLINE void store_float(float *p, ulong i, float v) { p[i] = v; }
MARLIN_INLINE void store_float(half *p, ulong i, float v) { p[i] = half(v); }
MARLIN_INLINE void store_float(bf16 *p, ulong i, float v) { p[i] = bf16_from_float(v); }

// Weights are read once: they must not push the activations out of L1, and a memory sector fetched
// with its neighbours saves requests (PTX ISA, "ld.global", level::prefetch_size).
//
// Not ld.global.nc: the assembler moves such loads over barriers, and puts those for the next turn of a loop at the end of
// this one, where their latency is not hidden by anything. These stay before the barrier that follows them.
template <int Bytes> struct marlin_stream;
template <> struct marlin_stream<4> {
    static __forceinline__ __device__ void load(void *out, const void *p) {
        asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];"
                     : "=r"(*(uint *)out)
                     : "l"(__cvta_generic_to_global(p)));
    }
};
template <> struct marlin_stream<8> {
    static __forceinline__ __device__ void load(void *out, const void *p) {
        uint *words = (uint *)out;
        asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                     : "=r"(words[0]), "=r"(words[1])
                     : "l"(__cvta_generic_to_global(p)));
    }
};
template <> struct marlin_stream<16> {
    static __forceinline__ __device__ void load(void *out, const void *p) {
        uint *words = (uint *)out;
        asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "l"(__cvta_generic_to_global(p)));
    }
};
template <typename T> MARLIN_INLINE T load_streaming(const T *p) {
    if constexpr (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16) {
        T out;
        marlin_stream<sizeof(T)>::load(&out, p);
        return out;
    } else {
        return *p;
    }
}

// Memory that no dispatch writes: the compiler may load it whenever it likes, before wait_for_previous() too.
template <typename T> MARLIN_INLINE T load_constant(const T *p) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "2, 4 or 8 bytes");
    T out;
    if constexpr (sizeof(T) == 2) {
        asm("ld.global.nc.u16 %0, [%1];" : "=h"(*(ushort *)&out) : "l"(__cvta_generic_to_global(p)));
    } else if constexpr (sizeof(T) == 4) {
        asm("ld.global.nc.u32 %0, [%1];" : "=r"(*(uint *)&out) : "l"(__cvta_generic_to_global(p)));
    } else {
        uint *words = (uint *)&out;
        asm("ld.global.nc.v2.u32 {%0, %1}, [%2];"
            : "=r"(words[0]), "=r"(words[1])
            : "l"(__cvta_generic_to_global(p)));
    }
    return out;
}

MARLIN_INLINE void copy_async(void *destination, const void *source) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                     uint(__cvta_generic_to_shared(destination))),
                 "l"(__cvta_generic_to_global(source))
                 : "memory");
}
MARLIN_INLINE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending> MARLIN_INLINE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- Synchronisation and SIMD-groups ------------------------------------------------------------

// bar.sync orders the threadgroup's accesses to device memory too (PTX ISA, "bar").
MARLIN_INLINE void barrier_threadgroup() { __syncthreads(); }
MARLIN_INLINE void barrier_device() { __syncthreads(); }
MARLIN_INLINE void barrier_simdgroup() { __syncwarp(); }
// Barrier 0 is __syncthreads's.
MARLIN_INLINE void barrier_team(uint team, uint threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(team + 1u), "r"(threads) : "memory");
}

#define MARLIN_ALL_LANES 0xffffffffu

template <typename T> MARLIN_INLINE T simd_shuffle(T v, uint lane) {
    return __shfl_sync(MARLIN_ALL_LANES, v, int(lane));
}
template <typename T> MARLIN_INLINE T simd_broadcast(T v, uint lane) {
    return __shfl_sync(MARLIN_ALL_LANES, v, int(lane));
}
template <typename T> MARLIN_INLINE T simd_shuffle_xor(T v, uint mask) {
    return __shfl_xor_sync(MARLIN_ALL_LANES, v, int(mask));
}
template <typename T> MARLIN_INLINE T simd_shuffle_down(T v, uint n) {
    return __shfl_down_sync(MARLIN_ALL_LANES, v, n);
}
template <typename T> MARLIN_INLINE T simd_shuffle_up(T v, uint n) {
    return __shfl_up_sync(MARLIN_ALL_LANES, v, n);
}
#define MARLIN_HALF2_EXCHANGE(name)                                                                \
    template <> __forceinline__ __device__ half2 name<half2>(half2 v, uint n) {                    \
        return as_half2(name(as_uint(v), n));                                                      \
    }
MARLIN_HALF2_EXCHANGE(simd_shuffle)
MARLIN_HALF2_EXCHANGE(simd_broadcast)
MARLIN_HALF2_EXCHANGE(simd_shuffle_xor)
MARLIN_HALF2_EXCHANGE(simd_shuffle_down)
MARLIN_HALF2_EXCHANGE(simd_shuffle_up)
#undef MARLIN_HALF2_EXCHANGE

// A butterfly leaves the same bits in every lane.
MARLIN_INLINE float simd_sum(float v) {
    UNROLL for (uint step = 16; step > 0; step /= 2) v += simd_shuffle_xor(v, step);
    return v;
}
MARLIN_INLINE float simd_max(float v) {
    UNROLL for (uint step = 16; step > 0; step /= 2) v = fmaxf(v, simd_shuffle_xor(v, step));
    return v;
}
MARLIN_INLINE float simd_min(float v) {
    UNROLL for (uint step = 16; step > 0; step /= 2) v = fminf(v, simd_shuffle_xor(v, step));
    return v;
}
// Integers have an instruction from sm_80 on.
MARLIN_INLINE int simd_sum(int v) { return __reduce_add_sync(MARLIN_ALL_LANES, v); }
MARLIN_INLINE int simd_max(int v) { return __reduce_max_sync(MARLIN_ALL_LANES, v); }
MARLIN_INLINE int simd_min(int v) { return __reduce_min_sync(MARLIN_ALL_LANES, v); }
MARLIN_INLINE uint simd_sum(uint v) { return __reduce_add_sync(MARLIN_ALL_LANES, v); }
MARLIN_INLINE uint simd_max(uint v) { return __reduce_max_sync(MARLIN_ALL_LANES, v); }
MARLIN_INLINE uint simd_min(uint v) { return __reduce_min_sync(MARLIN_ALL_LANES, v); }

MARLIN_INLINE bool simd_any(bool v) { return __any_sync(MARLIN_ALL_LANES, v) != 0; }
MARLIN_INLINE bool simd_all(bool v) { return __all_sync(MARLIN_ALL_LANES, v) != 0; }
MARLIN_INLINE ulong simd_ballot(bool v) { return ulong(__ballot_sync(MARLIN_ALL_LANES, v)); }
MARLIN_INLINE uint simd_prefix_exclusive_sum(uint v) {
    uint lane = marlin_thread_index() % 32u;
    uint inclusive = v;
    UNROLL for (uint step = 1; step < 32; step *= 2) {
        uint other = simd_shuffle_up(inclusive, step);
        inclusive += lane >= step ? other : 0u;
    }
    return inclusive - v;
}

struct atomic_uint {
    uint value;
};

// Relaxed, among all threads of the device. The pointer is generic: either address space.
MARLIN_INLINE uint atomic_add(atomic_uint *p, uint v) { return atomicAdd(&p->value, v); }
MARLIN_INLINE uint atomic_max(atomic_uint *p, uint v) { return atomicMax(&p->value, v); }
MARLIN_INLINE uint atomic_min(atomic_uint *p, uint v) { return atomicMin(&p->value, v); }
MARLIN_INLINE uint atomic_or(atomic_uint *p, uint v) { return atomicOr(&p->value, v); }
MARLIN_INLINE uint atomic_exchange(atomic_uint *p, uint v) { return atomicExch(&p->value, v); }
MARLIN_INLINE uint atomic_load(const atomic_uint *p) {
    uint out;
    asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(out) : "l"(p) : "memory");
    return out;
}
MARLIN_INLINE void atomic_store(atomic_uint *p, uint v) {
    asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// ---- Mathematics --------------------------------------------------------------------------------

// The float overloads of fma, min, max, abs, exp, … are NVRTC's own.
MARLIN_INLINE float clamp(float v, float low, float high) { return fminf(fmaxf(v, low), high); }
MARLIN_INLINE int clamp(int v, int low, int high) { return min(max(v, low), high); }
MARLIN_INLINE uint clamp(uint v, uint low, uint high) { return min(max(v, low), high); }
template <typename T> MARLIN_INLINE T select(T a, T b, bool condition) {
    return condition ? b : a;
}
MARLIN_INLINE uint popcount(uint v) { return uint(__popc(v)); }
MARLIN_INLINE uint popcount(ulong v) { return uint(__popcll(v)); }
MARLIN_INLINE uint clz(uint v) { return uint(__clz(int(v))); }
MARLIN_INLINE uint mulhi(uint a, uint b) { return __umulhi(a, b); }
MARLIN_INLINE int dot4_i8(int a, int b, int c) { return __dp4a(a, b, c); }
MARLIN_INLINE float fast_exp(float v) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v * 1.4426950408889634f));
    return out;
}

// Programmatic dependent launch (PTX ISA, griddepcontrol; sm_90 and later): the next dispatch may start once every
// threadgroup has called allow_next(), and waits in wait_for_previous() until this one is done.
MARLIN_INLINE void allow_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
MARLIN_INLINE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
