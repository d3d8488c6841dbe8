// Matrix fragments: 16 weight rows × 16 columns times 16 columns × 8 tokens, f32 sums, by the 32
// threads of a SIMD-group. Three kinds of multiply-accumulate behind one set of names:
// `mma.sync.m16n8k16` on CUDA, `simdgroup_matrix` on Metal, plain loops on the host.
//
// Every lane has a place (g, t), g = 0…7, t = 0…3: fragment_row(lane), fragment_quad(lane). It holds of
//   the weights  rows g and g + 8, columns 4·t + i, i = 0…3, as the pairs of a slot (weights.h),
//   the sums     rows g and g + 8, tokens 2·t and 2·t + 1: element e is row g + 8·(e / 2), token 2·t + e mod 2.
// A file that includes this declares, before the include, the type Operand that both operands are of: half, or bf16 for activations
// that may be larger than half reaches. Metal 3.0 has no matrices of bf16: there they are multiplied as floats.
//
// Which of the 16 columns the hardware takes for which does not matter as long as both
// operands agree; the order here makes a lane's four columns neighbours in memory.

// A number that is kept in a register: CUDA's compiler computes again in every turn of a loop what it could keep, and a unit has no
// instructions to spare.
static inline uint kept(uint number) {
#if defined(MARLIN_TARGET_CUDA)
    asm volatile("" : "+r"(number));
#endif
    return number;
}

struct WeightFragment {
    // (row g, i = 0, 1), (row g + 8, i = 0, 1), (row g, i = 2, 3), (row g + 8, i = 2, 3): two Operands a word.
    uint pair[4];
};

// The elements of a word as floats, lower half first.
static inline float2 operand_floats(uint word, half) { return float2_from_half2(as_half2(word)); }
static inline float2 operand_floats(uint word, bf16) {
    return make_float2(as_float(word << 16u), as_float(word & 0xffff0000u));
}

#if defined(MARLIN_TARGET_METAL)

// The matrices that Operands are multiplied in, and their elements.
template <typename E> struct OperandMatrix;
template <> struct OperandMatrix<half> {
    typedef simdgroup_half8x8 type;
};
template <> struct OperandMatrix<bf16> {
    typedef simdgroup_float8x8 type;
};
static inline half operand_element(float x, half) { return half(x); }
static inline float operand_element(float x, bf16) { return x; }

// Lane numbers of simdgroup_matrix: an 8 × 8 matrix gives each lane two neighbouring columns of a row.
// The order is not in the language's specification; it is the one of every Apple GPU so far (MLX
// relies on it: mlx/backend/metal/kernels/steel/gemm/mma.h).
static inline uint fragment_row(uint lane) { return ((lane / 4u) & 4u) + (lane / 2u) % 4u; }
static inline uint fragment_quad(uint lane) { return ((lane / 4u) & 2u) + lane % 2u; }

struct TokenFragment {
    OperandMatrix<Operand>::type half_of_k[2];
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

// The same place `columns` on.
static inline TokenPlace kept_place(TokenPlace place, uint columns) {
    place.first += columns;
    place.second += columns;
    return place;
}

// Half elements h of the pairs are 2 columns apart.
template <typename X>
static inline void load_tokens(X x, TokenPlace place, THREAD(TokenFragment) out) {
    for (uint h = 0u; h < 2u; ++h) {
        out->half_of_k[h].thread_elements()[0] =
            operand_element(load_float(x, place.first + 2u * h), Operand());
        out->half_of_k[h].thread_elements()[1] =
            operand_element(load_float(x, place.second + 2u * h), Operand());
    }
}

template <typename X>
static inline void load_tokens_now(X x, TokenPlace place, THREAD(TokenFragment) out) {
    load_tokens(x, place, out);
}

// The same where only `columns` columns are left.
template <typename X>
static inline void load_tokens_before(
    X x, TokenPlace place, uint columns, THREAD(TokenFragment) out) {
    for (uint h = 0u; h < 2u; ++h) {
        bool inside = place.column + 2u * h < columns;
        out->half_of_k[h].thread_elements()[0] =
            operand_element(inside ? load_float(x, place.first + 2u * h) : 0.0f, Operand());
        out->half_of_k[h].thread_elements()[1] =
            operand_element(inside ? load_float(x, place.second + 2u * h) : 0.0f, Operand());
    }
}

static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights, THREAD(TokenFragment) tokens) {
    for (uint r = 0u; r < 2u; ++r) {
        for (uint h = 0u; h < 2u; ++h) {
            OperandMatrix<Operand>::type a;
            float2 pair = operand_floats(weights->pair[r + 2u * h], Operand());
            a.thread_elements()[0] = operand_element(pair.x, Operand());
            a.thread_elements()[1] = operand_element(pair.y, Operand());
            simdgroup_multiply_accumulate(sums->rows[r], a, tokens->half_of_k[h], sums->rows[r]);
        }
    }
}

#else

static inline uint fragment_row(uint lane) { return lane / 4u; }
static inline uint fragment_quad(uint lane) { return lane % 4u; }

struct TokenFragment {
    // Token g: columns 4·t + (0, 1) and 4·t + (2, 3): two Operands a word.
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

// The same place `columns` on, kept in a register.
static inline TokenPlace kept_place(TokenPlace place, uint columns) {
    place.first = kept(place.first + columns);
    return place;
}

// Words of elements of the second argument's type as Operands.
static inline uint operand_word(uint word, half, half) { return word; }
static inline uint operand_word(uint word, bf16, bf16) { return word; }
static inline uint operand_word(uint word, bf16, half) {
    return as_uint(half2_from_float2(operand_floats(word, bf16())));
}

#define FRAGMENT_LOAD_TOKENS(POINTER, CAST, T)                                                    \
    static inline void load_tokens(                                                               \
        POINTER(const T) x, TokenPlace place, THREAD(TokenFragment) out) {                        \
        uint2 words = *CAST(const uint2, x + place.first);                                        \
        out->pair[0] = operand_word(words.x, T(), Operand());                                     \
        out->pair[1] = operand_word(words.y, T(), Operand());                                     \
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
FRAGMENT_LOAD_TOKENS(DEVICE, device_cast, Operand)
#if !defined(MARLIN_TARGET_CUDA)
// On CUDA both are plain pointers.
FRAGMENT_LOAD_TOKENS(THREADGROUP, threadgroup_cast, Operand)
#endif

#if defined(MARLIN_TARGET_CUDA)

// PTX ISA, "mma.m16n8k16 with .f16 and .bf16": the first operand's registers are (g, 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8), the second's (2t, g), (2t + 8, g).
#define FRAGMENT_MULTIPLY(E, name)                                                                \
    static inline void multiply_words(                                                            \
        THREAD(float) sums, THREAD(const uint) weights, THREAD(const uint) tokens, E) {           \
        asm volatile(                                                                             \
            "mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                        \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                          \
            : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]),                 \
              "r"(tokens[0]), "r"(tokens[1]));                                                    \
    }
FRAGMENT_MULTIPLY(half, "f16")
FRAGMENT_MULTIPLY(bf16, "bf16")
#undef FRAGMENT_MULTIPLY

// load_tokens from device memory, in its place among the products.
template <typename X>
static inline void load_tokens_now(X x, TokenPlace place, THREAD(TokenFragment) out) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
                 : "=r"(out->pair[0]), "=r"(out->pair[1])
                 : "l"(__cvta_generic_to_global(x + place.first)));
}

static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights,
    THREAD(const TokenFragment) tokens) {
    multiply_words(sums->element, weights->pair, tokens->pair, Operand());
}

#else

template <typename X>
static inline void load_tokens_now(X x, TokenPlace place, THREAD(TokenFragment) out) {
    load_tokens(x, place, out);
}

// Every lane shows its operands to the others, a word at a time, and adds up its own four sums.
static inline void multiply_accumulate(
    THREAD(SumFragment) sums, THREAD(const WeightFragment) weights,
    THREAD(const TokenFragment) tokens) {
    uint lane = marlin::context.thread.lane;
    float2 a[4][32];
    float2 b[2][32];
    for (uint i = 0u; i < 6u; ++i) {
        const marlin::SimdValue *shown = marlin::simd_exchange(
            marlin::SimdOp::Shuffle,
            marlin::pack(i < 4u ? weights->pair[i] : tokens->pair[i - 4u]), __LINE__);
        for (uint other = 0u; other < 32u; ++other) {
            float2 value = operand_floats(shown[other].as_u32, Operand());
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
                float2 w = a[e / 2u + 2u * p][row * 4u + t];
                float2 v = b[p][token * 4u + t];
                sum = fma(w.x, v.x, sum);
                sum = fma(w.y, v.y, sum);
            }
        }
        sums->element[e] = sum;
    }
}

#endif
#endif
