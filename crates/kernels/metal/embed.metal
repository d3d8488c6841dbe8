// Rows of a table of floats, by index: token embeddings, and the rows of output tokens.

ELEMENTS(T, half, bf16, float);
ELEMENTS(U, half, bf16, float);

// Sizes of one call.
struct GatherRowsArgs {
    uint rows;    // Rows of the table.
    uint columns; // Columns of the table.
    float scale;  // Factor on every value: sqrt(hidden) for Gemma's embeddings, otherwise 1.
};

// Rows of table and output start at multiples of 16 bytes and have a multiple of 8 columns.
SPECIALISE(bool, WHOLE, 0);

#include "vector.h"

// out[i, ·] = scale · table[ids[i], ·]
//
// table: [rows, columns] of T; ids: [n]; out: [n, columns] of U. One threadgroup an id. An id outside the
// table gives a row of NaN: nothing that follows can take it for a result, and nothing is read
// out of bounds. Bytes bound it.
kernel void gather_rows(
    IN(T) table [[buffer(0)]],
    IN(uint) ids [[buffer(1)]],
    OUT(U) out [[buffer(2)]],
    INLINE(GatherRowsArgs) args [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint id = ids[group.x];
    DEVICE(U) to = out + ulong(group.x) * args.columns;
    for (uint column = thread_index * 8u; column < args.columns; column += threads.x * 8u) {
        uint left = args.columns - column;
        float v[8];
        if (id < args.rows) {
            load_eight(table + ulong(id) * args.columns + column, left, WHOLE, v);
        }
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            v[j] = id < args.rows ? v[j] * args.scale : as_float(0x7fc00000u);
        }
        store_eight(to + column, left, WHOLE, v);
    }
}
