// What choosing needs: sums, prefixes and maxima over a threadgroup, floats as integers of the same
// order, and probability mass in fixed point.

// Where a thread is in its threadgroup.
struct Place {
    uint index; // In the threadgroup.
    uint threads;
    uint lane;
    uint simd_group;
    uint simd_groups;
    uint simd_width;
};

static inline Place place_of(
    uint index, uint threads, uint lane, uint simd_group, uint simd_groups, uint simd_width) {
    Place out;
    out.index = index;
    out.threads = threads;
    out.lane = lane;
    out.simd_group = simd_group;
    out.simd_groups = simd_groups;
    out.simd_width = simd_width;
    return out;
}

// A value and where it is. `better` is a total order over distinct indices: the greater value, then the
// lower index, so that equal values give the same choice on every device.
struct Best {
    float value;
    uint index;
};

static inline Best best_of_nothing() {
    Best out;
    out.value = -INFINITY;
    out.index = 0xffffffffu;
    return out;
}

static inline Best better(Best a, float value, uint index) {
    if (value > a.value || (value == a.value && index < a.index)) {
        a.value = value;
        a.index = index;
    }
    return a;
}

// The best of a threadgroup, for every thread. values and indices: one each per SIMD-group; free
// again when this returns.
static inline Best threadgroup_best(
    Best best, THREADGROUP(float) values, THREADGROUP(uint) indices, Place place) {
    for (uint mask = place.simd_width / 2u; mask > 0u; mask /= 2u) {
        float value = simd_shuffle_xor(best.value, mask);
        uint index = simd_shuffle_xor(best.index, mask);
        best = better(best, value, index);
    }
    if (place.lane == 0u) {
        values[place.simd_group] = best.value;
        indices[place.simd_group] = best.index;
    }
    barrier_threadgroup();
    for (uint i = 0u; i < place.simd_groups; ++i) {
        best = better(best, values[i], indices[i]);
    }
    barrier_threadgroup();
    return best;
}

// The greatest of a threadgroup, for every thread. partial: one per SIMD-group; free again afterwards.
static inline float threadgroup_max(float v, THREADGROUP(float) partial, Place place) {
    v = simd_max(v);
    if (place.lane == 0u) {
        partial[place.simd_group] = v;
    }
    barrier_threadgroup();
    for (uint i = 0u; i < place.simd_groups; ++i) {
        v = max(v, partial[i]);
    }
    barrier_threadgroup();
    return v;
}

// The sum over a threadgroup, in the same order on every thread. partial as above.
static inline float threadgroup_sum(float v, THREADGROUP(float) partial, Place place) {
    v = simd_sum(v);
    if (place.lane == 0u) {
        partial[place.simd_group] = v;
    }
    barrier_threadgroup();
    float sum = 0.0f;
    for (uint i = 0u; i < place.simd_groups; ++i) {
        sum = sum + partial[i];
    }
    barrier_threadgroup();
    return sum;
}

// SIMD-group exchanges move 32 bits.
static inline ulong simd_shuffle_xor_ulong(ulong v, uint mask) {
    uint low = simd_shuffle_xor(uint(v & 0xffffffffu), mask);
    uint high = simd_shuffle_xor(uint(v >> 32u), mask);
    return (ulong(high) << 32u) | ulong(low);
}

static inline ulong simd_shuffle_up_ulong(ulong v, uint n) {
    uint low = simd_shuffle_up(uint(v & 0xffffffffu), n);
    uint high = simd_shuffle_up(uint(v >> 32u), n);
    return (ulong(high) << 32u) | ulong(low);
}

// The sum over a threadgroup, for every thread. partial as above.
static inline ulong threadgroup_sum_ulong(ulong v, THREADGROUP(ulong) partial, Place place) {
    for (uint mask = place.simd_width / 2u; mask > 0u; mask /= 2u) {
        v = v + simd_shuffle_xor_ulong(v, mask);
    }
    if (place.lane == 0u) {
        partial[place.simd_group] = v;
    }
    barrier_threadgroup();
    ulong sum = 0u;
    for (uint i = 0u; i < place.simd_groups; ++i) {
        sum = sum + partial[i];
    }
    barrier_threadgroup();
    return sum;
}

// Sums over the threads up to this one, and over all.
struct Prefix {
    ulong inclusive;
    ulong total;
};

static inline Prefix threadgroup_prefix_ulong(ulong v, THREADGROUP(ulong) partial, Place place) {
    for (uint n = 1u; n < place.simd_width; n *= 2u) {
        ulong before = simd_shuffle_up_ulong(v, n);
        if (place.lane >= n) {
            v = v + before;
        }
    }
    if (place.lane == place.simd_width - 1u) {
        partial[place.simd_group] = v;
    }
    barrier_threadgroup();
    Prefix out;
    out.inclusive = v;
    out.total = 0u;
    for (uint i = 0u; i < place.simd_groups; ++i) {
        ulong sum = partial[i];
        if (i < place.simd_group) {
            out.inclusive = out.inclusive + sum;
        }
        out.total = out.total + sum;
    }
    barrier_threadgroup();
    return out;
}

// Floats as integers of the same order: negative ones have their bits turned over, the others their
// sign set. -0 comes just below 0.
static inline uint ordered_from_float(float v) {
    uint bits = as_uint(v);
    return (bits & 0x80000000u) != 0u ? ~bits : (bits | 0x80000000u);
}

static inline float float_from_ordered(uint ordered) {
    return as_float((ordered & 0x80000000u) != 0u ? (ordered & 0x7fffffffu) : ~ordered);
}

// A weight of at most 1 in units of 2^-44: sums of up to 2^19 of them fit, and do not depend on their
// order, so that a choice by mass is the same however the work is split. What falls below 2^-44 of the
// greatest weight is 0; half a million of those are less than the step of a 24-bit random number.
static inline ulong fixed_mass(float weight) {
    return ulong(weight * 17592186044416.0f);
}
