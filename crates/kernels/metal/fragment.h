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
    // (row g, i = 0, 1), (row g + 8, i = 0, 1), (row g, i = 2, 3), (row g + 8, i = 2, 3): two f16 a word.
    uint pair[4];
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

static inline void scale_sum(THREAD(SumFragment) sums, uint e, float factor) {
    sums->rows[e / 2u].thread_elements()[e % 2u] = sum_element(sums, e) * factor;
}

// The second operand has rows along k: this lane holds, of the 8 columns k of each half, the one
// that its own row number names, for two tokens.
struct TokenPlace {
    uint first;
    uint second;
    uint column;
};

static inline TokenPlace token_place(uint stride, uint tokens, uint lane) {
    uint row = fragment_row(lane);
    uint token = 2u * fragment_quad(lane);
    TokenPlace place;
    place.column = 4u * (row / 2u) + row % 2u;
    place.first = min(token, tokens - 1u) * stride + place.column;
    place.second = min(token + 1u, tokens - 1u) * stride + place.column;
    return place;
}

// Half elements h of the pairs are 2 columns apart.
template <typename X>
static inline void load_tokens(X x, TokenPlace place, THREAD(TokenFragment) out) {
    for (uint h = 0u; h < 2u; ++h) {
        out->half_of_k[h].thread_elements()[0] = half(load_float(x, place.first + 2u * h));
        out->half_of_k[h].thread_elements()[1] = half(load_float(x, place.second + 2u * h));
    }
}

// The same where only `columns` columns are left.
template <typename X>
static inline void load_tokens_before(
    X x, TokenPlace place, uint columns, THREAD(TokenFragment) out) {
    for (uint h = 0u; h < 2u; ++h) {
        bool inside = place.column + 2u * h < columns;
        out->half_of_k[h].thread_elements()[0] =
            inside ? half(load_float(x, place.first + 2u * h)) : half(0.0f);
        out->half_of_k[h].thread_elements()[1] =
            inside ? half(load_float(x, place.second + 2u * h)) : half(0.0f);
    }
}

static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights, THREAD(TokenFragment) tokens) {
    for (uint r = 0u; r < 2u; ++r) {
        for (uint h = 0u; h < 2u; ++h) {
            simdgroup_half8x8 a;
            half2 pair = as_half2(weights->pair[r + 2u * h]);
            a.thread_elements()[0] = pair.x;
            a.thread_elements()[1] = pair.y;
            simdgroup_multiply_accumulate(sums->rows[r], a, tokens->half_of_k[h], sums->rows[r]);
        }
    }
}

#else

static inline uint fragment_row(uint lane) { return lane / 4u; }
static inline uint fragment_quad(uint lane) { return lane % 4u; }

struct TokenFragment {
    // Token g: columns 4·t + (0, 1) and 4·t + (2, 3): two f16 a word.
    uint pair[2];
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

static inline void scale_sum(THREAD(SumFragment) sums, uint e, float factor) {
    sums->element[e] = sums->element[e] * factor;
}

// Where a lane finds its four neighbouring columns of token g, relative to a tile's first token and a step's first
// column. Tokens past the last repeat it: their sums are never stored.
struct TokenPlace {
    uint first;
    uint column;
};

static inline TokenPlace token_place(uint stride, uint tokens, uint lane) {
    TokenPlace place;
    place.column = 4u * fragment_quad(lane);
    place.first = min(fragment_row(lane), tokens - 1u) * stride + place.column;
    return place;
}

static inline void set_tokens(uint2 words, half, THREAD(TokenFragment) out) {
    out->pair[0] = words.x;
    out->pair[1] = words.y;
}

static inline void set_tokens(uint2 words, bf16, THREAD(TokenFragment) out) {
    out->pair[0] = as_uint(
        make_half2(half(as_float(words.x << 16u)), half(as_float(words.x & 0xffff0000u))));
    out->pair[1] = as_uint(
        make_half2(half(as_float(words.y << 16u)), half(as_float(words.y & 0xffff0000u))));
}

#define FRAGMENT_LOAD_TOKENS(POINTER, CAST, T)                                                    \
    static inline void load_tokens(                                                               \
        POINTER(const T) x, TokenPlace place, THREAD(TokenFragment) out) {                        \
        set_tokens(*CAST(const uint2, x + place.first), T(), out);                                \
    }                                                                                             \
    static inline void load_tokens_before(                                                        \
        POINTER(const T) x, TokenPlace place, uint columns, THREAD(TokenFragment) out) {          \
        if (place.column < columns) {                                                             \
            load_tokens(x, place, out);                                                           \
        } else {                                                                                  \
            out->pair[0] = 0u;                                                                    \
            out->pair[1] = 0u;                                                                    \
        }                                                                                         \
    }
FRAGMENT_LOAD_TOKENS(DEVICE, device_cast, half)
FRAGMENT_LOAD_TOKENS(DEVICE, device_cast, bf16)
#if !defined(MARLIN_TARGET_CUDA)
// On CUDA both are plain pointers.
FRAGMENT_LOAD_TOKENS(THREADGROUP, threadgroup_cast, half)
FRAGMENT_LOAD_TOKENS(THREADGROUP, threadgroup_cast, bf16)
#endif

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
        : "r"(weights->pair[0]), "r"(weights->pair[1]), "r"(weights->pair[2]),
          "r"(weights->pair[3]), "r"(tokens->pair[0]), "r"(tokens->pair[1]));
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
            half2 value = as_half2(shown[other].as_u32);
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
