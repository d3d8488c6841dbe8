// Root-mean-square normalisation (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4),
// alone and fused with the residual stream's addition.
//
// norm(x) = x / sqrt(mean(x²) + epsilon) · (offset + weight); sums in f32.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct NormArgs {
    uint columns;  // Values of a row.
    float epsilon; // Added to the mean square.
    float offset;  // Added to the weight: 1 for Gemma's files, otherwise 0.
};

// Every row starts at a multiple of 16 bytes and has a multiple of 8 columns.
SPECIALISE(bool, WHOLE, 0);

#include "reduce.h"
#include "vector.h"

// Values that a thread keeps in registers between the two passes over its row: with 256 threads, rows of
// up to 8192 columns are read once. Longer rows are read again, from cache.
#define KEPT 4u

// First column of the thread's chunk number c: neighbours take neighbouring eights.
static inline uint chunk_column(uint c, uint thread_index, uint threads) {
    return (c * threads + thread_index) * 8u;
}

// What is fused with the norm.
#define NORM_ALONE 0u
#define ADD_BEFORE 1u
#define ADD_AFTER 2u

// One row: its pointers, at column 0. `residual` is only there where something is added.
struct NormRow {
    DEVICE(const T) x;
    DEVICE(T) residual;
    DEVICE(const float) weight;
    DEVICE(T) y;
    uint columns;
    float offset;
};

// The values to be normed of the eight columns from `column`; gives `sum` plus their squares.
static inline float norm_input(
    uint fused, THREAD(const NormRow) row, uint column, THREAD(float) v, float sum) {
    uint left = row->columns - column;
    load_eight(row->x + column, left, WHOLE, v);
    if (fused == ADD_BEFORE) {
        float r[8];
        load_eight(row->residual + column, left, WHOLE, r);
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            v[j] = as_stored(T(), v[j] + r[j]);
        }
        store_eight(row->residual + column, left, WHOLE, v);
    }
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        sum = fma(v[j], v[j], sum);
    }
    return sum;
}

// Scales the eight values from `column` and writes them where they go.
static inline void norm_output(
    uint fused, THREAD(const NormRow) row, uint column, THREAD(float) v, float scale) {
    uint left = row->columns - column;
    float w[8];
    load_eight(row->weight + column, left, WHOLE, w);
    UNROLL
    for (uint j = 0u; j < 8u; ++j) {
        v[j] = v[j] * scale * (row->offset + w[j]);
    }
    if (fused == ADD_AFTER) {
        float r[8];
        load_eight(row->residual + column, left, WHOLE, r);
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            v[j] = v[j] + r[j];
        }
        store_eight(row->residual + column, left, WHOLE, v);
    } else {
        store_eight(row->y + column, left, WHOLE, v);
    }
}

// The row's two passes: squares, then scaling. It stays in registers in between, so that memory sees it
// once each way.
static inline void norm_row(
    uint fused, THREAD(const NormRow) row, float epsilon, uint thread_index, uint threads,
    THREADGROUP(float) partial, SimdPlace at) {
    uint columns = row->columns;
    uint rest = chunk_column(KEPT, thread_index, threads);
    float kept[KEPT * 8u];
    float sum = 0.0f;
    UNROLL
    for (uint c = 0u; c < KEPT; ++c) {
        uint column = chunk_column(c, thread_index, threads);
        if (column < columns) {
            sum = norm_input(fused, row, column, kept + c * 8u, sum);
        }
    }
    for (uint column = rest; column < columns; column += threads * 8u) {
        float v[8];
        sum = norm_input(fused, row, column, v, sum);
    }

    sum = threadgroup_sum(sum, partial, at);
    float scale = 1.0f / sqrt(sum / float(columns) + epsilon);
    UNROLL
    for (uint c = 0u; c < KEPT; ++c) {
        uint column = chunk_column(c, thread_index, threads);
        if (column < columns) {
            norm_output(fused, row, column, kept + c * 8u, scale);
        }
    }
    for (uint column = rest; column < columns; column += threads * 8u) {
        float v[8];
        // The first pass has left the sum in the residual.
        if (fused == ADD_BEFORE) {
            load_eight(row->residual + column, columns - column, WHOLE, v);
        } else {
            load_eight(row->x + column, columns - column, WHOLE, v);
        }
        norm_output(fused, row, column, v, scale);
    }
}

// y[row, ·] = norm(x[row, ·])
//
// x, y: [rows, columns] of T; weight: [columns] of f32. One threadgroup a row. Bytes bound it: one read and
// one write of the row; the weight stays in cache.
kernel void rms_norm(
    IN(T) x [[buffer(0)]],
    IN(float) weight [[buffer(1)]],
    OUT(T) y [[buffer(2)]],
    INLINE(NormArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(float, partial, 128);
    allow_next();
    wait_for_previous();
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    ulong start = ulong(group.x) * args.columns;
    NormRow row;
    row.x = x + start;
    row.residual = y + start;
    row.weight = weight;
    row.y = y + start;
    row.columns = args.columns;
    row.offset = args.offset;
    norm_row(NORM_ALONE, &row, args.epsilon, thread_index, threads.x, partial, at);
}

// residual[row, ·] += x[row, ·], then y[row, ·] = norm(residual[row, ·])
//
// The sum is rounded to T before it is normed: y is what a norm of the stored residual gives. Shapes and
// threads as rms_norm.
kernel void add_rms_norm(
    IN(T) x [[buffer(0)]],
    INOUT(T) residual [[buffer(1)]],
    IN(float) weight [[buffer(2)]],
    OUT(T) y [[buffer(3)]],
    INLINE(NormArgs) args [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(float, partial, 128);
    allow_next();
    wait_for_previous();
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    ulong start = ulong(group.x) * args.columns;
    NormRow row;
    row.x = x + start;
    row.residual = residual + start;
    row.weight = weight;
    row.y = y + start;
    row.columns = args.columns;
    row.offset = args.offset;
    norm_row(ADD_BEFORE, &row, args.epsilon, thread_index, threads.x, partial, at);
}

// residual[row, ·] += norm(x[row, ·]): the norms after attention and feed-forward of Gemma 2 and 3
//
// Shapes and threads as rms_norm.
kernel void rms_norm_add(
    IN(T) x [[buffer(0)]],
    IN(float) weight [[buffer(1)]],
    INOUT(T) residual [[buffer(2)]],
    INLINE(NormArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    THREADGROUP_ARRAY(float, partial, 128);
    allow_next();
    wait_for_previous();
    SimdPlace at;
    at.lane = lane;
    at.width = simd_width;
    at.index = simd_index;
    at.groups = simd_groups;
    ulong start = ulong(group.x) * args.columns;
    NormRow row;
    row.x = x + start;
    row.residual = residual + start;
    row.weight = weight;
    row.y = residual + start;
    row.columns = args.columns;
    row.offset = args.offset;
    norm_row(ADD_AFTER, &row, args.epsilon, thread_index, threads.x, partial, at);
}
