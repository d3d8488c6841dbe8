// Eight consecutive elements of device memory at once, as floats: one 16-byte access for half and bf16, two
// for float. 16 bytes a thread is what both kinds of GPU need to reach their memory's bandwidth
// with few threads; element by element, the number of requests bounds it.

// The two halves of a word.
static inline float low_half(uint word) { return float(as_half(ushort(word & 0xffffu))); }
static inline float high_half(uint word) { return float(as_half(ushort(word >> 16u))); }

static inline uint half_pair(float low, float high) {
    return as_uint(half2_from_float2(make_float2(low, high)));
}

static inline uint bf16_pair(float low, float high) {
    return uint(bf16_from_float(low).bits) | (uint(bf16_from_float(high).bits) << 16u);
}

// `v` as it is once it was stored as an element of the first argument's type.
static inline float as_stored(half, float v) { return float(half(v)); }
static inline float as_stored(bf16, float v) { return float_from_bf16(bf16_from_float(v)); }
static inline float as_stored(float, float v) { return v; }

static inline void load_vector(DEVICE(const half) p, THREAD(float) out) {
    uint4 words = *device_cast(const uint4, p);
    out[0] = low_half(words.x);
    out[1] = high_half(words.x);
    out[2] = low_half(words.y);
    out[3] = high_half(words.y);
    out[4] = low_half(words.z);
    out[5] = high_half(words.z);
    out[6] = low_half(words.w);
    out[7] = high_half(words.w);
}

static inline void load_vector(DEVICE(const bf16) p, THREAD(float) out) {
    uint4 words = *device_cast(const uint4, p);
    out[0] = as_float(words.x << 16u);
    out[1] = as_float(words.x & 0xffff0000u);
    out[2] = as_float(words.y << 16u);
    out[3] = as_float(words.y & 0xffff0000u);
    out[4] = as_float(words.z << 16u);
    out[5] = as_float(words.z & 0xffff0000u);
    out[6] = as_float(words.w << 16u);
    out[7] = as_float(words.w & 0xffff0000u);
}

static inline void load_vector(DEVICE(const float) p, THREAD(float) out) {
    uint4 low = *device_cast(const uint4, p);
    uint4 high = *device_cast(const uint4, p + 4);
    out[0] = as_float(low.x);
    out[1] = as_float(low.y);
    out[2] = as_float(low.z);
    out[3] = as_float(low.w);
    out[4] = as_float(high.x);
    out[5] = as_float(high.y);
    out[6] = as_float(high.z);
    out[7] = as_float(high.w);
}

static inline void store_vector(DEVICE(half) p, THREAD(const float) v) {
    *device_cast(uint4, p) = make_uint4(
        half_pair(v[0], v[1]), half_pair(v[2], v[3]), half_pair(v[4], v[5]), half_pair(v[6], v[7]));
}

static inline void store_vector(DEVICE(bf16) p, THREAD(const float) v) {
    *device_cast(uint4, p) = make_uint4(
        bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]), bf16_pair(v[4], v[5]), bf16_pair(v[6], v[7]));
}

static inline void store_vector(DEVICE(float) p, THREAD(const float) v) {
    *device_cast(uint4, p) =
        make_uint4(as_uint(v[0]), as_uint(v[1]), as_uint(v[2]), as_uint(v[3]));
    *device_cast(uint4, p + 4) =
        make_uint4(as_uint(v[4]), as_uint(v[5]), as_uint(v[6]), as_uint(v[7]));
}

// Four elements: half as wide.
static inline void load_half_vector(DEVICE(const half) p, THREAD(float) out) {
    uint2 words = *device_cast(const uint2, p);
    out[0] = low_half(words.x);
    out[1] = high_half(words.x);
    out[2] = low_half(words.y);
    out[3] = high_half(words.y);
}

static inline void load_half_vector(DEVICE(const bf16) p, THREAD(float) out) {
    uint2 words = *device_cast(const uint2, p);
    out[0] = as_float(words.x << 16u);
    out[1] = as_float(words.x & 0xffff0000u);
    out[2] = as_float(words.y << 16u);
    out[3] = as_float(words.y & 0xffff0000u);
}

static inline void load_half_vector(DEVICE(const float) p, THREAD(float) out) {
    uint4 words = *device_cast(const uint4, p);
    out[0] = as_float(words.x);
    out[1] = as_float(words.y);
    out[2] = as_float(words.z);
    out[3] = as_float(words.w);
}

static inline void store_half_vector(DEVICE(half) p, THREAD(const float) v) {
    *device_cast(uint2, p) = make_uint2(half_pair(v[0], v[1]), half_pair(v[2], v[3]));
}

static inline void store_half_vector(DEVICE(bf16) p, THREAD(const float) v) {
    *device_cast(uint2, p) = make_uint2(bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3]));
}

static inline void store_half_vector(DEVICE(float) p, THREAD(const float) v) {
    *device_cast(uint4, p) =
        make_uint4(as_uint(v[0]), as_uint(v[1]), as_uint(v[2]), as_uint(v[3]));
}

// load_eight, load_four and their counterparts serve runs that may end before the last element: `count`
// elements are left at p, or more. Without `whole`, or where fewer are left than asked for, elements go
// one by one, and those that are not there load as 0. `whole` says that p is a multiple of 16 bytes
// (of 8 for four elements).
#define PARTIAL_VECTORS(E, n, load_name, store_name, load_whole, store_whole)                      \
    static inline void load_name(DEVICE(const E) p, uint count, bool whole, THREAD(float) out) {   \
        if (whole && count >= n) {                                                                 \
            load_whole(p, out);                                                                    \
        } else {                                                                                   \
            UNROLL                                                                                 \
            for (uint j = 0u; j < n; ++j) {                                                        \
                out[j] = j < count ? load_float(p, j) : 0.0f;                                      \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    static inline void store_name(DEVICE(E) p, uint count, bool whole, THREAD(const float) v) {    \
        if (whole && count >= n) {                                                                 \
            store_whole(p, v);                                                                     \
        } else {                                                                                   \
            UNROLL                                                                                 \
            for (uint j = 0u; j < n; ++j) {                                                        \
                if (j < count) {                                                                   \
                    store_float(p, j, v[j]);                                                       \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }
PARTIAL_VECTORS(half, 8u, load_eight, store_eight, load_vector, store_vector)
PARTIAL_VECTORS(bf16, 8u, load_eight, store_eight, load_vector, store_vector)
PARTIAL_VECTORS(float, 8u, load_eight, store_eight, load_vector, store_vector)
PARTIAL_VECTORS(half, 4u, load_four, store_four, load_half_vector, store_half_vector)
PARTIAL_VECTORS(bf16, 4u, load_four, store_four, load_half_vector, store_half_vector)
PARTIAL_VECTORS(float, 4u, load_four, store_four, load_half_vector, store_half_vector)
#undef PARTIAL_VECTORS
