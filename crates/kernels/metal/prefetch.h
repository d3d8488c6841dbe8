// What stands around wait_for_previous() where a kernel does more before it than to wait.

// Asks for the 128 bytes around `p` to be brought into the second-level cache. No thread waits for them, and what is written
// there later is seen as ever: so this may stand before wait_for_previous() whoever writes that memory. Only CUDA has it.
static inline void prefetch_line(DEVICE(const uint4) p) {
#if defined(MARLIN_TARGET_CUDA)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#endif
}

// The bits of element i, loaded here and nowhere else: a compiler would put the load where the value is used, at the end of a kernel
// that has been busy long enough to have hidden its latency. early_float makes a float of them: to convert is to wait.
static inline uint load_early(DEVICE(const float) p, uint i) {
#if defined(MARLIN_TARGET_CUDA)
    uint out;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(out) : "l"(__cvta_generic_to_global(p + i)));
    return out;
#else
    return as_uint(p[i]);
#endif
}
static inline uint load_early(DEVICE(const half) p, uint i) {
#if defined(MARLIN_TARGET_CUDA)
    ushort out;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(out) : "l"(__cvta_generic_to_global(p + i)));
    return uint(out);
#else
    half v = p[i];
    return uint(as_ushort(v));
#endif
}
static inline uint load_early(DEVICE(const bf16) p, uint i) {
#if defined(MARLIN_TARGET_CUDA)
    ushort out;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(out) : "l"(__cvta_generic_to_global(p + i)));
    return uint(out);
#else
    return as_uint(load_float(p, i)) >> 16u;
#endif
}
static inline float early_float(uint bits, float) { return as_float(bits); }
static inline float early_float(uint bits, half) { return float(as_half(ushort(bits))); }
static inline float early_float(uint bits, bf16) { return as_float(bits << 16u); }
