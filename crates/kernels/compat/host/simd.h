// SIMD-group operations, barriers, atomics and asynchronous copies. `line` is the caller's: threads that
// meet must have come to the same place.
#pragma once

#include "execution.h"
#include "pointer.h"

static inline void barrier_threadgroup(uint line = __builtin_LINE()) { marlin::barrier(false, line); }
static inline void barrier_device(uint line = __builtin_LINE()) { marlin::barrier(true, line); }
static inline void barrier_team(uint, uint, uint line = __builtin_LINE()) { marlin::barrier(false, line); }
// Dispatches run one after the other here, but what a thread touched before it waits is looked at as if
// they did not.
static inline void allow_next() {}
static inline void wait_for_previous(uint line = __builtin_LINE()) { marlin::wait_for_previous(line); }
static inline void barrier_simdgroup(uint line = __builtin_LINE()) {
    marlin::SimdValue none;
    none.bits = 0;
    marlin::simd_exchange(marlin::SimdOp::Barrier, none, line);
}

namespace marlin {

static inline SimdValue pack(float v) { SimdValue s; s.bits = as_uint(v); return s; }
static inline SimdValue pack(int v) { SimdValue s; s.bits = uint(v); return s; }
static inline SimdValue pack(uint v) { SimdValue s; s.bits = v; return s; }
static inline SimdValue pack(half2 v) { SimdValue s; s.bits = as_uint(v); return s; }
static inline void unpack(SimdValue s, float &v) { v = s.as_f32; }
static inline void unpack(SimdValue s, int &v) { v = s.as_i32; }
static inline void unpack(SimdValue s, uint &v) { v = s.as_u32; }
static inline void unpack(SimdValue s, half2 &v) { v = as_half2(s.as_u32); }

// Threads in the SIMD-group of the thread that runs: the last one may be partly filled.
static inline uint lanes_here() {
    uint first = context.thread.group * context.simd_width;
    uint all = context.threads.x * context.threads.y * context.threads.z;
    return all - first < context.simd_width ? all - first : context.simd_width;
}

template<class V> static inline V from_lane(SimdOp op, V v, uint lane, uint line) {
    const SimdValue *values = simd_exchange(op, pack(v), line);
    if (__builtin_expect(lane >= lanes_here(), 0)) {
        fault_lane(op, lane, line);
    }
    V out;
    unpack(values[lane], out);
    return out;
}

template<class V> static inline V reduced(SimdOp op, V v, uint line) {
    V out;
    unpack(simd_exchange(op, pack(v), line)[0], out);
    return out;
}

} // namespace marlin

#define MARLIN_REDUCTIONS(V, suffix) \
    static inline V simd_sum(V v, uint line = __builtin_LINE()) { \
        return marlin::reduced(marlin::SimdOp::Sum##suffix, v, line); \
    } \
    static inline V simd_max(V v, uint line = __builtin_LINE()) { \
        return marlin::reduced(marlin::SimdOp::Max##suffix, v, line); \
    } \
    static inline V simd_min(V v, uint line = __builtin_LINE()) { \
        return marlin::reduced(marlin::SimdOp::Min##suffix, v, line); \
    }
MARLIN_REDUCTIONS(float, F32)
MARLIN_REDUCTIONS(int, I32)
MARLIN_REDUCTIONS(uint, U32)
#undef MARLIN_REDUCTIONS

// Down and up leave the lanes past the end as they were; the others must name a lane that is there.
#define MARLIN_SHUFFLES(V) \
    static inline V simd_shuffle(V v, uint lane, uint line = __builtin_LINE()) { \
        return marlin::from_lane(marlin::SimdOp::Shuffle, v, lane, line); \
    } \
    static inline V simd_broadcast(V v, uint lane, uint line = __builtin_LINE()) { \
        return marlin::from_lane(marlin::SimdOp::Broadcast, v, lane, line); \
    } \
    static inline V simd_shuffle_xor(V v, uint mask, uint line = __builtin_LINE()) { \
        return marlin::from_lane( \
            marlin::SimdOp::ShuffleXor, v, marlin::context.thread.lane ^ mask, line); \
    } \
    static inline V simd_shuffle_down(V v, uint n, uint line = __builtin_LINE()) { \
        uint lane = marlin::context.thread.lane; \
        uint from = lane + n < marlin::context.simd_width ? lane + n : lane; \
        return marlin::from_lane(marlin::SimdOp::ShuffleDown, v, from, line); \
    } \
    static inline V simd_shuffle_up(V v, uint n, uint line = __builtin_LINE()) { \
        uint lane = marlin::context.thread.lane; \
        return marlin::from_lane(marlin::SimdOp::ShuffleUp, v, lane >= n ? lane - n : lane, line); \
    }
MARLIN_SHUFFLES(float)
MARLIN_SHUFFLES(int)
MARLIN_SHUFFLES(uint)
MARLIN_SHUFFLES(half2)
#undef MARLIN_SHUFFLES

static inline ulong simd_ballot(bool v, uint line = __builtin_LINE()) {
    return marlin::simd_exchange(marlin::SimdOp::Ballot, marlin::pack(uint(v)), line)[0].bits;
}
static inline bool simd_any(bool v, uint line = __builtin_LINE()) {
    return marlin::simd_exchange(marlin::SimdOp::Any, marlin::pack(uint(v)), line)[0].bits != 0;
}
static inline bool simd_all(bool v, uint line = __builtin_LINE()) {
    return marlin::simd_exchange(marlin::SimdOp::All, marlin::pack(uint(v)), line)[0].bits != 0;
}
static inline uint simd_prefix_exclusive_sum(uint v, uint line = __builtin_LINE()) {
    const marlin::SimdValue *values =
        marlin::simd_exchange(marlin::SimdOp::PrefixSum, marlin::pack(v), line);
    uint sum = 0;
    for (uint lane = 0; lane < marlin::context.thread.lane; lane++) {
        sum += values[lane].as_u32;
    }
    return sum;
}

// A word that only the functions below touch.
struct atomic_uint {
    uint value;
};

namespace marlin {

template<class Space> 
static inline uint &atomic_word(Pointer<atomic_uint, Space> p, bool reads, bool writes) {
    uint64_t offset = offset_in(p.region, p.at, 4, 4, writes);
    check_atomic(p.region, offset, reads, writes);
    return *reinterpret_cast<uint *>(p.at);
}

} // namespace marlin

// Threads change places only at barriers and SIMD-group operations, so a plain change is one step.
#define MARLIN_ATOMIC(name, expression) \
    template<class Space> \
    static inline uint atomic_##name(marlin::Pointer<atomic_uint, Space> p, uint value) { \
        uint &word = marlin::atomic_word(p, true, true); \
        uint old = word; \
        word = expression; \
        return old; \
    }
MARLIN_ATOMIC(add, old + value)
MARLIN_ATOMIC(max, old > value ? old : value)
MARLIN_ATOMIC(min, old < value ? old : value)
MARLIN_ATOMIC(or, old | value)
MARLIN_ATOMIC(exchange, value)
#undef MARLIN_ATOMIC
template<class Space> static inline uint atomic_load(marlin::Pointer<atomic_uint, Space> p) {
    return marlin::atomic_word(p, true, false);
}
template<class Space> static inline uint atomic_load(marlin::Pointer<const atomic_uint, Space> p) {
    return marlin::atomic_word(marlin::cast<atomic_uint>(p), true, false);
}
template<class Space>
static inline void atomic_store(marlin::Pointer<atomic_uint, Space> p, uint value) {
    marlin::atomic_word(p, false, true) = value;
}

// The bytes arrive when they are waited for and not before, and must not be touched until then.
template<class T, class U>
static inline void copy_async(marlin::Pointer<T, marlin::Threadgroup> to,
    marlin::Pointer<U, marlin::Device> from, uint line = __builtin_LINE()) {
    marlin::copy_async_start(to.region, to.at, from.region, from.at, line);
}
static inline void copy_async_commit() { marlin::copy_async_close(); }
template<uint pending> static inline void copy_async_wait() { marlin::copy_async_finish(pending); }
