// Matrix fragments: 16 weight rows × 16 columns times 16 columns × 8 tokens, f32 sums, by the 32
// threads of a SIMD-group. Three kinds of multiply-accumulate behind one set of names:
// `mma.sync.m16n8k16` on CUDA, `simdgroup_matrix` on Metal, plain loops on the host.
//
// Every lane has a place (g, t), g = 0…7, t = 0…3: fragment_row(lane), fragment_quad(lane). It holds of
//   the weights  rows g and g + 8, columns 4·t + i, i = 0…3, as the pairs of a slot (weights.h),
//   the sums     rows g and g + 8, tokens 2·t and 2·t + 1: element e is row g + 8·(e / 2), token 2·t + e mod 2.
// Which of the 16 columns the hardware takes for which does not matter as long as both
// operands agree; the order here makes a lane's four columns neighbours in memory.

struct WeightFragment {
    // (row g, i = 0, 1), (row g + 8, i = 0, 1), (row g, i = 2, 3), (row g + 8, i = 2, 3).
    half2 pair[4];
};

#if defined(MARLIN_TARGET_METAL)

// Lane numbers of simdgroup_matrix: an 8 × 8 matrix gives each lane two neighbouring columns of a row.
// The order is not in the language's specification; it is the one of every Apple GPU so far (MLX
// relies on it: mlx/backend/metal/kernels/steel/gemm/mma.h).
static inline uint fragment_row(uint lane) { return ((lane / 4u) & 4u) + (lane / 2u) % 4u; }
static inline uint fragment_quad(uint lane) { return ((lane / 4u) & 2u) + lane % 2u; }

struct TokenFragment {
    simdgroup_half8x8 half_of_k[2];
};

struct SumFragment {
    simdgroup_float8x8 rows[2];
};

static inline void clear_sums(THREAD(SumFragment) sums) {
    sums->rows[0] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    sums->rows[1] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

static inline float sum_element(THREAD(SumFragment) sums, uint e) {
    return sums->rows[e / 2u].thread_elements()[e % 2u];
}

// The second operand has rows along k: this lane holds, of the 8 columns k of each half, the one
// that its own row number names, for two tokens.
#define FRAGMENT_LOAD_TOKENS(POINTER)                                                             \
    static inline void load_tokens(                                                               \
        POINTER x, uint stride, uint tokens, uint lane, THREAD(TokenFragment) out) {              \
        uint row = fragment_row(lane);                                                            \
        uint token = 2u * fragment_quad(lane);                                                    \
        for (uint h = 0u; h < 2u; ++h) {                                                          \
            uint k = 4u * (row / 2u) + 2u * h + row % 2u;                                         \
            for (uint j = 0u; j < 2u; ++j) {                                                      \
                half value = token + j < tokens ? half(load_float(x, (token + j) * stride + k))   \
                                                : half(0.0f);                                     \
                out->half_of_k[h].thread_elements()[j] = value;                                   \
            }                                                                                     \
        }                                                                                         \
    }
FRAGMENT_LOAD_TOKENS(DEVICE(const half))
FRAGMENT_LOAD_TOKENS(THREADGROUP(const half))
FRAGMENT_LOAD_TOKENS(DEVICE(const bf16))
FRAGMENT_LOAD_TOKENS(THREADGROUP(const bf16))

static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights, THREAD(TokenFragment) tokens) {
    for (uint r = 0u; r < 2u; ++r) {
        for (uint h = 0u; h < 2u; ++h) {
            simdgroup_half8x8 a;
            a.thread_elements()[0] = weights->pair[r + 2u * h].x;
            a.thread_elements()[1] = weights->pair[r + 2u * h].y;
            simdgroup_multiply_accumulate(sums->rows[r], a, tokens->half_of_k[h], sums->rows[r]);
        }
    }
}

#else

static inline uint fragment_row(uint lane) { return lane / 4u; }
static inline uint fragment_quad(uint lane) { return lane % 4u; }

struct TokenFragment {
    // Token g: columns 4·t + (0, 1) and 4·t + (2, 3).
    half2 pair[2];
};

struct SumFragment {
    float element[4];
};

static inline void clear_sums(THREAD(SumFragment) sums) {
    UNROLL
    for (uint e = 0u; e < 4u; ++e) {
        sums->element[e] = 0.0f;
    }
}

static inline float sum_element(THREAD(const SumFragment) sums, uint e) { return sums->element[e]; }

// `x` points to column 0 of the step and the tile's token 0; tokens past `tokens` count as zero. Rows of
// x are aligned to 8 bytes.
#define FRAGMENT_LOAD_TOKENS(POINTER, CAST)                                                       \
    static inline void load_tokens(                                                               \
        POINTER(const half) x, uint stride, uint tokens, uint lane, THREAD(TokenFragment) out) {  \
        uint g = fragment_row(lane);                                                              \
        uint2 words = make_uint2(0u, 0u);                                                         \
        if (g < tokens) {                                                                         \
            words = *CAST(const uint2, x + g * stride + 4u * fragment_quad(lane));                \
        }                                                                                         \
        out->pair[0] = as_half2(words.x);                                                         \
        out->pair[1] = as_half2(words.y);                                                         \
    }                                                                                             \
    static inline void load_tokens(                                                               \
        POINTER(const bf16) x, uint stride, uint tokens, uint lane, THREAD(TokenFragment) out) {  \
        uint g = fragment_row(lane);                                                              \
        uint2 words = make_uint2(0u, 0u);                                                         \
        if (g < tokens) {                                                                         \
            words = *CAST(const uint2, x + g * stride + 4u * fragment_quad(lane));                \
        }                                                                                         \
        out->pair[0] = make_half2(                                                                \
            half(as_float(words.x << 16u)), half(as_float(words.x & 0xffff0000u)));               \
        out->pair[1] = make_half2(                                                                \
            half(as_float(words.y << 16u)), half(as_float(words.y & 0xffff0000u)));               \
    }
FRAGMENT_LOAD_TOKENS(DEVICE, device_cast)
FRAGMENT_LOAD_TOKENS(THREADGROUP, threadgroup_cast)

#if defined(MARLIN_TARGET_CUDA)

// PTX ISA, "mma.m16n8k16 with .f16": the first operand's registers are (g, 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8), the second's (2t, g), (2t + 8, g).
static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights,
    THREAD(const TokenFragment) tokens) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums->element[0]), "+f"(sums->element[1]), "+f"(sums->element[2]),
          "+f"(sums->element[3])
        : "r"(as_uint(weights->pair[0])), "r"(as_uint(weights->pair[1])),
          "r"(as_uint(weights->pair[2])), "r"(as_uint(weights->pair[3])),
          "r"(as_uint(tokens->pair[0])), "r"(as_uint(tokens->pair[1])));
}

#else

// Every lane shows its operands to the others, a word at a time, and adds up its own four sums.
static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights,
    THREAD(const TokenFragment) tokens) {
    uint lane = marlin::context.thread.lane;
    half2 a[4][32];
    half2 b[2][32];
    for (uint i = 0u; i < 6u; ++i) {
        const marlin::SimdValue *shown = marlin::simd_exchange(
            marlin::SimdOp::Shuffle,
            marlin::pack(i < 4u ? weights->pair[i] : tokens->pair[i - 4u]), __LINE__);
        for (uint other = 0u; other < 32u; ++other) {
            half2 value;
            marlin::unpack(shown[other], value);
            if (i < 4u) {
                a[i][other] = value;
            } else {
                b[i - 4u][other] = value;
            }
        }
    }
    for (uint e = 0u; e < 4u; ++e) {
        uint row = lane / 4u;
        uint token = 2u * (lane % 4u) + e % 2u;
        float sum = sums->element[e];
        for (uint t = 0u; t < 4u; ++t) {
            for (uint p = 0u; p < 2u; ++p) {
                half2 w = a[e / 2u + 2u * p][row * 4u + t];
                half2 v = b[p][token * 4u + t];
                sum = fma(float(w.x), float(v.x), sum);
                sum = fma(float(w.y), float(v.y), sum);
            }
        }
        sums->element[e] = sum;
    }
}

#endif
#endif
