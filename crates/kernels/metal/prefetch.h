// What stands around wait_for_previous() where a kernel does more before it than to wait.

// Asks for the 128 bytes around `p` to be brought into the second-level cache. No thread waits for them, and what is written
// there later is seen as ever: so this may stand before wait_for_previous() whoever writes that memory. Only CUDA has it.
static inline void prefetch_line(DEVICE(const uint4) p) {
#if defined(MARLIN_TARGET_CUDA)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#endif
}

// The pointer `p`, through which nothing is loaded before wait_for_previous(), behind which this stands. CUDA's compiler takes
// what only IN parameters point to for constant, and may load it as early as it likes; a pointer that comes from
// nowhere it has no such thoughts about.
template <typename P> static inline P after_wait(P p) {
#if defined(MARLIN_TARGET_CUDA)
    size_t address = __cvta_generic_to_global(p);
    asm volatile("" : "+l"(address)::"memory");
    return (P)__cvta_global_to_generic(address);
#else
    return p;
#endif
}
