// Every name of docs/kernels.md, used once as it is meant, with T as `half`.

ELEMENTS(T, half, bf16, float);

struct DialectArgs {
    ulong offset;
    uint count;
    int shift;
    float scales[2];
};

SPECIALISE(uint, WIDTH, 0);
SPECIALISE(int, SHIFT, 1);
SPECIALISE(float, SCALE, 2);
SPECIALISE(bool, HAS_WEIGHT, 3);

CONSTANT_TABLE(float, LEVELS, 4) = {0.0f, 0.5f, 1.0f, 1.5f};

static inline float sum_of(THREAD(const float) values, uint count) {
    float sum = 0.0f;
    for (uint i = 0u; i < count; i++) {
        sum += values[i];
    }
    return sum;
}

// By value: the structure is copied out of constant memory.
static inline uint last_of(DialectArgs args) {
    args.count -= 1u;
    return args.count;
}

kernel void parameters(
    IN(T) x [[buffer(0)]],
    IN_OPTIONAL(float) weight [[buffer(1)]],
    OUT(T) y [[buffer(2)]],
    INOUT(float) sums [[buffer(3)]],
    INOUT_OPTIONAL(float) extra [[buffer(4)]],
    INLINE(DialectArgs) args [[buffer(5)]],
    THREADGROUP(float) scratch [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]],
    uint3 place [[thread_position_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_group [[simdgroup_index_in_threadgroup]],
    uint simd_width [[threads_per_simdgroup]],
    uint simd_groups [[simdgroups_per_threadgroup]]) {
    allow_next();
    wait_for_previous();
    DialectArgs copy = args;
    uint last = last_of(copy) + last_of(args);
    uint i = (group.y * groups.x + group.x) * threads.x + place.x;
    float value = load_float(x, ulong(i) + args.offset) * SCALE * args.scales[args.shift & 1];
    if (HAS_WEIGHT) {
        value *= weight[i];
        extra[i] = value;
    }
    scratch[thread_index] = value;
    barrier_threadgroup();
    if (lane == 0u && simd_group < simd_groups && simd_width > WIDTH) {
        sums[i] = scratch[min(last, uint(SHIFT))];
    }
    store_float(y, i, value);
}

kernel void types(
    IN(uchar) bytes [[buffer(0)]],
    IN(char) characters [[buffer(1)]],
    IN(ushort) shorts [[buffer(2)]],
    IN(uint4) words [[buffer(3)]],
    IN(ulong) longs [[buffer(4)]],
    OUT(int) y [[buffer(5)]],
    OUT(bf16) z [[buffer(6)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    bool flag = bytes[thread_index] > uchar(3);
    short small = short(characters[thread_index]);
    uint4 v = words[thread_index];
    uchar2 b2 = make_uchar2(bytes[0], bytes[1]);
    uchar4 b4 = make_uchar4(b2.x, b2.y, bytes[2], bytes[3]);
    ushort2 s2 = make_ushort2(shorts[0], shorts[1]);
    ushort4 s4 = make_ushort4(s2.x, s2.y, shorts[2], shorts[3]);
    uint2 u2 = make_uint2(v.x, v.y);
    uint3 u3 = make_uint3(u2.x, u2.y, v.z);
    uint4 u4 = make_uint4(u3.x, u3.y, u3.z, v.w);
    int2 i2 = make_int2(int(b4.z), int(b4.w));
    int4 i4 = make_int4(i2.x, i2.y, int(s4.x), int(s4.y));
    float2 f2 = make_float2(float(i4.x), float(longs[0]));
    float4 f4 = make_float4(f2.x, f2.y, as_float(u4.x), as_float(u4.y));
    f4 = (f4 + f4) * f4 - f4 * 2.0f;
    half2 h2 = make_half2(half(f4.x), half(float(small)));
    half4 h4 = make_half4(h2.x, h2.y, as_half(s2.x), half(1.0f));
    h4 = h4 * half(2.0f) + h4;
    half2 pair = half2_fma(h2, as_half2(v.x), half2_from_float2(f2));
    float2 wide = float2_from_half2(pair);
    bf16 rounded = bf16_from_float(wide.x);
    z[thread_index] = rounded;
    int bits = as_int(float_from_bf16(rounded)) + int(as_uint(f4.z)) + int(as_uint(pair));
    y[thread_index] = (flag ? bits : 0) + int(as_ushort(h4.x)) + int(float(h4.w));
}

kernel void memory(
    IN(uint4) x [[buffer(0)]],
    OUT(half) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(uint4, tile, 64);
    THREADGROUP_ARRAY(bf16, rounded, 64);
    THREADGROUP_ARRAY(half, halves, 64);
    copy_async(tile + thread_index, x + thread_index);
    copy_async_commit();
    copy_async_wait<0>();
    barrier_threadgroup();
    DEVICE(const uint) words = device_cast(const uint, x);
    THREADGROUP(const half) held = threadgroup_cast(const half, tile);
    store_float(halves, thread_index, float(held[thread_index]));
    store_float(rounded, thread_index, load_float(held, thread_index));
    barrier_device();
    barrier_team(0u, 32u);
    float values[2];
    UNROLL
    for (uint i = 0u; i < 2u; i++) {
        values[i] = load_float(rounded, thread_index + i) + LEVELS[i];
    }
    DEVICE(half) result = y + thread_index;
    ROLLED
    for (uint i = 0u; i < 2u; i++) {
        values[i] = values[i] + values[1u - i];
    }
    uint4 streamed = load_streaming(x + thread_index);
    streamed.x = streamed.x + load_constant(device_cast(const uint, x));
    result[0] = half(sum_of(values, 2u) + float(words[thread_index]) + float(streamed.w));
}

kernel void simd_groups_and_atomics(
    IN(float) x [[buffer(0)]],
    INOUT(atomic_uint) counts [[buffer(1)]],
    OUT(float) y [[buffer(2)]],
    OUT(ulong) votes [[buffer(3)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    THREADGROUP_ARRAY(atomic_uint, shared, 2);
    if (thread_index == 0u) {
        atomic_store(shared, 0u);
        atomic_store(shared + 1, 7u);
    }
    barrier_threadgroup();
    float value = x[thread_index];
    int whole = int(value);
    uint word = uint(whole);
    value += simd_sum(value) + simd_max(value) + simd_min(value);
    whole += simd_sum(whole) + simd_max(whole) + simd_min(whole);
    word += simd_sum(word) + simd_max(word) + simd_min(word);
    value += simd_shuffle(value, 3u) + simd_shuffle_xor(value, 1u) + simd_shuffle_down(value, 2u);
    word += simd_shuffle_up(word, 1u) + simd_broadcast(word, 0u);
    half2 pair = simd_shuffle_xor(as_half2(word), 4u);
    barrier_simdgroup();
    if (simd_any(value > 0.0f) && !simd_all(value > 1.0f)) {
        votes[thread_index] = simd_ballot(value > 0.5f);
    }
    word += simd_prefix_exclusive_sum(word);
    word += atomic_add(counts, 1u) + atomic_max(counts, word) + atomic_min(counts + 1, word);
    word += atomic_or(shared, 4u) + atomic_exchange(shared + 1, word) + atomic_load(counts);
    y[thread_index] = value + float(whole) + float(word) + float(pair.y);
}

kernel void mathematics(
    IN(float) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    float a = x[thread_index];
    uint u = as_uint(a);
    int i = as_int(a);
    float sum = fma(a, 2.0f, 1.0f) + min(a, 0.0f) + max(a, 0.0f) + abs(a) + clamp(a, -1.0f, 1.0f);
    sum += exp(a) + exp2(a) + log(a) + log2(a) + sqrt(a) + rsqrt(a) + sin(a) + cos(a);
    sum += pow(a, 2.0f) + tanh(a) + floor(a) + ceil(a) + rint(a) + fast_exp(a);
    if (isnan(a) || isinf(a)) {
        sum = -INFINITY;
    }
    u += popcount(u) + clz(u) + mulhi(u, 3u) + select(u, 5u, a > 0.0f) + min(u, 7u) + max(u, 9u);
    i += abs(i) + clamp(i, -3, 3) + dot4_i8(i, int(u), 0);
    y[thread_index] = sum + float(u) + float(i);
}

REQUIRES_SIMD_WIDTH(32)
kernel void matrix_fragments(
    IN(half) x [[buffer(0)]],
    OUT(float) y [[buffer(1)]],
    THREADGROUP(half) scratch [[threadgroup(0)]]) {
    simdgroup_half8x8 a;
    simdgroup_half8x8 b;
    simdgroup_float8x8 sums = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(a, x, 8);
    simdgroup_load(b, scratch, 16, ulong2(0, 8), true);
    a.thread_elements()[0] = b.thread_elements()[1];
    simdgroup_multiply_accumulate(sums, a, b, sums);
    simdgroup_store(sums, y, 8);
}
