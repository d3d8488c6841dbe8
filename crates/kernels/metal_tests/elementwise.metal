// The simplest right kernels: what is wrong here is the emulated device.

ELEMENTS(T, half, bf16, float);

struct ScaleArgs {
    uint count;   // Elements.
    float factor; // What they are multiplied with.
};

// 1: the factor is added instead.
SPECIALISE(uint, ADDS, 0);

// y[i] = x[i] · factor, one thread an element.
kernel void scale(
    IN(T) x [[buffer(0)]],
    OUT(T) y [[buffer(1)]],
    INLINE(ScaleArgs) args [[buffer(2)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    uint i = group.x * threads.x + thread_index;
    if (i >= args.count) {
        return;
    }
    float value = load_float(x, i);
    store_float(y, i, ADDS != 0u ? value + args.factor : value * args.factor);
}

// The elements of each threadgroup in reverse, through threadgroup memory.
kernel void reverse(
    IN(T) x [[buffer(0)]],
    OUT(T) y [[buffer(1)]],
    THREADGROUP(T) tile [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    tile[thread_index] = x[group.x * threads.x + thread_index];
    barrier_threadgroup();
    y[group.x * threads.x + thread_index] = tile[threads.x - 1u - thread_index];
}
