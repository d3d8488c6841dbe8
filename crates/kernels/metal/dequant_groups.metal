// Group formats back to floats: the standalone dequantisation of canonical buffers, for what multiplies floats.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct DequantGroupsArgs {
    uint rows;          // Of the matrix.
    uint columns;       // Of the matrix.
    uint group_rows;    // Rows that share a scale.
    uint group_columns; // Columns that share a scale.
    uint grid_columns;  // Groups along a row.
    uint row_bytes;     // Of a row of data.
    uint zero_bytes;    // Of a grid row of zero points.
};

// A code: 0: E2M1, 1: E4M3, 2: integer of BITS bits.
SPECIALISE(uint, CODE, 0);
// Bits of a code: 2, 3, 4 or 8.
SPECIALISE(uint, BITS, 1);
// A scale: 0: f16, 1: f32, 2: E8M0, 3: E4M3.
SPECIALISE(uint, SCALE, 2);
// Groups have zero points.
SPECIALISE(bool, ZERO, 3);
// The matrix has a factor of its own.
SPECIALISE(bool, TENSOR_SCALE, 4);
// Rows of data and of the result start at whole vectors, and have a multiple of 8 columns.
SPECIALISE(bool, WHOLE, 5);
// Eight columns from a multiple of eight are always in one group.
SPECIALISE(bool, EIGHTS_SHARE, 6);

#include "group_formats.h"
#include "vector.h"

// Up to eight codes as BITS bytes.
static inline uint2 read_packed(DEVICE(const uchar) from, uint count) {
    if (WHOLE && BITS == 8u) {
        return *device_cast(const uint2, from);
    }
    if (WHOLE && BITS == 4u) {
        return make_uint2(*device_cast(const uint, from), 0u);
    }
    if (WHOLE && BITS == 2u) {
        return make_uint2(uint(*device_cast(const ushort, from)), 0u);
    }
    uint bytes = (min(count, 8u) * BITS + 7u) / 8u;
    uint low = 0u;
    uint high = 0u;
    UNROLL
    for (uint b = 0u; b < 8u; ++b) {
        if (b < bytes) {
            uint byte = uint(from[b]) << (8u * (b % 4u));
            low = b < 4u ? low | byte : low;
            high = b < 4u ? high : high | byte;
        }
    }
    return make_uint2(low, high);
}

// The number that a code stands for at scale 1, less the zero point: exact.
static inline float value_of(uint code, float zero) {
    if (CODE == PACK_E2M1) {
        return float_from_e2m1_code(code);
    }
    if (CODE == PACK_E4M3) {
        return float_from_e4m3_code(code);
    }
    if (ZERO) {
        return float(code) - zero;
    }
    // Symmetric 8-bit codes are two's complement, narrower ones offset binary.
    uint offset_binary = BITS == 8u ? code ^ 0x80u : code;
    return float(int(offset_binary) - int(1u << (BITS - 1u)));
}

// Zero point g of a row of them.
static inline float read_zero(DEVICE(const uchar) zeros, uint g) {
    uint bit = g * BITS;
    uint window = uint(zeros[bit / 8u]);
    if (bit % 8u + BITS > 8u) {
        window = window | (uint(zeros[bit / 8u + 1u]) << 8u);
    }
    return float((window >> (bit % 8u)) & ((1u << BITS) - 1u));
}

// out[row, c] = V(code[row, c]) · (scale · tensor_scale): each product rounded to f32, then to T, as Matrix::decode_row.
//
// data, scales, zeros: canonical buffers; tensor_scale: one f32 where TENSOR_SCALE; out: [rows, columns] of T. A thread
// takes eight columns; the rows' eights are numbered through. Bytes bound it: half a byte and two written for a 4-bit
// code and half, some four instructions.
kernel void dequant_groups(
    IN(uchar) data [[buffer(0)]],
    IN(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) zeros [[buffer(2)]],
    IN_OPTIONAL(float) tensor_scale [[buffer(3)]],
    OUT(T) out [[buffer(4)]],
    INLINE(DequantGroupsArgs) args [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint eights = (args.columns + 7u) / 8u;
    uint place = group.x * threads.x + thread_index;
    uint row = place / eights;
    if (row >= args.rows) {
        return;
    }
    uint eight = place - row * eights;
    uint column = eight * 8u;
    uint left = args.columns - column;
    uint grid_row = row / args.group_rows;
    float factor = TENSOR_SCALE ? tensor_scale[0] : 1.0f;
    uint2 words = read_packed(data + (ulong(row) * args.row_bytes + eight * BITS), left);

    float v[8];
    float scale = 0.0f;
    float zero = 0.0f;
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        v[j] = 0.0f;
        if (j < left) {
            if (j == 0u || !EIGHTS_SHARE) {
                uint g = (column + j) / args.group_columns;
                scale = read_scale(scales, ulong(grid_row) * args.grid_columns + g) * factor;
                zero = ZERO ? read_zero(zeros + ulong(grid_row) * args.zero_bytes, g) : 0.0f;
            }
            v[j] = value_of(code_at(words, j), zero) * scale;
        }
    }
    store_eight(out + (ulong(row) * args.columns + column), left, WHOLE, v);
}
