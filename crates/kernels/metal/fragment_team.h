// Products of teams: four SIMD-groups beside each other in row_group, each with weight fragments of 16 rows, multiply
// them with the same staged tokens, and the matrix units read those from threadgroup memory themselves.
// `wgmma` on sm_90a; elsewhere every SIMD-group loads token fragments (fragment.h) and multiplies on its own.
//
// Staged tokens are Operands (of 16 bits: memory for them is declared as half), 64 columns of `tiles` · 8 tokens: granules of 16 bytes a token, token after token.
// Granule 2·s + h holds of columns 16·s + 4·j + 2·h + (0, 1), j = 0…3, so that both operands count columns as
// fragment.h does: with tokens in the order of memory, weights would have to be packed in another for each machine.
// Between granules lie 16 bytes, so that neighbouring columns of a token, which come together from memory,
// go to other banks.
//
// The order of calls: stage_tokens by the team, tokens_staged(), a barrier among the team,
// team_begin(), team_multiply() once or more, team_commit(). A product is done, and its weights and tokens may change, after
// team_wait<n>() with n commits or fewer behind it.
//
// A file that includes this defines TEAM_STEPS: whether the place of a step is one addition to the unit's, or computed from the start.

// Elements from one granule of a token to the next.
static inline uint granule_stride(uint tiles) { return tiles * 64u + 8u; }

// Elements of a staged unit of 64 columns.
static inline uint staged_elements(uint tiles) { return 8u * granule_stride(tiles); }

// Where a lane of a SIMD-group that stages a tile puts columns 8·(lane mod 8)… of token lane / 8 of the first four.
static inline uint stage_place(uint tiles, uint lane) {
    return lane % 8u / 2u * 2u * granule_stride(tiles) + lane / 8u * 8u + lane % 2u * 4u;
}

// Stores eight columns of a token at `place`, its stage_place.
static inline void stage_tokens(THREADGROUP(half) place, uint tiles, uint4 columns) {
    *threadgroup_cast(uint2, place) = make_uint2(columns.x, columns.z);
    *threadgroup_cast(uint2, place + granule_stride(tiles)) = make_uint2(columns.y, columns.w);
}

// Staged tokens as they are multiplied.
struct TeamTokens {
    THREADGROUP(const half) staged;
    // The lower word of their matrix descriptor, where there are any (TEAM_STEPS).
    uint descriptor;
};

#if defined(MARLIN_TARGET_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
static inline uint team_descriptor(THREADGROUP(const half) staged, uint tiles) {
    uint at = uint(__cvta_generic_to_shared(staged));
    return ((at & 0x3ffffu) >> 4u) | (granule_stride(tiles) * 2u >> 4u) << 16u;
}
#else
static inline uint team_descriptor(THREADGROUP(const half), uint) { return 0u; }
#endif

static inline TeamTokens team_tokens(THREADGROUP(const half) staged, uint tiles) {
    TeamTokens tokens;
    tokens.staged = staged;
    tokens.descriptor = team_descriptor(staged, tiles);
    return tokens;
}

// Those `elements`, a multiple of 8, further on.
static inline TeamTokens team_tokens_at(TeamTokens tokens, uint elements) {
    tokens.staged = tokens.staged + elements;
    tokens.descriptor += elements / 8u;
    return tokens;
}

#if defined(MARLIN_TARGET_CUDA) && defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What ordinary stores wrote becomes visible to the matrix units (PTX ISA, "Async proxy").
static inline void tokens_staged() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
static inline void team_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static inline void team_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending> static inline void team_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

#define TEAM_SUM(n)                                                                               \
    "+f"(s[n].element[0]), "+f"(s[n].element[1]), "+f"(s[n].element[2]), "+f"(s[n].element[3])

// sums[0…tiles) += weights · columns 16·step… of the staged tokens. PTX ISA, "wgmma.mma_async" and "Matrix descriptor
// format": granules are `leading`, eight tokens of one granule `stride` bytes apart; no swizzle.
#define TEAM_MULTIPLY(E, name)                                                                          \
    static inline void team_multiply_words(                                                             \
        THREAD(SumFragment) s, THREAD(const WeightFragment) weights, TeamTokens tokens, uint tiles,     \
        uint step, E) {                                                                                 \
        const uint *w = weights->pair;                                                                  \
        uint low = TEAM_STEPS                                                                           \
                       ? tokens.descriptor + step * (granule_stride(tiles) / 4u)                        \
                       : team_descriptor(tokens.staged + 2u * step * granule_stride(tiles), tiles);     \
        ulong stride = 128u;                                                                            \
        ulong x = ulong(low) | (stride >> 4u) << 32u;                                                   \
        if (tiles == 1u) {                                                                              \
            asm volatile(                                                                               \
                "{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                  \
                "wgmma.mma_async.sync.aligned.m64n8k16.f32." name "." name " "                          \
                "{%0, %1, %2, %3}, "                                                                    \
                "{%4, %5, %6, %7}, %8, p, 1, 1, 0; }"                                                   \
                : TEAM_SUM(0)                                                                           \
                : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                                  \
        } else if (tiles == 2u) {                                                                       \
            asm volatile(                                                                               \
                "{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                  \
                "wgmma.mma_async.sync.aligned.m64n16k16.f32." name "." name " "                         \
                "{%0, %1, %2, %3, %4, %5, %6, %7}, "                                                    \
                "{%8, %9, %10, %11}, %12, p, 1, 1, 0; }"                                                \
                : TEAM_SUM(0), TEAM_SUM(1)                                                              \
                : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                                  \
        } else if (tiles == 4u) {                                                                       \
            asm volatile(                                                                               \
                "{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                  \
                "wgmma.mma_async.sync.aligned.m64n32k16.f32." name "." name " "                         \
                "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "              \
                "{%16, %17, %18, %19}, %20, p, 1, 1, 0; }"                                              \
                : TEAM_SUM(0), TEAM_SUM(1), TEAM_SUM(2), TEAM_SUM(3)                                    \
                : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                                  \
        } else if (tiles == 8u) {                                                                       \
            asm volatile(                                                                               \
                "{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                  \
                "wgmma.mma_async.sync.aligned.m64n64k16.f32." name "." name " "                         \
                "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "               \
                "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "     \
                "{%32, %33, %34, %35}, %36, p, 1, 1, 0; }"                                              \
                : TEAM_SUM(0), TEAM_SUM(1), TEAM_SUM(2), TEAM_SUM(3), TEAM_SUM(4), TEAM_SUM(5),         \
                  TEAM_SUM(6), TEAM_SUM(7)                                                              \
                : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                                  \
        } else if (tiles == 16u) {                                                                      \
            asm volatile(                                                                               \
                "{ .reg .pred p; setp.ne.b32 p, 1, 0;"                                                  \
                "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " "                        \
                "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "               \
                "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "      \
                "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "      \
                "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "     \
                "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"                                              \
                : TEAM_SUM(0), TEAM_SUM(1), TEAM_SUM(2), TEAM_SUM(3), TEAM_SUM(4), TEAM_SUM(5),         \
                  TEAM_SUM(6), TEAM_SUM(7), TEAM_SUM(8), TEAM_SUM(9), TEAM_SUM(10), TEAM_SUM(11),       \
                  TEAM_SUM(12), TEAM_SUM(13), TEAM_SUM(14), TEAM_SUM(15)                                \
                : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x));                                  \
        }                                                                                               \
    }
TEAM_MULTIPLY(half, "f16")
TEAM_MULTIPLY(bf16, "bf16")
#undef TEAM_MULTIPLY

static inline void team_multiply(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights, TeamTokens tokens, uint tiles,
    uint step, uint) {
    team_multiply_words(sums, weights, tokens, tiles, step, Operand());
}
#undef TEAM_SUM

#else

static inline void tokens_staged() {}
static inline void team_begin() {}
static inline void team_commit() {}
template <int Pending> static inline void team_wait() {}

// One step's fragment of a tile of eight tokens.
static inline void load_staged(
    THREADGROUP(const half) staged, uint tiles, uint step, uint tile, uint lane,
    THREAD(TokenFragment) out) {
#if defined(MARLIN_TARGET_METAL)
    uint token = tile * 8u + 2u * fragment_quad(lane);
    for (uint h = 0u; h < 2u; ++h) {
        THREADGROUP(const half) granule =
            staged + (2u * step + h) * granule_stride(tiles) + token * 8u + fragment_row(lane);
        for (uint i = 0u; i < 2u; ++i) {
            // A word of one element: its lower half is what counts.
            float2 element = operand_floats(uint(as_ushort(granule[8u * i])), Operand());
            out->half_of_k[h].thread_elements()[i] = operand_element(element.x, Operand());
        }
    }
#else
    uint token = tile * 8u + fragment_row(lane);
    UNROLL
    for (uint h = 0u; h < 2u; ++h) {
        THREADGROUP(const half) granule =
            staged + (2u * step + h) * granule_stride(tiles) + token * 8u;
        out->pair[h] = *threadgroup_cast(const uint, granule + 2u * fragment_quad(lane));
    }
#endif
}

static inline void team_multiply(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights, TeamTokens tokens, uint tiles,
    uint step, uint lane) {
    UNROLL
    for (uint n = 0u; n < 16u; ++n) {
        if (n < tiles) {
            TokenFragment here;
            load_staged(tokens.staged, tiles, step, n, lane, &here);
            multiply_accumulate(&sums[n], weights, &here);
        }
    }
}

#endif
