// Copies and fills of any bytes, for devices whose own commands take whole words only: Metal's blits want offsets
// and sizes that are multiples of 4 on macOS (Metal API reference, `MTLBlitCommandEncoder`).

// How many bytes.
struct CopyBytesArgs {
    ulong count; // Bytes to copy.
};

// How many bytes, and which.
struct FillBytesArgs {
    ulong count; // Bytes to set.
    uint value;  // To its lowest eight bits.
    uint unused; // Zero.
};

// destination[i] = source[i], for i below count; any number of threads.
kernel void copy_bytes(
    IN(uchar) source [[buffer(0)]],
    OUT(uchar) destination [[buffer(1)]],
    INLINE(CopyBytesArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    ulong stride = ulong(groups.x) * threads.x;
    for (ulong i = ulong(group.x) * threads.x + thread_index; i < args.count; i += stride) {
        destination[i] = source[i];
    }
}

// destination[i] = value, for i below count; any number of threads.
kernel void fill_bytes(
    OUT(uchar) destination [[buffer(0)]],
    INLINE(FillBytesArgs) args [[buffer(1)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    ulong stride = ulong(groups.x) * threads.x;
    for (ulong i = ulong(group.x) * threads.x + thread_index; i < args.count; i += stride) {
        destination[i] = uchar(args.value);
    }
}
