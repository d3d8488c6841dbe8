// The layout of a key/value cache, and how a position is found in it.
//
// A layer's cache is an array of *blocks* of 32 positions: [block][kv head][piece], a piece being 16 bytes.
// With E elements to a piece (f32 4, f16 8, int8 16, fp4 32), D the head's size, U = min(E, 8) and
// P = E / U, a block of one head holds one after the other
//
//   keys          [⌈D / E⌉][32 positions]      the E dimensions of a position (zeros past D)
//   values        [32 / P][D / U]              U dimensions of each of P consecutive positions
//   key scales    int8: [32] f32; fp4: [⌈D / 32⌉][32] f16; otherwise nothing
//   value scales  as the keys'
//
// Keys are read by threads that each own a position: the 32 threads of a step read 512 consecutive bytes, and a score
// needs no exchange between threads. Values are read by threads that each own 8 dimensions, in whole pieces for
// every format, so that 512 consecutive bytes are again one step and the weighted sum needs no exchange either.
// The cache is zeroed once: a piece of several positions may be read before all of them are written.
//
// int8: code = round(x · 127 / max|x|), one scale per head and position. fp4: E2M1 with the f16 scale max|x| / 6 per 32
// dimensions, bit-equal to the format `fp4-g32` of crates/formats.

#define KV_F16 0u
#define KV_INT8 1u
#define KV_FP4 2u
#define KV_F32 3u

// Positions of a block.
#define KV_BLOCK 32u

// The sequence of a token that is not there: padding of a batch whose size is fixed.
#define KV_NO_SEQUENCE 0xffffffffu

// Elements of a piece.
static inline uint kv_elements(uint format) {
    if (format == KV_F16) { return 8u; }
    if (format == KV_INT8) { return 16u; }
    return format == KV_FP4 ? 32u : 4u;
}

// Dimensions of a position in a piece of values.
static inline uint kv_unit(uint format) { return format == KV_F32 ? 4u : 8u; }

// Pieces of a position's key.
static inline uint kv_key_row(uint format, uint dim) {
    return (dim + kv_elements(format) - 1u) / kv_elements(format);
}

static inline uint kv_key_pieces(uint format, uint dim) { return KV_BLOCK * kv_key_row(format, dim); }

static inline uint kv_value_pieces(uint format, uint dim) {
    return dim * KV_BLOCK / kv_elements(format);
}

// Pieces of the keys' scales, and of the values'.
static inline uint kv_scale_pieces(uint format, uint dim) {
    if (format == KV_INT8) { return 8u; }
    return format == KV_FP4 ? (dim + 31u) / 32u * 4u : 0u;
}

static inline uint kv_block_pieces(uint format, uint dim) {
    return kv_key_pieces(format, dim) + kv_value_pieces(format, dim)
        + 2u * kv_scale_pieces(format, dim);
}

// Index of a sequence's block `block` in the cache.
//
// Contiguous (blocks_per_page = 0): each sequence has `stride` blocks of its own. Paged: `pages` is
// [sequences][stride] page numbers, a page being `blocks_per_page` consecutive blocks (Kwon et al. 2023, "PagedAttention").
static inline uint kv_physical_block(
    DEVICE(const uint) pages, uint blocks_per_page, uint stride, uint sequence, uint block) {
    if (blocks_per_page == 0u) {
        return sequence * stride + block;
    }
    return pages[sequence * stride + block / blocks_per_page] * blocks_per_page
        + block % blocks_per_page;
}

// The values of one 32-bit word of a piece, in order: 1, 2, 4 or 8. fp4 comes out times 2^-14: sign, exponent and mantissa
// moved into an f16's are exactly that, subnormals included, and whoever applies the scale undoes it.
static inline void kv_unpack_word(uint format, uint word, THREAD(float) out) {
    if (format == KV_F16) {
        float2 pair = float2_from_half2(as_half2(word));
        out[0] = pair.x;
        out[1] = pair.y;
    } else if (format == KV_INT8) {
        UNROLL
        for (uint i = 0u; i < 4u; ++i) {
            out[i] = float(int(word << (24u - 8u * i)) >> 24);
        }
    } else if (format == KV_FP4) {
        UNROLL
        for (uint i = 0u; i < 4u; ++i) {
            uint codes = word >> (4u * i);
            uint bits = ((codes & 0x00080008u) << 12u) | ((codes & 0x00070007u) << 9u);
            float2 pair = float2_from_half2(as_half2(bits));
            out[i] = pair.x;
            out[i + 4u] = pair.y;
        }
    } else {
        out[0] = as_float(word);
    }
}

// The values of a piece, in order; `out` has room for 32.
static inline void kv_unpack(uint format, uint4 piece, THREAD(float) out) {
    uint step = kv_elements(format) / 4u;
    kv_unpack_word(format, piece.x, out);
    kv_unpack_word(format, piece.y, out + step);
    kv_unpack_word(format, piece.z, out + 2u * step);
    kv_unpack_word(format, piece.w, out + 3u * step);
}

#define KV_FP4_UNIT 16384.0f
