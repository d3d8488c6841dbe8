// Weights in the fragment layout (crates/formats/src/fragment/): how a thread finds and decodes its slot.
//
// A file that includes this declares, before the include, the specialisation constants
//   CODE    what a code is (FragmentCode), OFFSET  subtracted from integer codes,
//   SCALE   what scales are (FragmentScale), MIN   what minimums are (FragmentMin),
//   GROUP   columns per scale: 16, 32 or a multiple of 64; 0 where a row has one scale.
//
// A slot is rows g and g + 8 of a block of 16 rows and columns 16·s + 4·t + i, s = 0…3, i = 0…3, as pairs
// p = 2·s + i/2. Codes become f16 exactly: integers up to 255 (11 bits of mantissa), E2M1, E4M3. Scales and
// minimums are applied to f32 sums, so dequantising rounds nothing.
//
// It may define E2M1_MULTIPLIED: e2m1_pair.

#define CODE_U2 0u
#define CODE_U3 1u
#define CODE_U4 2u
#define CODE_U5 3u
#define CODE_U6 4u
#define CODE_U8 5u
#define CODE_FP4 6u
#define CODE_FP8 7u
#define CODE_F16 8u
#define CODE_BF16 9u
#define CODE_F32 10u

#define SCALE_NONE 0u
#define SCALE_F16 1u
#define SCALE_F32 2u
#define SCALE_E8M0 3u
#define SCALE_E4M3 4u
#define SCALE_SUPER 5u

#define MIN_NONE 0u
#define MIN_F16 1u
#define MIN_F32 2u
#define MIN_SUPER 3u

// Bits of a code, which is also the 32-bit words of a slot: it holds 32 codes.
static inline uint code_bits() {
    if (CODE == CODE_U2) { return 2u; }
    if (CODE == CODE_U3) { return 3u; }
    if (CODE == CODE_U4 || CODE == CODE_FP4) { return 4u; }
    if (CODE == CODE_U5) { return 5u; }
    if (CODE == CODE_U6) { return 6u; }
    if (CODE == CODE_U8 || CODE == CODE_FP8) { return 8u; }
    return CODE == CODE_F32 ? 32u : 16u;
}

// The 32-bit words of a slot, planes one after the other. Only the first code_bits() are used; with CODE
// constant the rest cost no registers.
struct Slot {
    uint word[32];
};

// Reads slot `slot` (0…31) of the block at `block`. Each weight is read once, so the loads pass the
// first-level cache by.
static inline void load_slot(DEVICE(const uint) block, uint slot, THREAD(Slot) out) {
    uint bits = code_bits();
    if (bits >= 4u) {
        // The 4-, 8-, 16- or 32-bit plane: bits / 4 chunks of four words.
        DEVICE(const uint) mine = block + slot * 4u;
        UNROLL
        for (uint chunk = 0u; chunk < 8u; ++chunk) {
            if (chunk < bits / 4u) {
                uint4 words = load_streaming(device_cast(const uint4, mine + chunk * 128u));
                out->word[4u * chunk] = words.x;
                out->word[4u * chunk + 1u] = words.y;
                out->word[4u * chunk + 2u] = words.z;
                out->word[4u * chunk + 3u] = words.w;
            }
        }
    } else {
        uint2 words = load_streaming(device_cast(const uint2, block + slot * 2u));
        out->word[0] = words.x;
        out->word[1] = words.y;
    }
    // The plane of high bits.
    if (CODE == CODE_U3) {
        out->word[2] = load_streaming(block + 64u + slot);
    }
    if (CODE == CODE_U5) {
        out->word[4] = load_streaming(block + 128u + slot);
    }
    if (CODE == CODE_U6) {
        uint2 words = load_streaming(device_cast(const uint2, block + 128u + slot * 2u));
        out->word[4] = words.x;
        out->word[5] = words.y;
    }
}

// (a & mask) | set, which CUDA's compiler does not always make one instruction.
static inline uint and_or(uint a, uint mask, uint set) {
#if defined(MARLIN_TARGET_CUDA)
    uint out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(mask), "r"(set));
    return out;
#else
    return (a & mask) | set;
#endif
}

// What the numbers of slot_pair still have to be multiplied with. The bits of E2M1 and E4M3, moved to their places in
// f16, are the number times 2^-14 or 2^-8, subnormal or not. NVIDIA's matrix units take f16 subnormals as they
// are, so there the factor waits for the f32 sums.
static inline float code_factor() {
#if defined(MARLIN_TARGET_CUDA)
    return CODE == CODE_FP4 ? 16384.0f : CODE == CODE_FP8 ? 256.0f : 1.0f;
#else
    return 1.0f;
#endif
}

// Pairs of f16 are words here: CUDA's compiler takes a pair apart and puts it together again where
// it goes through a structure of two.
static inline uint pair_add(uint a, uint b) {
#if defined(MARLIN_TARGET_CUDA)
    uint out;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#else
    return as_uint(as_half2(a) + as_half2(b));
#endif
}

static inline uint pair_fma(uint a, uint b, uint c) {
#if defined(MARLIN_TARGET_CUDA)
    uint out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    return as_uint(half2_fma(as_half2(a), as_half2(b), as_half2(c)));
#endif
}

static inline uint small_float_pair(uint bits, float factor) {
#if defined(MARLIN_TARGET_CUDA)
    return bits;
#else
    return as_uint(as_half2(bits) * make_half2(half(factor), half(factor)));
#endif
}

// Two integer codes, one in each half of a word, as f16 without the offset: 0x6400 is 1024, whose
// ulp is 1, so OR-ing a code into its mantissa adds the code (Kim et al. 2022, "Who Says Elephants Can't Run").
static inline uint integer_pair(uint codes) {
    // -1024 - OFFSET, twice.
    uint bias = (0xe400u + uint(OFFSET)) * 0x00010001u;
    return pair_add(codes | 0x64006400u, bias);
}

// Pair q (0…3) of a word of 4-bit codes. Odd pairs stay where they are, four bits up, and a fused multiply-add
// takes the place of the addition: one shift serves two pairs.
static inline uint nibble_pair(uint word, uint q) {
    uint shifted = q < 2u ? word : word >> 8u;
    if (q % 2u == 0u) {
        uint bias = (0xe400u + uint(OFFSET)) * 0x00010001u;
        return pair_add(and_or(shifted, 0x000f000fu, 0x64006400u), bias);
    }
    // 1/16, and -64 - OFFSET, whose ulp is 1/16.
    uint bias = (0xd400u + 16u * uint(OFFSET)) * 0x00010001u;
    return pair_fma(and_or(shifted, 0x00f000f0u, 0x64006400u), 0x2c002c00u, bias);
}

// Pair q (0…3) of a word of E2M1 codes: sign to bit 15, exponent and mantissa to bits 9…11 (OCP Microscaling 1.0,
// §5.3.3). The layout has them where left shifts bring them there, two pairs with one mask: NVIDIA's assembler makes
// multiplications of such shifts, and the unit for those is less busy than the one for masks. The last two pairs take two
// shifts, one for the sign, which one multiplication does as well (E2M1_MULTIPLIED): of what else it adds nothing carries into a bit that
// counts. That is an instruction less, which gemm is the faster for and gemm_batch the slower.
static inline uint e2m1_pair(uint word, uint q) {
    if (q < 2u) {
        return (word << (3u * q)) & 0x8e008e00u;
    }
#if defined(E2M1_MULTIPLIED)
    uint code = q == 2u ? word & 0x40384038u : word & 0x20072007u;
    return (code * (q == 2u ? (1u << 6u) + (1u << 1u) : (1u << 9u) + (1u << 2u))) & 0x8e008e00u;
#else
    return and_or(word << (q - 1u), 0x80008000u, (word << (3u * q)) & 0x0e000e00u);
#endif
}

// Pair p (0…7) of row g + 8·h (h = 0, 1) as two f16 in a word, to be multiplied with code_factor().
//
// h and p are constants wherever this is called (unrolled loops), so that shifts and words are too.
static inline uint slot_pair(THREAD(const Slot) slot, uint h, uint p) {
    if (CODE == CODE_U4) {
        return nibble_pair(slot->word[2u * h + p / 4u], p % 4u);
    }
    if (CODE == CODE_FP4) {
        return small_float_pair(e2m1_pair(slot->word[2u * h + p / 4u], p % 4u), 16384.0f);
    }
    if (CODE == CODE_U8) {
        return integer_pair((slot->word[4u * h + p / 2u] >> (8u * (p % 2u))) & 0x00ff00ffu);
    }
    if (CODE == CODE_FP8) {
        // Sign to bit 15, exponent and mantissa to bits 7…13. There are no infinities; 0x7f (NaN)
        // becomes 480 times its scale.
        uint code = slot->word[4u * h + p / 2u] << (8u - 8u * (p % 2u));
        return small_float_pair(and_or(code, 0x80008000u, (code >> 1u) & 0x3f803f80u), 256.0f);
    }
    if (CODE == CODE_U2) {
        return integer_pair((slot->word[h] >> (2u * p)) & 0x00030003u);
    }
    if (CODE == CODE_U3) {
        uint low = (slot->word[h] >> (2u * p)) & 0x00030003u;
        uint high = (slot->word[2] >> (p + 8u * h)) & 0x00010001u;
        return integer_pair(low | (high << 2u));
    }
    if (CODE == CODE_U5) {
        uint low = (slot->word[2u * h + p / 4u] >> (4u * (p % 4u))) & 0x000f000fu;
        uint high = (slot->word[4] >> (p + 8u * h)) & 0x00010001u;
        return integer_pair(low | (high << 4u));
    }
    if (CODE == CODE_U6) {
        uint low = (slot->word[2u * h + p / 4u] >> (4u * (p % 4u))) & 0x000f000fu;
        uint high = (slot->word[4u + h] >> (2u * p)) & 0x00030003u;
        return integer_pair(low | (high << 4u));
    }
    if (CODE == CODE_F16) {
        return slot->word[8u * h + p];
    }
    if (CODE == CODE_BF16) {
        uint pair = slot->word[8u * h + p];
        return as_uint(make_half2(half(as_float(pair << 16u)), half(as_float(pair & 0xffff0000u))));
    }
    return as_uint(make_half2(
        half(as_float(slot->word[(16u * h + 2u * p) % 32u])),
        half(as_float(slot->word[(16u * h + 2u * p + 1u) % 32u]))));
}

// The same pair as f32, for kernels that multiply in f32: floats keep all their bits.
static inline float2 slot_pair_float(THREAD(const Slot) slot, uint h, uint p) {
    if (CODE == CODE_BF16) {
        uint pair = slot->word[8u * h + p];
        return make_float2(as_float(pair << 16u), as_float(pair & 0xffff0000u));
    }
    if (CODE == CODE_F32) {
        return make_float2(
            as_float(slot->word[(16u * h + 2u * p) % 32u]),
            as_float(slot->word[(16u * h + 2u * p + 1u) % 32u]));
    }
    float2 pair = float2_from_half2(as_half2(slot_pair(slot, h, p)));
    float factor = code_factor();
    return make_float2(pair.x * factor, pair.y * factor);
}

// The number that the E4M3 byte `code` stands for.
static inline float float_from_e4m3(uint code) {
    half shifted = as_half(ushort(((code & 0x80u) << 8u) | ((code & 0x7fu) << 7u)));
    return float(shifted) * 256.0f;
}

// 2^(code - 127); 0 and 255 are what they are in f32's exponent, doubled where that is subnormal.
static inline float float_from_e8m0(uint code) {
    return code == 0u ? as_float(0x00400000u) : as_float(code << 23u);
}

// The stored bits of a slot's scale and minimum in one group, for row g (x) and row g + 8 (y).
// Loading is apart from decoding so that a kernel can ask for the next block's before it needs
// them: to decode is to wait.
struct StoredScale {
    uint2 scale;
    uint2 min;
    uint super_scale;
    uint super_min;
};

// place: (row block · groups + group) · 8 + g, the pair's index; super: the same of its super-block (super_place).
static inline void load_scale(
    DEVICE(const uchar) scales, DEVICE(const uchar) mins, DEVICE(const half) supers, uint place,
    uint super, THREAD(StoredScale) out) {
    if (SCALE == SCALE_F16) {
        out->scale.x = load_constant(device_cast(const uint, scales + place * 4u));
    }
    if (SCALE == SCALE_F32) {
        out->scale = load_constant(device_cast(const uint2, scales + place * 8u));
    }
    if (SCALE == SCALE_E8M0 || SCALE == SCALE_E4M3 || SCALE == SCALE_SUPER) {
        out->scale.x = uint(load_constant(device_cast(const ushort, scales + place * 2u)));
    }
    if (SCALE == SCALE_SUPER) {
        out->super_scale = load_constant(device_cast(const uint, supers + super * 2u));
    }
    if (MIN == MIN_F16) {
        out->min.x = load_constant(device_cast(const uint, mins + place * 4u));
    }
    if (MIN == MIN_F32) {
        out->min = load_constant(device_cast(const uint2, mins + place * 8u));
    }
    if (MIN == MIN_SUPER) {
        out->min.x = uint(load_constant(device_cast(const ushort, mins + place * 2u)));
        // Eight pairs of scales, then eight of minimums.
        out->super_min = load_constant(device_cast(const uint, supers + (super + 8u) * 2u));
    }
}

static inline float2 scale_of(THREAD(const StoredScale) stored) {
    if (SCALE == SCALE_NONE) {
        return make_float2(1.0f, 1.0f);
    }
    if (SCALE == SCALE_F16) {
        return float2_from_half2(as_half2(stored->scale.x));
    }
    if (SCALE == SCALE_F32) {
        return make_float2(as_float(stored->scale.x), as_float(stored->scale.y));
    }
    uint pair = stored->scale.x;
    if (SCALE == SCALE_E8M0) {
        return make_float2(float_from_e8m0(pair & 255u), float_from_e8m0(pair >> 8u));
    }
    if (SCALE == SCALE_E4M3) {
        return make_float2(float_from_e4m3(pair & 255u), float_from_e4m3(pair >> 8u));
    }
    // Signed bytes: shifted up and back down.
    float2 factor = float2_from_half2(as_half2(stored->super_scale));
    float low = float(int(pair << 24u) >> 24);
    float high = float(int(pair << 16u) >> 24);
    return make_float2(factor.x * low, factor.y * high);
}

static inline float2 min_of(THREAD(const StoredScale) stored) {
    if (MIN == MIN_F16) {
        return float2_from_half2(as_half2(stored->min.x));
    }
    if (MIN == MIN_F32) {
        return make_float2(as_float(stored->min.x), as_float(stored->min.y));
    }
    if (MIN == MIN_SUPER) {
        uint pair = stored->min.x;
        float2 factor = float2_from_half2(as_half2(stored->super_min));
        return make_float2(-factor.x * float(pair & 255u), -factor.y * float(pair >> 8u));
    }
    return make_float2(0.0f, 0.0f);
}

// A pair that waits for a code_factor(), with it.
static inline uint full_size(uint pair) {
#if defined(MARLIN_TARGET_CUDA)
    if (CODE == CODE_FP4) {
        return pair_fma(pair, 0x74007400u, 0x80008000u);
    }
    if (CODE == CODE_FP8) {
        return pair_fma(pair, 0x5c005c00u, 0x80008000u);
    }
#endif
    return pair;
}

// A pair of row g (h = 0) or g + 8 (h = 1) times its f16 scale, true to size: two products where the pair waits for a
// code_factor() that would make the scale itself too large for f16.
static inline uint prescaled_pair(uint pair, uint scales, uint h) {
    uint scale = (h == 0u ? scales & 0xffffu : scales >> 16u) * 0x00010001u;
    return pair_fma(full_size(pair), scale, 0x80008000u);
}

// A pair of row g (h = 0) or g + 8 (h = 1) as the weights themselves, scale and minimum applied, rounded to f16.
static inline uint scaled_pair(uint pair, THREAD(const StoredScale) stored, uint h) {
    if (SCALE == SCALE_NONE) {
        return pair;
    }
    uint scales = stored->scale.x;
    if (SCALE != SCALE_F16) {
        float2 scale = scale_of(stored);
        scales = as_uint(half2_from_float2(scale));
    }
    if (MIN == MIN_NONE) {
        return prescaled_pair(pair, scales, h);
    }
    uint mins = MIN == MIN_F16 ? stored->min.x : as_uint(half2_from_float2(min_of(stored)));
    uint scale = (h == 0u ? scales & 0xffffu : scales >> 16u) * 0x00010001u;
    uint min = (h == 0u ? mins & 0xffffu : mins >> 16u) * 0x00010001u;
    return pair_fma(full_size(pair), scale, min);
}

// Index of a super-block's pair for load_scale: super-blocks are 256 columns, 8 pairs of
// scales and, with minimums, 8 more.
static inline uint super_place(uint row_block, uint supers_per_row, uint column, uint g) {
    uint pairs = MIN == MIN_SUPER ? 16u : 8u;
    return (row_block * supers_per_row + column / 256u) * pairs + g;
}
