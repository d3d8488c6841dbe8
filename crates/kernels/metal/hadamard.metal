// Hadamard transforms of every size that formats::hadamard has: 2^k, 12 · 2^k and 20 · 2^k.
//
// The matrix is B ⊗ S (crates/formats/src/hadamard.rs): S is Sylvester's of order 2^k, butterflies over ever larger
// halves; B is Paley's of order 12 or 20, C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]] with a conference matrix C
// (R. Paley 1933, "On orthogonal matrices"). Its use with quantisation: Ashkboos et al. 2024, "QuaRot".
//
// Up to 8192 = 2^13, 6144 = 12 · 2^9 and 5120 = 20 · 2^8 elements one kernel does everything: memory is read once and
// written once, which is the floor. Larger sizes take a pass of `hadamard` over runs of a power of two and passes of
// `hadamard_across` over the same element of several runs.

ELEMENTS(T, half, bf16, float);

// Sizes of one call.
struct HadamardArgs {
    ulong elements; // Of all transforms together.
    uint stride;    // hadamard_across: elements from one run to the next.
    float factor;   // On the results: 1/sqrt(size) where normalised.
};

// The order of B: 1, 12 or 20.
SPECIALISE(uint, ORDER, 0);
// S has order 2^LEVELS.
SPECIALISE(uint, LEVELS, 1);
// x starts at a multiple of 16 bytes and has a multiple of 8 elements.
SPECIALISE(bool, WHOLE, 2);
// hadamard_quantise: 0: int8, 1: E4M3.
SPECIALISE(uint, CODE, 3);
// hadamard_quantise: values per scale, 16, 32, 64 or 128.
SPECIALISE(uint, GROUP, 4);

#include "quantise.h"
#include "vector.h"

// C of order 6: 0, ones around it, and the quadratic characters of i - j modulo 5.
CONSTANT_TABLE(float, CONFERENCE_6, 36) = {
    0.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f,
    1.0f, 0.0f, 1.0f, -1.0f, -1.0f, 1.0f,
    1.0f, 1.0f, 0.0f, 1.0f, -1.0f, -1.0f,
    1.0f, -1.0f, 1.0f, 0.0f, 1.0f, -1.0f,
    1.0f, -1.0f, -1.0f, 1.0f, 0.0f, 1.0f,
    1.0f, 1.0f, -1.0f, -1.0f, 1.0f, 0.0f,
};

// C of order 10: the same over the field of nine elements.
CONSTANT_TABLE(float, CONFERENCE_10, 100) = {
    0.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f,
    1.0f, 0.0f, 1.0f, 1.0f, 1.0f, -1.0f, -1.0f, 1.0f, -1.0f, -1.0f,
    1.0f, 1.0f, 0.0f, 1.0f, -1.0f, 1.0f, -1.0f, -1.0f, 1.0f, -1.0f,
    1.0f, 1.0f, 1.0f, 0.0f, -1.0f, -1.0f, 1.0f, -1.0f, -1.0f, 1.0f,
    1.0f, 1.0f, -1.0f, -1.0f, 0.0f, 1.0f, 1.0f, 1.0f, -1.0f, -1.0f,
    1.0f, -1.0f, 1.0f, -1.0f, 1.0f, 0.0f, 1.0f, -1.0f, 1.0f, -1.0f,
    1.0f, -1.0f, -1.0f, 1.0f, 1.0f, 1.0f, 0.0f, -1.0f, -1.0f, 1.0f,
    1.0f, 1.0f, -1.0f, -1.0f, 1.0f, -1.0f, -1.0f, 0.0f, 1.0f, 1.0f,
    1.0f, -1.0f, 1.0f, -1.0f, -1.0f, 1.0f, -1.0f, 1.0f, 0.0f, 1.0f,
    1.0f, -1.0f, -1.0f, 1.0f, -1.0f, -1.0f, 1.0f, 1.0f, 1.0f, 0.0f,
};

// One level of butterflies over n values: those `apart` apart.
static inline void butterflies(THREAD(float) v, uint n, uint apart) {
    UNROLL
    for (uint i = 0u; i < n / 2u; ++i) {
        uint low = i / apart * (2u * apart) + i % apart;
        float a = v[low];
        float b = v[low + apart];
        v[low] = a + b;
        v[low + apart] = a - b;
    }
}

// B times ORDER values that lie `apart` apart. With s = x[2j] + x[2j + 1] and d = x[2j] - x[2j + 1], row pair i is
// Σ_j C[i, j] · s[j] + d[i] and Σ_j C[i, j] · d[j] - s[i]: a quarter of the additions of the whole matrix.
static inline void base_transform(THREAD(float) v, uint apart) {
    float s[10];
    float d[10];
    UNROLL
    for (uint j = 0u; j < 10u; ++j) {
        if (2u * j < ORDER) {
            float a = v[2u * j * apart];
            float b = v[(2u * j + 1u) * apart];
            s[j] = a + b;
            d[j] = a - b;
        }
    }
    UNROLL
    for (uint i = 0u; i < 10u; ++i) {
        if (2u * i < ORDER) {
            float even = d[i];
            float odd = -s[i];
            UNROLL
            for (uint j = 0u; j < 10u; ++j) {
                if (2u * j < ORDER) {
                    float c = ORDER == 12u ? CONFERENCE_6[(i * 6u + j) % 36u] : CONFERENCE_10[i * 10u + j];
                    even = fma(c, s[j], even);
                    odd = fma(c, d[j], odd);
                }
            }
            v[2u * i * apart] = even;
            v[(2u * i + 1u) * apart] = odd;
        }
    }
}

// ---- The tile ------------------------------------------------------------------------------------
//
// A threadgroup of 64 threads transforms a tile of runs() × 64 × width() elements, numbered (v, t, j). With
// ORDER 1 that is the order in memory; the tile may hold several transforms, or be one. Otherwise v is which of the
// ORDER runs of a transform, and (t, j) are the tile's transforms and their places in a run.
// Levels over v and j happen in registers of thread t, levels over t in registers of thread (v, j): one exchange through
// threadgroup memory there, one back. No SIMD-group operation: any width does.

// The most values that a thread holds.
#define MAX_HELD 128u

static inline uint runs() { return ORDER == 1u ? (LEVELS > 12u ? 16u : 8u) : ORDER; }
// 20 runs of eight would be more registers than a thread should hold.
static inline uint width() { return ORDER == 20u ? 4u : 8u; }
static inline uint width_levels() { return ORDER == 20u ? 2u : 3u; }

// Place of (v, t, 0) in the tile's part of memory.
static inline uint memory_place(uint v, uint t) {
    if (ORDER == 1u) {
        return v * 512u + t * 8u;
    }
    uint slots = (1u << LEVELS) / width();
    return ((t / slots * ORDER + v) << LEVELS) + t % slots * width();
}

// Place of (v, t, j) in threadgroup memory. A SIMD-group of 32 writes 16 bytes a thread for consecutive t, and reads
// one float a thread for consecutive (v, j); t's low bits are exchanged by v's so that the second falls on all 32
// banks, the halves of eight by t's so that the first does.
static inline uint tile_place(uint v, uint t, uint j) {
    // The parts that t alone decides stand apart: where t is a constant they fold into the instruction.
    if (ORDER == 20u) {
        return v * 256u + ((t ^ v) & 7u) * 4u + j + (t & ~7u) * 4u;
    }
    return v * 512u + ((t ^ v) & 3u) * 8u + (j ^ (t & 4u)) + (t & ~3u) * 8u;
}

static inline void write_tile(THREADGROUP(float) tile, uint t, THREAD(const float) held) {
    UNROLL
    for (uint v = 0u; v < 20u; ++v) {
        if (v < runs()) {
            UNROLL
            for (uint j = 0u; j < 8u; j += 4u) {
                if (j < width()) {
                    THREAD(const float) four = held + v * width() + j;
                    *threadgroup_cast(float4, tile + tile_place(v, t, j)) =
                        make_float4(four[0], four[1], four[2], four[3]);
                }
            }
        }
    }
}

// width() values (v, t, 0…) times `factor`.
static inline void read_tile(
    THREADGROUP(const float) tile, uint v, uint t, float factor, THREAD(float) out) {
    UNROLL
    for (uint j = 0u; j < 8u; j += 4u) {
        if (j < width()) {
            float4 four = *threadgroup_cast(const float4, tile + tile_place(v, t, j));
            out[j] = four.x * factor;
            out[j + 1u] = four.y * factor;
            out[j + 2u] = four.z * factor;
            out[j + 3u] = four.w * factor;
        }
    }
}

static inline uint tile_elements() { return runs() * width() * 64u; }

// Elements of the tile that starts at `start` which are there.
static inline uint tile_left(ulong elements, ulong start) {
    ulong left = elements - start;
    return left < tile_elements() ? uint(left) : tile_elements();
}

// Thread t's part: loads (·, t, ·) and does the levels over j and v. x: the tile's first element, of `left`.
static inline void transform_runs(DEVICE(const T) x, uint left, uint t, THREAD(float) held) {
    UNROLL
    for (uint v = 0u; v < 20u; ++v) {
        if (v < runs()) {
            uint at = memory_place(v, t);
            uint count = at < left ? left - at : 0u;
            if (ORDER == 20u) {
                load_four(x + at, count, WHOLE, held + v * 4u);
            } else {
                load_eight(x + at, count, WHOLE, held + v * 8u);
            }
        }
    }
    UNROLL
    for (uint level = 0u; level < 3u; ++level) {
        if (level < width_levels() && level + 1u <= LEVELS) {
            butterflies(held, runs() * width(), 1u << level);
        }
    }
    if (ORDER == 1u) {
        UNROLL
        for (uint level = 9u; level < 13u; ++level) {
            if (level + 1u <= LEVELS) {
                butterflies(held, runs() * 8u, 8u << (level - 9u));
            }
        }
    } else {
        UNROLL
        for (uint j = 0u; j < 8u; ++j) {
            if (j < width()) {
                base_transform(held + j, width());
            }
        }
    }
}

// The levels over t, for all (v, j).
static inline void transform_slots(THREADGROUP(float) tile, uint thread_index) {
    for (uint column = thread_index; column < runs() * width(); column += 64u) {
        uint v = column / width();
        uint j = column % width();
        float held[64];
        UNROLL
        for (uint t = 0u; t < 64u; ++t) {
            held[t] = tile[tile_place(v, t, j)];
        }
        UNROLL
        for (uint level = 0u; level < 6u; ++level) {
            if (level + width_levels() + 1u <= LEVELS) {
                butterflies(held, 64u, 1u << level);
            }
        }
        UNROLL
        for (uint t = 0u; t < 64u; ++t) {
            tile[tile_place(v, t, j)] = held[t];
        }
    }
}

// ---- A wider threadgroup for powers of two -------------------------------------------------------
//
// 64 values a thread are more registers than leave room for the threads that hide memory's latency. With ORDER 1 `hadamard` has 128
// threads with half as many: elements are numbered (v, h, t, j), h 4 × t 32 × j 8 of them to a v, in the order of memory. Levels over
// v and j happen in registers of thread (h, t), levels over t in those of thread (v, j, h), and levels over h in those of thread
// (v, t), which has whole vectors to store again.

#define WIDE_THREADS 128u

static inline uint wide_runs() { return LEVELS > 12u ? 8u : 4u; }

// Place of (v, h, t, 0) in threadgroup memory, j from 0 or 4 on. The low bits of t are exchanged by h's, so that threads with
// consecutive (h, j) meet no bank twice, and the halves of eight by t's, so that threads with consecutive t do not either.
static inline uint wide_place(uint v, uint h, uint t, uint j) {
    return v * 1024u + h * 256u + (t ^ h) * 8u + (j ^ (t & 4u));
}

static inline void write_wide(
    THREADGROUP(float) tile, uint v, uint h, uint t, THREAD(const float) eight) {
    UNROLL
    for (uint j = 0u; j < 8u; j += 4u) {
        *threadgroup_cast(float4, tile + wide_place(v, h, t, j)) =
            make_float4(eight[j], eight[j + 1u], eight[j + 2u], eight[j + 3u]);
    }
}

static inline void read_wide(
    THREADGROUP(const float) tile, uint v, uint h, uint t, THREAD(float) eight) {
    UNROLL
    for (uint j = 0u; j < 8u; j += 4u) {
        float4 four = *threadgroup_cast(const float4, tile + wide_place(v, h, t, j));
        eight[j] = four.x;
        eight[j + 1u] = four.y;
        eight[j + 2u] = four.z;
        eight[j + 3u] = four.w;
    }
}

static inline void transform_wide(
    DEVICE(T) x, uint left, float factor, THREADGROUP(float) tile, uint thread_index) {
    uint h = thread_index / 32u;
    uint t = thread_index % 32u;
    float held[64];
    UNROLL
    for (uint v = 0u; v < 8u; ++v) {
        if (v < wide_runs()) {
            uint at = v * 1024u + thread_index * 8u;
            load_eight(x + at, at < left ? left - at : 0u, WHOLE, held + 8u * v);
        }
    }
    UNROLL
    for (uint level = 0u; level < 3u; ++level) {
        if (level + 1u <= LEVELS) {
            butterflies(held, 8u * wide_runs(), 1u << level);
        }
    }
    UNROLL
    for (uint level = 10u; level < 13u; ++level) {
        if (level + 1u <= LEVELS) {
            butterflies(held, 8u * wide_runs(), 8u << (level - 10u));
        }
    }
    UNROLL
    for (uint v = 0u; v < 8u; ++v) {
        if (v < wide_runs()) {
            write_wide(tile, v, h, t, held + 8u * v);
        }
    }
    // Another thread stores what this one has loaded.
    barrier_device();
    UNROLL
    for (uint pass = 0u; pass < 2u; ++pass) {
        if (pass < wide_runs() / 4u) {
            uint v = pass * 4u + thread_index / 32u;
            uint column_h = thread_index / 8u % 4u;
            uint j = thread_index % 8u;
            UNROLL
            for (uint i = 0u; i < 32u; ++i) {
                held[i] = tile[wide_place(v, column_h, i, j)];
            }
            UNROLL
            for (uint level = 3u; level < 8u; ++level) {
                if (level + 1u <= LEVELS) {
                    butterflies(held, 32u, 1u << (level - 3u));
                }
            }
            UNROLL
            for (uint i = 0u; i < 32u; ++i) {
                tile[wide_place(v, column_h, i, j)] = held[i];
            }
        }
    }
    barrier_threadgroup();
    UNROLL
    for (uint pass = 0u; pass < 2u; ++pass) {
        if (pass < wide_runs() / 4u) {
            uint v = pass * 4u + thread_index / 32u;
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                read_wide(tile, v, i, t, held + 8u * i);
            }
            UNROLL
            for (uint level = 8u; level < 10u; ++level) {
                if (level + 1u <= LEVELS) {
                    butterflies(held, 32u, 8u << (level - 8u));
                }
            }
            UNROLL
            for (uint i = 0u; i < 4u; ++i) {
                UNROLL
                for (uint j = 0u; j < 8u; ++j) {
                    held[8u * i + j] = held[8u * i + j] * factor;
                }
                uint at = v * 1024u + i * 256u + t * 8u;
                store_eight(x + at, at < left ? left - at : 0u, WHOLE, held + 8u * i);
            }
        }
    }
}

// Every transform of x, in place; LEVELS at most 13 with ORDER 1, 3…9 with 12, 2…8 with 20.
//
// x: transforms one after the other. One threadgroup of 64 threads a tile, of WIDE_THREADS with ORDER 1; `tile`: its elements. Threadgroup memory sees
// 16 bytes an element of half's 4 in device memory: of the H100's bandwidths (33 TB/s against 3) that is a third.
kernel void hadamard(
    INOUT(T) x [[buffer(0)]],
    INLINE(HadamardArgs) args [[buffer(1)]],
    THREADGROUP(float) tile [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    ulong start = ulong(group.x) * tile_elements();
    uint left = tile_left(args.elements, start);
    if (ORDER == 1u) {
        transform_wide(x + start, left, args.factor, tile, thread_index);
        return;
    }
    float held[MAX_HELD];
    transform_runs(x + start, left, thread_index, held);
    write_tile(tile, thread_index, held);
    barrier_threadgroup();
    transform_slots(tile, thread_index);
    barrier_threadgroup();
    UNROLL
    for (uint v = 0u; v < 20u; ++v) {
        if (v < runs()) {
            float out[8];
            read_tile(tile, v, thread_index, args.factor, out);
            uint at = memory_place(v, thread_index);
            uint count = at < left ? left - at : 0u;
            if (ORDER == 20u) {
                store_four(x + start + at, count, WHOLE, out);
            } else {
                store_eight(x + start + at, count, WHOLE, out);
            }
        }
    }
}

// The tile's vector number n in the order of memory: which (v, t).
static inline uint2 vector_of(uint n) {
    if (ORDER == 1u) {
        return make_uint2(n / 64u, n % 64u);
    }
    uint slots = (1u << LEVELS) / width();
    uint run = n / slots;
    return make_uint2(run % ORDER, run / ORDER * slots + n % slots);
}

// The transforms of x as 8-bit codes with a scale per GROUP values: codes[i] = code(H·x[i] / scales[i / GROUP]).
//
// x: as `hadamard`, not changed; codes: as many; scales: one per group. GROUP divides the number of elements. What
// is quantised was never rounded to T. A group's threads are neighbours (quantise_activations.metal).
kernel void hadamard_quantise(
    IN(T) x [[buffer(0)]],
    OUT(uchar) codes [[buffer(1)]],
    OUT(float) scales [[buffer(2)]],
    INLINE(HadamardArgs) args [[buffer(3)]],
    THREADGROUP(float) tile [[threadgroup(0)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    ulong start = ulong(group.x) * tile_elements();
    uint left = tile_left(args.elements, start);
    float held[MAX_HELD];
    transform_runs(x + start, left, thread_index, held);
    write_tile(tile, thread_index, held);
    barrier_threadgroup();
    transform_slots(tile, thread_index);
    barrier_threadgroup();
    for (uint chunk = thread_index; chunk < runs() * width() * 4u; chunk += 64u) {
        float out[16];
        UNROLL
        for (uint n = 0u; n < 4u; ++n) {
            if (n < 16u / width()) {
                uint2 place = vector_of(chunk * (16u / width()) + n);
                read_tile(tile, place.x, place.y, args.factor, out + n * width());
            }
        }
        uint greatest = greatest_magnitude(out, 16u, 0u);
        UNROLL
        for (uint step = 1u; step < 8u; step *= 2u) {
            if (step < GROUP / 16u) {
                greatest = max(greatest, simd_shuffle_xor(greatest, step));
            }
        }
        float scale = code_scale(greatest, code_reach(CODE));
        float inverse = code_inverse(scale);
        if (chunk * 16u < left) {
            ulong at = start + chunk * 16u;
            *device_cast(uint4, codes + at) = make_uint4(
                four_codes(CODE, out, inverse), four_codes(CODE, out + 4, inverse),
                four_codes(CODE, out + 8, inverse), four_codes(CODE, out + 12, inverse));
            if (at % GROUP == 0u) {
                scales[at / GROUP] = scale;
            }
        }
    }
}

// The transform over the same element of consecutive runs, in place: 2^LEVELS runs with ORDER 1 (LEVELS at most 4),
// otherwise ORDER runs.
//
// x: [n, runs, stride]. A thread takes four neighbouring elements of every run, or one where stride is not a multiple
// of four. What a pass over memory costs bounds it.
kernel void hadamard_across(
    INOUT(T) x [[buffer(0)]],
    INLINE(HadamardArgs) args [[buffer(1)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 threads [[threads_per_threadgroup]],
    uint thread_index [[thread_index_in_threadgroup]]) {
    allow_next();
    wait_for_previous();
    uint radix = ORDER == 1u ? 1u << LEVELS : ORDER;
    uint count = args.stride % 4u == 0u ? 4u : 1u;
    uint chunks = args.stride / count;
    uint place = group.x * threads.x + thread_index;
    ulong start = ulong(place / chunks) * radix * args.stride + place % chunks * count;
    if (start >= args.elements) {
        return;
    }
    float held[80];
    UNROLL
    for (uint v = 0u; v < 20u; ++v) {
        if (v < radix) {
            load_four(x + (start + ulong(v) * args.stride), count, WHOLE, held + v * 4u);
        }
    }
    if (ORDER == 1u) {
        UNROLL
        for (uint level = 0u; level < 4u; ++level) {
            if (level + 1u <= LEVELS) {
                butterflies(held, radix * 4u, 4u << level);
            }
        }
    } else {
        UNROLL
        for (uint j = 0u; j < 4u; ++j) {
            base_transform(held + j, 4u);
        }
    }
    UNROLL
    for (uint v = 0u; v < 20u; ++v) {
        if (v < radix) {
            UNROLL
            for (uint j = 0u; j < 4u; ++j) {
                held[v * 4u + j] = held[v * 4u + j] * args.factor;
            }
            store_four(x + (start + ulong(v) * args.stride), count, WHOLE, held + v * 4u);
        }
    }
}
