// Weights as the first operand of matrix fragments: f16 for activations of f16, bf16 for those of bf16, whose range f16 has not.
//
// A file that includes this has included weights.h and fragment.h. Codes are exact in both; weights that are f16 or f32 themselves
// are rounded to bf16, and where the scale is applied to the weight their product is.

static inline uint bf16_word(float2 v) {
#if defined(MARLIN_TARGET_CUDA)
    uint out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(v.y), "f"(v.x));
    return out;
#else
    return uint(bf16_from_float(v.x).bits) | (uint(bf16_from_float(v.y).bits) << 16u);
#endif
}

static inline uint operand_one(half) { return 0x3c003c00u; }
static inline uint operand_one(bf16) { return 0x3f803f80u; }

// What the sums of operand_pair's products still have to be multiplied with.
static inline float operand_factor(half) { return code_factor(); }
static inline float operand_factor(bf16) { return 1.0f; }

// The largest number.
static inline float operand_reach(half) { return 65504.0f; }
static inline float operand_reach(bf16) { return 3.38e38f; }

#if defined(MARLIN_TARGET_CUDA)
static inline uint bf16_pair_fma(uint a, uint b, uint c) {
    uint out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}
#endif

// slot_pair as Operands.
static inline uint operand_pair(THREAD(const Slot) slot, uint h, uint p, half) {
    return slot_pair(slot, h, p);
}
static inline uint operand_pair(THREAD(const Slot) slot, uint h, uint p, bf16) {
    if (CODE == CODE_BF16) {
        return slot->word[8u * h + p];
    }
#if defined(MARLIN_TARGET_CUDA)
    // As integer_pair, where seven bits of mantissa do: 0x4300 is 128, whose ulp is 1.
    if (CODE == CODE_U4) {
        uint bias = (0xc300u + uint(OFFSET)) * 0x00010001u;
        uint code = slot->word[2u * h + p / 4u] >> (4u * (p % 4u));
        return bf16_pair_fma(and_or(code, 0x000f000fu, 0x43004300u), 0x3f803f80u, bias);
    }
    // As e2m1_pair, with exponent and mantissa at bits 6…8: the number times 2^-126.
    if (CODE == CODE_FP4) {
        uint word = slot->word[2u * h + p / 4u];
        uint q = p % 4u;
        uint sign = q == 0u ? word : q == 1u ? word << 3u : word << (q - 1u);
        uint rest = q == 0u ? word >> 3u : word << (3u * q - 3u);
        return bf16_pair_fma(
            and_or(sign, 0x80008000u, rest & 0x01c001c0u), 0x7e807e80u, 0x80008000u);
    }
#endif
    return bf16_word(slot_pair_float(slot, h, p));
}

// A pair times its scale, true to size: prescaled_pair.
static inline uint prescaled_operand(
    THREAD(const Slot) slot, uint h, uint p, THREAD(const StoredScale) stored, half) {
    return prescaled_pair(slot_pair(slot, h, p), stored->scale.x, h);
}
static inline uint prescaled_operand(
    THREAD(const Slot) slot, uint h, uint p, THREAD(const StoredScale) stored, bf16) {
    float2 scale = scale_of(stored);
    return bf16_word(slot_pair_float(slot, h, p) * (h == 0u ? scale.x : scale.y));
}

// The weights themselves, scale and minimum applied: scaled_pair.
static inline uint scaled_operand(
    THREAD(const Slot) slot, uint h, uint p, THREAD(const StoredScale) stored, half) {
    return scaled_pair(slot_pair(slot, h, p), stored, h);
}
static inline uint scaled_operand(
    THREAD(const Slot) slot, uint h, uint p, THREAD(const StoredScale) stored, bf16) {
    if (SCALE == SCALE_NONE) {
        return operand_pair(slot, h, p, bf16());
    }
    float2 scales = scale_of(stored);
    float2 mins = min_of(stored);
    float scale = h == 0u ? scales.x : scales.y;
    float min = h == 0u ? mins.x : mins.y;
    float2 pair = slot_pair_float(slot, h, p);
    return bf16_word(make_float2(fma(pair.x, scale, min), fma(pair.y, scale, min)));
}
