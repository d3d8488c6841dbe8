// Floats to the group formats of crates/formats: what formats::encode gives, byte for byte, without the weights
// leaving the device.
//
// The formats' layouts are in crates/formats/src/group/mod.rs, the choice of scales in group/encode.rs. Equality
// to the bit needs correctly rounded division and conversion, as the host has them: no fast mathematics.
// Where a device flushes f32 subnormals (Apple's), groups with scales or values below 2^-126 may differ.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct PackArgs {
    uint rows;       // Of the matrix.
    uint columns;    // Of the matrix.
    uint group_rows; // Rows that share a scale.
    uint group_columns; // Columns that share a scale.
    uint grid_columns;  // Groups along a row.
    uint row_bytes;  // Of a row of data.
    uint zero_bytes; // Of a grid row of zero points.
    uint groups_together; // pack_regions: groups of a threadgroup, one after the other.
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
// Rows of the source start at multiples of 16 bytes and have a multiple of 8 columns.
SPECIALISE(bool, WHOLE, 5);

#include "group_formats.h"
#include "quantise.h"
#include "reduce.h"
#include "vector.h"

// ---- Status --------------------------------------------------------------------------------------
//
// Two words, all ones where nothing was wrong: the least index (row · columns + column) of a value that the format
// has no code for, and the least index of a group whose scale overflows.

#define STATUS_NOT_FINITE 0u
#define STATUS_OVERFLOW 1u

static inline bool refused(float x) {
    uint bits = magnitude_bits(x);
    return CODE == PACK_E4M3 ? bits == 0x7f800000u : bits >= 0x7f800000u;
}

static inline bool is_nan_bits(float x) { return magnitude_bits(x) > 0x7f800000u; }

// ---- Values and codes ----------------------------------------------------------------------------

// The largest magnitude that a symmetric code stands for at scale 1 (Code::reach).
static inline float pack_reach() {
    if (CODE == PACK_E2M1) { return 6.0f; }
    if (CODE == PACK_E4M3) { return 448.0f; }
    return float((1u << BITS) - 1u) * 0.5f;
}

static inline float largest_code() { return float((1u << BITS) - 1u); }

// The E2M1 code nearest to x, ties to even; above 6 it saturates. Each comparison is a midpoint of neighbours,
// exclusive where the lower one's code is even.
static inline uint e2m1_from_float(float x) {
    float a = abs(x);
    uint magnitude = uint(a > 0.25f) + uint(a >= 0.75f) + uint(a > 1.25f) + uint(a >= 1.75f)
        + uint(a > 2.5f) + uint(a >= 3.5f) + uint(a > 5.0f);
    return magnitude | ((as_uint(x) >> 28u) & 8u);
}

// floor(log2(x)) of a positive number, exactly, subnormals included.
static inline int floor_log2(float x) {
    uint bits = as_uint(x);
    uint biased = bits >> 23u;
    return biased == 0u ? 31 - int(clz(bits)) - 149 : int(biased) - 127;
}

// The scale that a whole tensor with this greatest magnitude gets (NVFP4): it maps the magnitude to the largest code
// times the largest scale.
static inline float tensor_scale_of(uint greatest) {
    float scale = as_float(greatest) / (pack_reach() * 448.0f);
    return scale > 0.0f ? scale : 1.0f;
}

// A group's scale times the tensor's, and its zero point.
struct GroupParameters {
    float scale;
    uint zero;
};

// Least and greatest value of a group; 0 is always between them.
struct Extent {
    float low;
    float high;
};

static inline Extent widened(Extent e, float x) {
    // Comparisons with NaN are false: NaN, which only E4M3 lets through, counts for nothing.
    e.low = x < e.low ? x : e.low;
    e.high = x > e.high ? x : e.high;
    return e;
}

// Chooses and, where `writes`, stores the scale of group `index`. The steps are those of formats' `choose`, in the
// same order of roundings.
static inline GroupParameters choose(
    Extent extent, float tensor_scale, ulong index, bool writes, DEVICE(uchar) scales,
    DEVICE(atomic_uint) status) {
    // abs, because -0 would become the scale's sign.
    float greatest = max(abs(extent.low), extent.high);
    float ideal = ZERO ? extent.high / largest_code() - extent.low / largest_code()
                       : greatest / pack_reach();
    ideal = ideal / tensor_scale;
    GroupParameters out;
    bool overflow = false;
    if (SCALE == SCALE_IS_F16) {
        half rounded = half(ideal);
        overflow = as_ushort(rounded) == 0x7c00u;
        out.scale = float(rounded);
        if (writes) {
            *device_cast(ushort, scales + index * 2u) = as_ushort(rounded);
        }
    } else if (SCALE == SCALE_IS_F32) {
        out.scale = ideal;
        if (writes) {
            *device_cast(uint, scales + index * 4u) = as_uint(ideal);
        }
    } else if (SCALE == SCALE_IS_E8M0) {
        // OCP Microscaling 1.0, §6.3: floor(log2(greatest)) less the exponent of the largest code.
        float magnitude = greatest / tensor_scale;
        int exponent = floor_log2(magnitude) - floor_log2(pack_reach()) + 127;
        uint code = magnitude == 0.0f ? 0u : uint(clamp(exponent, 0, 254));
        out.scale = float_from_e8m0_code(code);
        if (writes) {
            scales[index] = uchar(code);
        }
    } else {
        overflow = !TENSOR_SCALE && ideal > 448.0f;
        uint code = e4m3_from_float(ideal);
        out.scale = float_from_e4m3_code(code);
        if (writes) {
            scales[index] = uchar(code);
        }
    }
    if (overflow && writes) {
        atomic_min(status + STATUS_OVERFLOW, uint(index));
    }
    out.zero = 0u;
    if (ZERO && out.scale > 0.0f) {
        out.zero = uint(min(rint(-extent.low / out.scale), largest_code()));
    }
    out.scale = out.scale * tensor_scale;
    return out;
}

// The code of x in a group.
static inline uint code_of(float x, GroupParameters group) {
    if (is_nan_bits(x)) {
        return CODE == PACK_E4M3 ? ((as_uint(x) >> 24u) & 0x80u) | 0x7fu : 0u;
    }
    // A scale that underflowed makes every value 0.
    float scaled = group.scale > 0.0f ? x / group.scale : 0.0f;
    if (CODE == PACK_E2M1) {
        return e2m1_from_float(scaled);
    }
    if (CODE == PACK_E4M3) {
        return e4m3_from_float(scaled);
    }
    float offset = ZERO ? float(group.zero) : float(1u << (BITS - 1u));
    uint code = uint(rint(clamp(scaled, -offset, largest_code() - offset)) + offset);
    // Symmetric 8-bit codes are two's complement, narrower ones offset binary.
    return BITS == 8u && !ZERO ? code ^ 0x80u : code;
}

// Eight codes, the first in the lowest bits.
static inline uint2 packed(THREAD(const uint) codes, uint count) {
    uint low = 0u;
    uint high = 0u;
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        uint code = j < count ? codes[j] : 0u;
        uint bit = j * BITS;
        if (bit < 32u) {
            low = low | (code << bit);
        } else {
            high = high | (code << (bit - 32u));
        }
    }
    return make_uint2(low, high);
}

// Up to eight codes, byte by byte; the last byte is padded with zeros.
static inline void store_bytes(DEVICE(uchar) to, uint count, THREAD(const uint) codes) {
    uint2 words = packed(codes, count);
    uint bytes = (min(count, 8u) * BITS + 7u) / 8u;
    UNROLL
    for (uint b = 0u; b < 8u; ++b) {
        if (b < bytes) {
            to[b] = uchar((b < 4u ? words.x >> (8u * b) : words.y >> (8u * b - 32u)) & 255u);
        }
    }
}

// Eight codes at once where their bytes are aligned.
static inline void store_packed(DEVICE(uchar) to, uint count, THREAD(const uint) codes) {
    uint2 words = packed(codes, count);
    if (WHOLE && BITS == 8u) {
        *device_cast(uint2, to) = words;
    } else if (WHOLE && BITS == 4u) {
        *device_cast(uint, to) = words.x;
    } else if (WHOLE && BITS == 2u) {
        *device_cast(ushort, to) = ushort(words.x);
    } else {
        store_bytes(to, count, codes);
    }
}

static inline void encode_eight(
    DEVICE(uchar) to, uint count, THREAD(const float) v, GroupParameters group) {
    uint codes[8];
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        codes[j] = code_of(v[j], group);
    }
    store_packed(to, count, codes);
}

// Up to eight values from `column` of a row: widens the extent and reports what the format cannot hold.
static inline Extent look_at_eight(
    THREAD(const float) v, uint count, ulong index, Extent extent, DEVICE(atomic_uint) status) {
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        if (j < count) {
            if (refused(v[j])) {
                atomic_min(status + STATUS_NOT_FINITE, uint(index) + j);
            } else {
                extent = widened(extent, v[j]);
            }
        }
    }
    return extent;
}

// ---- Kernels -------------------------------------------------------------------------------------

// The greatest magnitude of a matrix, as bits: greatest[0] = max(greatest[0], |x|). NVFP4's scale of the tensor needs it
// before any group can be encoded.
//
// x: [rows, columns] of T; greatest: one word, 0 before. Threads take eights in strides of the grid. What is not finite is
// left out and reported.
kernel void pack_extent(
    IN(T) x [[buffer(0)]],
    INOUT(atomic_uint) greatest [[buffer(1)]],
    INOUT(atomic_uint) status [[buffer(2)]],
    INLINE(PackArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(uint, partial, 128);
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    ulong elements = ulong(args.rows) * args.columns;
    Extent extent;
    extent.low = 0.0f;
    extent.high = 0.0f;
    ulong step = ulong(groups.x) * threads.x * 8u;
    for (ulong i = (ulong(group.x) * threads.x + thread_index) * 8u; i < elements; i += step) {
        ulong left = elements - i;
        uint count = left < 8u ? uint(left) : 8u;
        float v[8];
        load_eight(x + i, count, WHOLE, v);
        extent = look_at_eight(v, count, i, extent, status);
    }
    uint most = threadgroup_max(
        max(magnitude_bits(extent.low), magnitude_bits(extent.high)), partial, at);
    if (thread_index == 0u) {
        atomic_max(greatest, most);
    }
}

// Groups of 8, 16, 32, 64 or 128 columns of one row. One threadgroup of 128 threads takes 1024 columns, a thread eight of
// them: whole bytes of codes whatever BITS is, and whole bytes of zero points too, because 1024 columns are a
// multiple of eight groups.
//
// x: [rows, columns] of T; data, scales, zeros: as crates/formats lays them out; greatest: pack_extent's, where
// TENSOR_SCALE; tensor_scale: one f32; status: above. Grid: x: rows · ceil(columns / 1024). Bytes bound it on both kinds
// of GPU, if only just: two divisions and some ten instructions an element.
kernel void pack_groups(
    IN(T) x [[buffer(0)]],
    IN_OPTIONAL(uint) greatest [[buffer(1)]],
    OUT(uchar) data [[buffer(2)]],
    OUT(uchar) scales [[buffer(3)]],
    INOUT_OPTIONAL(uchar) zeros [[buffer(4)]],
    INOUT_OPTIONAL(float) tensor_scale [[buffer(5)]],
    INOUT(atomic_uint) status [[buffer(6)]],
    INLINE(PackArgs) args [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(float, lows, 128);
    THREADGROUP_ARRAY(float, highs, 128);
    THREADGROUP_ARRAY(uint, zero_points, 128);
    uint strips = (args.columns + 1023u) / 1024u;
    uint row = group.x / strips;
    uint first = (group.x - row * strips) * 1024u;
    uint column = first + thread_index * 8u;
    uint count = column < args.columns ? min(args.columns - column, 8u) : 0u;
    ulong index = ulong(row) * args.columns + column;
    float factor = 1.0f;
    if (TENSOR_SCALE) {
        factor = SCALE == SCALE_IS_E4M3 ? tensor_scale_of(greatest[0]) : 1.0f;
        if (group.x == 0u && thread_index == 0u) {
            tensor_scale[0] = factor;
        }
    }

    float v[8];
    load_eight(x + index, count, WHOLE, v);
    Extent extent;
    extent.low = 0.0f;
    extent.high = 0.0f;
    extent = look_at_eight(v, count, index, extent, status);
    lows[thread_index] = extent.low;
    highs[thread_index] = extent.high;
    barrier_threadgroup();
    // The threads of a group each look at all its parts: as fast as a tree, and the same for any SIMD width.
    uint team = args.group_columns / 8u;
    uint leader = thread_index / team * team;
    for (uint i = leader; i < leader + team; ++i) {
        extent = widened(extent, lows[i]);
        extent = widened(extent, highs[i]);
    }

    ulong place = ulong(row) * args.grid_columns + column / args.group_columns;
    bool leads = thread_index == leader && count > 0u;
    GroupParameters parameters = choose(extent, factor, place, leads, scales, status);
    if (count > 0u) {
        encode_eight(data + (ulong(row) * args.row_bytes + column / 8u * BITS), count, v, parameters);
    }
    if (ZERO) {
        if (thread_index == leader) {
            zero_points[thread_index / team] = count > 0u ? parameters.zero : 0u;
        }
        barrier_threadgroup();
        // One thread writes eight groups' zero points.
        uint first_group = first / args.group_columns + thread_index * 8u;
        if (thread_index * 8u < 128u / team && first_group < args.grid_columns) {
            uint codes[8];
            UNROLL
            for (uint j = 0u; j < 8u; ++j) {
                codes[j] = zero_points[thread_index * 8u + j];
            }
            store_bytes(
                zeros + (ulong(row) * args.zero_bytes + first_group / 8u * BITS),
                min(args.grid_columns - first_group, 8u), codes);
        }
    }
}

// Groups of any shape: whole rows, tiles, long groups. One threadgroup a group, or, where groups have zero points narrower
// than a byte, eight neighbours one after the other, so that no two threadgroups write one byte.
//
// As pack_groups. Grid: x: ceil(grid_columns / groups_together) · grid rows. Tiles of codes narrower than a byte have a
// multiple of eight columns.
kernel void pack_regions(
    IN(T) x [[buffer(0)]],
    IN_OPTIONAL(uint) greatest [[buffer(1)]],
    OUT(uchar) data [[buffer(2)]],
    OUT(uchar) scales [[buffer(3)]],
    INOUT_OPTIONAL(uchar) zeros [[buffer(4)]],
    INOUT_OPTIONAL(float) tensor_scale [[buffer(5)]],
    INOUT(atomic_uint) status [[buffer(6)]],
    INLINE(PackArgs) args [[buffer(7)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(uint, low_bits, 128);
    THREADGROUP_ARRAY(uint, high_bits, 128);
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    float factor = 1.0f;
    if (TENSOR_SCALE) {
        factor = SCALE == SCALE_IS_E4M3 ? tensor_scale_of(greatest[0]) : 1.0f;
        if (group.x == 0u && thread_index == 0u) {
            tensor_scale[0] = factor;
        }
    }
    uint bundles = (args.grid_columns + args.groups_together - 1u) / args.groups_together;
    uint grid_row = group.x / bundles;
    uint first_group = (group.x - grid_row * bundles) * args.groups_together;
    uint first_row = grid_row * args.group_rows;
    uint rows = min(args.group_rows, args.rows - first_row);
    uint zero_points[8];

    for (uint g = 0u; g < args.groups_together && first_group + g < args.grid_columns; ++g) {
        uint first_column = (first_group + g) * args.group_columns;
        uint columns = min(args.group_columns, args.columns - first_column);
        uint eights = (columns + 7u) / 8u;
        Extent extent;
        extent.low = 0.0f;
        extent.high = 0.0f;
        for (uint i = thread_index; i < rows * eights; i += threads.x) {
            uint column = first_column + i % eights * 8u;
            uint count = min(first_column + columns - column, 8u);
            ulong index = ulong(first_row + i / eights) * args.columns + column;
            float v[8];
            load_eight(x + index, count, WHOLE, v);
            extent = look_at_eight(v, count, index, extent, status);
        }
        // Magnitudes: both ends are on their own side of 0. The last group's are read before the barrier inside.
        barrier_threadgroup();
        extent.low = -as_float(threadgroup_max(magnitude_bits(extent.low), low_bits, at));
        extent.high = as_float(threadgroup_max(magnitude_bits(extent.high), high_bits, at));
        ulong place = ulong(grid_row) * args.grid_columns + first_group + g;
        GroupParameters parameters =
            choose(extent, factor, place, thread_index == 0u, scales, status);
        for (uint i = thread_index; i < rows * eights; i += threads.x) {
            uint row = first_row + i / eights;
            uint column = first_column + i % eights * 8u;
            uint count = min(first_column + columns - column, 8u);
            float v[8];
            load_eight(x + (ulong(row) * args.columns + column), count, WHOLE, v);
            // Columns of bytes may start anywhere; of narrower codes, at multiples of eight.
            uint offset = BITS == 8u ? column : column / 8u * BITS;
            encode_eight(data + (ulong(row) * args.row_bytes + offset), count, v, parameters);
        }
        zero_points[g] = parameters.zero;
    }
    if (ZERO && thread_index == 0u) {
        uint count = min(args.groups_together, args.grid_columns - first_group);
        uint offset = BITS == 8u ? first_group : first_group / 8u * BITS;
        store_bytes(zeros + (ulong(grid_row) * args.zero_bytes + offset), count, zero_points);
    }
}
