// Storing keys and values in the cache, quantised: what kv_append and rope_append share.
//
// A file that includes this has included kv_cache.h and declares, before the include, the specialisation constants
//   HEAD_DIM  values per head, a multiple of 8 up to 256,
//   KV_FORMAT  KV_F16, KV_INT8, KV_FP4, KV_F32.

// The most units of 8 dimensions of a lane: 256 dimensions, SIMD-groups of 8.
#define KV_MAX_ROUNDS 4u

// E2M1 code nearest to x, ties to even, saturating at 6 (crates/formats/src/fp4.rs): a comparison with each
// midpoint, exclusive where the lower neighbour is even.
static inline uint kv_encode_e2m1(float x) {
    float a = abs(x);
    uint code = (a > 0.25f ? 1u : 0u) + (a >= 0.75f ? 1u : 0u) + (a > 1.25f ? 1u : 0u)
        + (a >= 1.75f ? 1u : 0u) + (a > 2.5f ? 1u : 0u) + (a >= 3.5f ? 1u : 0u)
        + (a > 5.0f ? 1u : 0u);
    return code | ((as_uint(x) >> 31u) << 3u);
}

// f16 with magnitudes past its range kept at the largest: an infinity would turn every later score into NaN.
static inline half kv_half(float x) { return half(clamp(x, -65504.0f, 65504.0f)); }

// Stores 8 dimensions from `unit · 8` of one position, already divided by the scale.
static inline void kv_store_unit(
    DEVICE(uint) words, bool values, uint unit, uint position, THREAD(const float) x) {
    uint words_per_unit = 32u / kv_elements(KV_FORMAT); // 8 dimensions: 8, 4, 2 or 1 words.
    uint at;
    if (KV_FORMAT == KV_F32) {
        // Two pieces of four dimensions.
        UNROLL
        for (uint half_unit = 0u; half_unit < 2u; ++half_unit) {
            uint piece = 2u * unit + half_unit;
            at = values ? position * (HEAD_DIM / 4u) + piece : piece * KV_BLOCK + position;
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                words[4u * at + i] = as_uint(x[4u * half_unit + i]);
            }
        }
        return;
    }
    if (values) {
        uint positions = 4u / words_per_unit; // Of a piece.
        at = (position / positions * (HEAD_DIM / 8u) + unit) * 4u
            + position % positions * words_per_unit;
    } else {
        uint units = 4u / words_per_unit; // Of a piece.
        at = (unit / units * KV_BLOCK + position) * 4u + unit % units * words_per_unit;
    }
    if (KV_FORMAT == KV_F16) {
        UNROLL
        for (uint i = 0u; i < 4u; ++i) {
            words[at + i] = as_uint(make_half2(kv_half(x[2u * i]), kv_half(x[2u * i + 1u])));
        }
    } else if (KV_FORMAT == KV_INT8) {
        UNROLL
        for (uint i = 0u; i < 2u; ++i) {
            uint word = 0u;
            UNROLL
            for (uint j = 0u; j < 4u; ++j) {
                int code = int(clamp(rint(x[4u * i + j]), -127.0f, 127.0f));
                word = word | ((uint(code) & 255u) << (8u * j));
            }
            words[at + i] = word;
        }
    } else {
        uint word = 0u;
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            word = word | (kv_encode_e2m1(x[j]) << (4u * j));
        }
        words[at] = word;
    }
}

// Where a key or a value of one position goes.
struct KvPlace {
    DEVICE(uint4) codes;
    DEVICE(uint4) scales;
    bool value;
    uint position; // In the block.
};

// The place in the block that begins at `base`, of one head.
static inline KvPlace kv_place(DEVICE(uint4) base, bool value, uint position) {
    KvPlace place;
    place.codes = value ? base + kv_key_pieces(KV_FORMAT, HEAD_DIM) : base;
    place.scales = base + kv_key_pieces(KV_FORMAT, HEAD_DIM) + kv_value_pieces(KV_FORMAT, HEAD_DIM)
        + (value ? kv_scale_pieces(KV_FORMAT, HEAD_DIM) : 0u);
    place.value = value;
    place.position = position;
    return place;
}

// Units that are stored: keys are padded to whole pieces, values are not.
static inline uint kv_units(bool value) {
    return value ? HEAD_DIM / 8u : kv_key_row(KV_FORMAT, HEAD_DIM) * kv_elements(KV_FORMAT) / 8u;
}

// Stores one head's key or value; all lanes of the SIMD-group take part. x: [KV_MAX_ROUNDS][8], a lane's unit of round r being
// number r · simd_width + lane, zeros past HEAD_DIM.
//
// A lane has 8 dimensions at a time: a scale is then one reduction in the SIMD-group (int8) or two exchanges (fp4: 32
// dimensions are four neighbouring lanes).
static inline void kv_store_head(KvPlace place, uint lane, uint simd_width, THREAD(float) x) {
    uint units = kv_units(place.value);
    uint rounds = (units + simd_width - 1u) / simd_width;
    float inverse = 1.0f;
    if (KV_FORMAT == KV_INT8) {
        float largest = 0.0f;
        UNROLL
        for (uint round = 0u; round < KV_MAX_ROUNDS; ++round) {
            if (round < rounds) {
                UNROLL
                for (uint i = 0u; i < 8u; ++i) {
                    largest = max(largest, abs(x[8u * round + i]));
                }
            }
        }
        float scale = simd_max(largest) / 127.0f;
        inverse = scale > 1.17549435e-38f ? 1.0f / scale : 0.0f;
        if (lane == 0u) {
            device_cast(float, place.scales)[place.position] = scale;
        }
    }
    UNROLL
    for (uint round = 0u; round < KV_MAX_ROUNDS; ++round) {
        if (round < rounds) {
            uint unit = round * simd_width + lane;
            THREAD(float) own = x + 8u * round;
            if (KV_FORMAT == KV_FP4) {
                float largest = 0.0f;
                UNROLL
                for (uint i = 0u; i < 8u; ++i) {
                    largest = max(largest, abs(own[i]));
                }
                largest = max(largest, simd_shuffle_xor(largest, 1u));
                largest = max(largest, simd_shuffle_xor(largest, 2u));
                half scale = kv_half(largest / 6.0f);
                float rounded = float(scale);
                UNROLL
                for (uint i = 0u; i < 8u; ++i) {
                    own[i] = rounded > 0.0f ? own[i] / rounded : 0.0f;
                }
                if (unit % 4u == 0u && unit < units) {
                    device_cast(half, place.scales)[unit / 4u * KV_BLOCK + place.position] = scale;
                }
            } else {
                UNROLL
                for (uint i = 0u; i < 8u; ++i) {
                    own[i] = own[i] * inverse;
                }
            }
            if (unit < units) {
                kv_store_unit(
                    device_cast(uint, place.codes), place.value, unit, place.position, own);
            }
        }
    }
}
