// Activations to 8-bit codes with a scale per token or per group: the other operand of 8-bit products.
//
// scale = max|x| / reach, code = round(x / scale): symmetric, with reach 127 for int8 (as ggml's Q8_0) and 448
// for E4M3.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct QuantiseArgs {
    uint rows;    // Tokens.
    uint columns; // Values of a token.
};

// 0: int8, 1: E4M3.
SPECIALISE(uint, CODE, 0);
// quantise_groups: values per scale, 16, 32, 64 or 128.
SPECIALISE(uint, GROUP, 1);
// Rows of x and codes start at multiples of 16 bytes and have a multiple of 16 columns.
SPECIALISE(bool, WHOLE, 2);

#include "quantise.h"
#include "reduce.h"
#include "vector.h"

// Writes up to 16 codes of v · inverse.
static inline void store_codes(DEVICE(uchar) codes, uint count, THREAD(const float) v, float inverse) {
    if (WHOLE) {
        *device_cast(uint4, codes) = make_uint4(
            four_codes(CODE, v, inverse), four_codes(CODE, v + 4, inverse),
            four_codes(CODE, v + 8, inverse), four_codes(CODE, v + 12, inverse));
    } else {
        UNROLL
        for (uint j = 0u; j < 16u; ++j) {
            if (j < count) {
                codes[j] = uchar(code_from_float(CODE, v[j], inverse));
            }
        }
    }
}

// codes[row, c] and scales[row, group], a scale per GROUP columns; the last group of a row may be shorter.
//
// x: [rows, columns] of T; codes: [rows, columns], int8 or E4M3; scales: [rows, ceil(columns / GROUP)].
// A thread takes 16 values: a group of 128 is then 8 threads, which fits the narrowest SIMD-group, and exchanges
// need no threadgroup memory. Threads past the end take part with zeros. Bytes bound it: 3 a value of half.
kernel void quantise_groups(
    IN(T) x [[buffer(0)]],
    OUT(uchar) codes [[buffer(1)]],
    OUT(float) scales [[buffer(2)]],
    INLINE(QuantiseArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint team = GROUP / 16u;
    uint row_groups = (args.columns + GROUP - 1u) / GROUP;
    uint place = group.x * threads.x + thread_index;
    uint row = place / (row_groups * team);
    uint chunk = place - row * (row_groups * team);
    uint column = chunk * 16u;
    uint left = row < args.rows && column < args.columns ? args.columns - column : 0u;
    ulong start = ulong(row) * args.columns + column;

    float v[16];
    UNROLL
    for (uint j = 0u; j < 16u; ++j) {
        v[j] = 0.0f;
    }
    if (left > 0u) {
        load_eight(x + start, left, WHOLE, v);
        load_eight(x + start + 8u, left > 8u ? left - 8u : 0u, WHOLE, v + 8);
    }
    uint greatest = greatest_magnitude(v, 16u, 0u);
    UNROLL
    for (uint step = 1u; step < 8u; step *= 2u) {
        if (step < team) {
            greatest = max(greatest, simd_shuffle_xor(greatest, step));
        }
    }
    float scale = code_scale(greatest, code_reach(CODE));
    if (left > 0u) {
        store_codes(codes + start, left, v, code_inverse(scale));
        if (chunk % team == 0u) {
            scales[ulong(row) * row_groups + chunk / team] = scale;
        }
    }
}

// codes[row, c] and scales[row]: one scale a token.
//
// x: [rows, columns] of T; codes: [rows, columns]; scales: [rows]. One threadgroup a row. The row is read twice,
// the second time from cache: keeping it would take registers that most rows do not need.
kernel void quantise_tokens(
    IN(T) x [[buffer(0)]],
    OUT(uchar) codes [[buffer(1)]],
    OUT(float) scales [[buffer(2)]],
    INLINE(QuantiseArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(uint, partial, 128);
    allow_next();
    wait_for_previous();
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    DEVICE(const T) row = x + ulong(group.x) * args.columns;
    DEVICE(uchar) out = codes + ulong(group.x) * args.columns;

    uint greatest = 0u;
    for (uint column = thread_index * 8u; column < args.columns; column += threads.x * 8u) {
        float v[8];
        load_eight(row + column, args.columns - column, WHOLE, v);
        greatest = greatest_magnitude(v, 8u, greatest);
    }
    greatest = threadgroup_max(greatest, partial, at);
    float scale = code_scale(greatest, code_reach(CODE));
    float inverse = code_inverse(scale);
    for (uint column = thread_index * 16u; column < args.columns; column += threads.x * 16u) {
        uint left = args.columns - column;
        float v[16];
        load_eight(row + column, left, WHOLE, v);
        load_eight(row + column + 8u, left > 8u ? left - 8u : 0u, WHOLE, v + 8);
        store_codes(out + column, left, v, inverse);
    }
    if (thread_index == 0u) {
        scales[group.x] = scale;
    }
}
