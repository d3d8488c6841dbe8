// Rows of a quantised table by index: token embeddings that share their matrix with the last product.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct GatherWeightRowsArgs {
    uint rows;    // Rows of the table.
    uint columns; // Columns of the table.
    uint blocks;  // Blocks of 64 columns, padding included.
    uint groups;  // Scales of a row.
    float factor; // Of all values: the table's own times the embedding's.
};

// What a code is: FragmentCode.
SPECIALISE(uint, CODE, 0);
// Subtracted from integer codes.
SPECIALISE(int, OFFSET, 1);
// What scales are: FragmentScale.
SPECIALISE(uint, SCALE, 2);
// What minimums are: FragmentMin.
SPECIALISE(uint, MIN, 3);
// Columns per scale; 0 where a row has one.
SPECIALISE(uint, GROUP, 4);

#include "weights.h"

// out[i, ·] = factor · (scale · V(code) + min) of row ids[i]
//
// codes, scales, mins, supers: the fragment layout (crates/formats/src/fragment/mod.rs); ids: [n]; out: [n, columns]. One
// threadgroup an id, a thread a slot: 16 columns of the row. A slot holds as many of the row eight further, so twice
// the bytes are read; of a table that is a row in tens of thousands. An id outside the table gives a row of NaN.
kernel void gather_weight_rows(
    IN(uint) codes [[buffer(0)]],
    IN_OPTIONAL(uchar) scales [[buffer(1)]],
    IN_OPTIONAL(uchar) mins [[buffer(2)]],
    IN_OPTIONAL(half) supers [[buffer(3)]],
    IN(uint) ids [[buffer(4)]],
    OUT(T) out [[buffer(5)]],
    INLINE(GatherWeightRowsArgs) args [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint id = ids[group.x];
    bool known = id < args.rows;
    uint row_block = known ? id / 16u : 0u;
    uint g = id % 8u;
    bool upper = id % 16u >= 8u;
    uint supers_per_row = (args.blocks + 3u) / 4u;
    DEVICE(T) to = out + ulong(group.x) * args.columns;
    for (uint i = thread_index; i < args.blocks * 4u; i += threads.x) {
        uint block = i / 4u;
        uint t = i % 4u;
        Slot held;
        ulong words = ulong(row_block * args.blocks + block) * (32u * code_bits());
        load_slot(codes + words, 4u * g + t, &held);
        UNROLL
        for (uint s = 0u; s < 4u; ++s) {
            uint column = block * 64u + s * 16u;
            uint scale_group = GROUP == 0u ? 0u : column / GROUP;
            StoredScale stored;
            load_scale(
                scales, mins, supers, (row_block * args.groups + scale_group) * 8u + g,
                super_place(row_block, supers_per_row, column, g), &stored);
            float2 scale = scale_of(&stored);
            float2 least = min_of(&stored);
            UNROLL
            for (uint p = 0u; p < 2u; ++p) {
                float2 low = slot_pair_float(&held, 0u, 2u * s + p);
                float2 high = slot_pair_float(&held, 1u, 2u * s + p);
                float v[2];
                v[0] = upper ? fma(high.x, scale.y, least.y) : fma(low.x, scale.x, least.x);
                v[1] = upper ? fma(high.y, scale.y, least.y) : fma(low.y, scale.x, least.x);
                UNROLL
                for (uint e = 0u; e < 2u; ++e) {
                    uint at = column + 4u * t + 2u * p + e;
                    if (at < args.columns) {
                        store_float(to, at, known ? v[e] * args.factor : as_float(0x7fc00000u));
                    }
                }
            }
        }
    }
}
