//! Online-softmax attention over the KV cache (Milakov & Gimelshein 2018; Dao et al. 2022,
//! "FlashAttention", algorithm 1).
//!
//! The cache of one layer, sequence and head lies in *spans* of [`SPAN`] positions, and a span
//! in *chunks* of [`CHUNK`]: first their keys in blocks of 16 positions, transposed,
//! `[CHUNK / 16][dim][16]`, so that a vector of 16 scores is built by multiply-adds alone; then
//! their values, `[CHUNK][dim]`; then, in 8-bit caches, one f32 scale per key and one per value.
//! `dim` is `head_dim` padded to a multiple of 16 with zeros. So whoever looks back reads one
//! stream of memory.
//!
//! Scores are compared with a maximum that may lag behind the true one by [`SLACK`]: sums stay
//! far from f32's limits, and only a vector comparison is left of the maximum in most chunks
//! (the idea of FlashAttention-4's conditional rescaling).

use std::mem::MaybeUninit;

use super::prefetch::Ahead;
use crate::simd::{LANES, Simd, exp};

/// Positions that go through the softmax together.
pub(crate) const CHUNK: usize = 64;
/// Positions whose keys and values lie together.
pub(crate) const SPAN: usize = 256;
/// How far scores may exceed the running maximum before sums are rescaled: weights stay below
/// e^8 ≈ 3000.
const SLACK: f32 = 8.0;
/// The running maximum before anything was seen. Finite, so that nothing minus it is NaN; the
/// first visible score is further above it than [`SLACK`].
pub(crate) const NOTHING_SEEN: f32 = -1e30;

/// How a cached value is stored.
pub(crate) trait KvElement {
    /// Bytes of an element.
    const BYTES: usize;
    /// Whether positions have scales.
    const SCALED: bool;
    /// Reads 16 elements.
    ///
    /// # Safety
    /// The instruction set of `S` must be there and `p` readable for 16 elements.
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// Writes 16 elements.
    ///
    /// # Safety
    /// The instruction set of `S` must be there and `p` writable for 16 elements.
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F);
}

macro_rules! kv {
    ($($(#[$doc:meta])* $name:ident: $bytes:literal, $scaled:literal, $load:ident, $store:ident;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl KvElement for $name {
            const BYTES: usize = $bytes;
            const SCALED: bool = $scaled;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> S::F {
                // SAFETY: forwarded from the caller.
                unsafe { S::$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
                // SAFETY: forwarded from the caller.
                unsafe { S::$store(p.cast(), x) }
            }
        }
    )*};
}

kv! {
    /// 32-bit floats.
    KvF32: 4, false, load, store;
    /// Half precision.
    KvF16: 2, false, load_f16, store_f16;
    /// 8-bit integers with a scale per position.
    KvQ8: 1, true, load_i8, store_i8;
}

/// Keys and values of one layer, sequence, head and span.
#[derive(Clone, Copy)]
pub(crate) struct KvHead {
    /// [`span_bytes`] bytes.
    pub(crate) data: *mut u8,
    /// `head_dim` rounded up to 16.
    pub(crate) dim: usize,
}

/// Bytes of a chunk, for elements of so many bytes.
pub(crate) const fn chunk_bytes(dim: usize, element: usize, scaled: bool) -> usize {
    2 * CHUNK * (dim * element + if scaled { size_of::<f32>() } else { 0 })
}

/// Bytes of a span of one head.
pub(crate) const fn span_bytes(dim: usize, element: usize, scaled: bool) -> usize {
    SPAN / CHUNK * chunk_bytes(dim, element, scaled)
}

/// A chunk of a head's cache, or of its copy as f32.
#[derive(Clone, Copy)]
struct Chunk {
    /// `[CHUNK / 16][dim][16]`.
    keys: *mut u8,
    /// `[CHUNK][dim]`.
    values: *mut u8,
    /// `[CHUNK]`, where there are scales.
    key_scales: *mut f32,
    /// `[CHUNK]`, where there are scales.
    value_scales: *mut f32,
}

impl Chunk {
    /// The chunk that lies at `data`.
    #[inline(always)]
    fn at<E: KvElement>(data: *mut u8, dim: usize) -> Self {
        let values = data.wrapping_add(CHUNK * dim * E::BYTES);
        let scales = values.wrapping_add(CHUNK * dim * E::BYTES).cast::<f32>();
        Self { keys: data, values, key_scales: scales, value_scales: scales.wrapping_add(CHUNK) }
    }
}

impl KvHead {
    #[inline(always)]
    fn chunk<E: KvElement>(&self, index: usize) -> Chunk {
        let data = self.data.wrapping_add(index * chunk_bytes(self.dim, E::BYTES, E::SCALED));
        Chunk::at::<E>(data, self.dim)
    }
}

/// Writes the key and value of position `index` of the span; both are `dim` floats, padded with
/// zeros.
///
/// # Safety
/// The instruction set of `S` must be there; `index` must be below [`SPAN`].
#[inline(always)]
pub(crate) unsafe fn append<S: Simd, E: KvElement>(
    head: &KvHead,
    index: usize,
    key: *const f32,
    value: *const f32,
) {
    // SAFETY: offsets are those of the layout above.
    unsafe {
        let (chunk, row) = (head.chunk::<E>(index / CHUNK), index % CHUNK);
        let (block, lane) = (row / LANES, row % LANES);
        let (mut key_inverse, mut value_inverse) = (1.0, 1.0);
        if E::SCALED {
            key_inverse = scale::<S>(key, head.dim, chunk.key_scales.add(row));
            value_inverse = scale::<S>(value, head.dim, chunk.value_scales.add(row));
        }
        let mut converted = [0u8; 4 * LANES];
        for i in (0..head.dim).step_by(LANES) {
            let v = S::mul(S::load(value.add(i)), S::splat(value_inverse));
            E::store::<S>(chunk.values.add((row * head.dim + i) * E::BYTES), v);
            let k = S::mul(S::load(key.add(i)), S::splat(key_inverse));
            E::store::<S>(converted.as_mut_ptr(), k);
            for j in 0..LANES {
                let at = (block * head.dim + i + j) * LANES + lane;
                std::ptr::copy_nonoverlapping(
                    converted.as_ptr().add(j * E::BYTES),
                    chunk.keys.add(at * E::BYTES),
                    E::BYTES,
                );
            }
        }
    }
}

/// Writes the scale `max|x| / 127` and returns its inverse.
#[inline(always)]
unsafe fn scale<S: Simd>(x: *const f32, dim: usize, to: *mut f32) -> f32 {
    // SAFETY: the caller vouches for `dim` floats, a multiple of 16.
    unsafe {
        let mut largest = S::splat(0.0);
        for i in (0..dim).step_by(LANES) {
            largest = S::max(largest, S::abs(S::load(x.add(i))));
        }
        let scale = S::max_lane(largest) / 127.0;
        *to = scale;
        if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
    }
}

/// Query rows that look at one span of a head, and their running softmax. Row `r` is token
/// `r % tokens` of one of the query heads that share the head of keys.
#[derive(Clone, Copy)]
pub(crate) struct AttendCall {
    /// What they look at.
    pub(crate) head: KvHead,
    /// Position of the span's first key.
    pub(crate) first: usize,
    /// Query rows.
    pub(crate) rows: usize,
    /// Consecutive tokens; `rows` is a multiple of it.
    pub(crate) tokens: usize,
    /// Position of the first token. Each sees itself and what came before,
    pub(crate) position: usize,
    /// but at most so many positions.
    pub(crate) window: usize,
    /// `[rows][dim]` queries, already multiplied by the score's scale.
    pub(crate) queries: *const f32,
    /// `cap · tanh(score / cap)`, if above 0.
    pub(crate) softcap: f32,
    /// `[rows]` running maxima; starts at [`NOTHING_SEEN`].
    pub(crate) max: *mut f32,
    /// `[rows][16]` running sums, to be added up across lanes; starts at 0.
    pub(crate) sum: *mut f32,
    /// `[rows][dim]` running weighted values; starts at 0.
    pub(crate) acc: *mut f32,
    /// `[2 · CHUNK][dim]`: room for a chunk as f32.
    pub(crate) scratch: *mut f32,
    /// What is asked for meanwhile: a chunk ahead, or nothing.
    pub(crate) ahead: Ahead,
}

impl AttendCall {
    /// Positions that a row sees, of those in the chunk that begins at `start`, counted from there.
    #[inline(always)]
    fn visible(&self, row: usize, start: usize) -> (usize, usize) {
        let to = self.position + row % self.tokens + 1;
        let from = to.saturating_sub(self.window);
        (from.saturating_sub(start).min(CHUNK), to.saturating_sub(start).min(CHUNK))
    }
}

/// Attends with all rows of the call.
///
/// # Safety
/// The instruction set of `S` must be there; all pointers must be valid for what their
/// fields say, and the cache filled for all visible positions.
#[inline(always)]
pub(crate) unsafe fn attend<S: Simd, E: KvElement>(call: &AttendCall) {
    let last = call.position + call.tokens;
    for index in 0..SPAN / CHUNK {
        let start = call.first + index * CHUNK;
        let seen = start < last && (call.position + 1).saturating_sub(call.window) < start + CHUNK;
        if !seen {
            continue;
        }
        let chunk = call.head.chunk::<E>(index);
        // SAFETY: forwarded from the caller.
        unsafe {
            // Many rows share the conversion; few convert what they read as they go.
            if call.rows > S::ATTEND_ROWS && (E::BYTES < 4 || E::SCALED) {
                let bytes = chunk_bytes(call.head.dim, E::BYTES, E::SCALED);
                call.ahead.fetch(chunk.keys, bytes / 64);
                let rows = (last - start).min(CHUNK);
                let wide = widen::<S, E>(&chunk, rows, call.head.dim, call.scratch);
                let call = AttendCall { ahead: Ahead::NOTHING, ..*call };
                all_rows::<S, KvF32>(&call, start, &wide);
            } else {
                all_rows::<S, E>(call, start, &chunk);
            }
        }
    }
}

/// Copies the first `rows` positions of a chunk as f32, scales applied.
#[inline(always)]
unsafe fn widen<S: Simd, E: KvElement>(
    chunk: &Chunk,
    rows: usize,
    dim: usize,
    to: *mut f32,
) -> Chunk {
    let wide = Chunk::at::<KvF32>(to.cast(), dim);
    // SAFETY: the caller vouches for the chunk and for room for `2 · CHUNK · dim` floats.
    unsafe {
        for block in 0..rows.div_ceil(LANES) {
            let scales = if E::SCALED {
                S::load(chunk.key_scales.add(block * LANES))
            } else {
                S::splat(1.0)
            };
            for i in (block * dim..(block + 1) * dim).map(|i| i * LANES) {
                let mut k = E::load::<S>(chunk.keys.add(i * E::BYTES));
                if E::SCALED {
                    k = S::mul(k, scales);
                }
                S::store(wide.keys.cast::<f32>().add(i), k);
            }
        }
        for row in 0..rows {
            let scale =
                if E::SCALED { S::splat(*chunk.value_scales.add(row)) } else { S::splat(1.0) };
            for i in (row * dim..(row + 1) * dim).step_by(LANES) {
                let mut v = E::load::<S>(chunk.values.add(i * E::BYTES));
                if E::SCALED {
                    v = S::mul(v, scale);
                }
                S::store(wide.values.cast::<f32>().add(i), v);
            }
        }
    }
    wide
}

/// All rows with one chunk, which begins at position `start`.
#[inline(always)]
unsafe fn all_rows<S: Simd, E: KvElement>(call: &AttendCall, start: usize, chunk: &Chunk) {
    let mut first = 0;
    while first < call.rows {
        // SAFETY: forwarded from the caller.
        unsafe {
            let left = call.rows - first;
            first += if S::ATTEND_ROWS >= 8 {
                match left {
                    1 => rows::<S, E, 1, 4>(call, first, start, chunk),
                    2 => rows::<S, E, 2, 4>(call, first, start, chunk),
                    3 => rows::<S, E, 3, 4>(call, first, start, chunk),
                    4..=7 => rows::<S, E, 4, 4>(call, first, start, chunk),
                    _ => rows::<S, E, 8, 2>(call, first, start, chunk),
                }
            } else {
                match left {
                    1 => rows::<S, E, 1, 4>(call, first, start, chunk),
                    2 => rows::<S, E, 2, 2>(call, first, start, chunk),
                    3 => rows::<S, E, 3, 2>(call, first, start, chunk),
                    _ => rows::<S, E, 4, 1>(call, first, start, chunk),
                }
            };
        }
    }
}

/// Rows `first .. first + Q`, scores of `N` blocks of positions and weighted sums of `N` vectors
/// at a time: as many chains of multiply-adds as hide their latency, and as the registers hold.
/// Returns Q.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "rows and vectors of sums, which must all be registers"
)]
unsafe fn rows<S: Simd, E: KvElement, const Q: usize, const N: usize>(
    call: &AttendCall,
    first: usize,
    start: usize,
    chunk: &Chunk,
) -> usize {
    let dim = call.head.dim;
    let visible: [(usize, usize); Q] = std::array::from_fn(|i| call.visible(first + i, start));
    let from = visible.iter().map(|v| v.0).min().unwrap_or(0);
    let to = visible.iter().map(|v| v.1).max().unwrap_or(0);
    if from >= to {
        return Q;
    }
    // Whole steps of N blocks; what no row sees of them is masked.
    let blocks = (from / (N * LANES) * N, to.div_ceil(N * LANES) * N);
    let mut weights = [const { MaybeUninit::<[f32; CHUNK]>::uninit() }; Q];
    let weights: [*mut f32; Q] = std::array::from_fn(|i| weights[i].as_mut_ptr().cast::<f32>());
    // SAFETY: the chunk has CHUNK positions, a multiple of N blocks; rows are those of the
    // call. Weights are written for all blocks before they are read.
    unsafe {
        let queries: [*const f32; Q] = std::array::from_fn(|i| call.queries.add((first + i) * dim));
        for block in (blocks.0..blocks.1).step_by(N) {
            let keys = chunk.keys.add(block * dim * LANES * E::BYTES);
            let mut scores = [[S::splat(0.0); N]; Q];
            for d in 0..dim {
                for n in 0..N {
                    if first == 0 && (d * LANES * E::BYTES).is_multiple_of(64) {
                        call.ahead.fetch(keys.add((n * dim + d) * LANES * E::BYTES), 1);
                    }
                    let k = E::load::<S>(keys.add((n * dim + d) * LANES * E::BYTES));
                    for i in 0..Q {
                        let q = S::splat(*queries[i].add(d));
                        scores[i][n] = S::fma(k, q, scores[i][n]);
                    }
                }
            }
            for i in 0..Q {
                for n in 0..N {
                    let mut score = scores[i][n];
                    if E::SCALED {
                        let scales = chunk.key_scales.add((block + n) * LANES);
                        score = S::mul(score, S::load(scales));
                    }
                    if call.softcap > 0.0 {
                        score = softcap::<S>(score, call.softcap);
                    }
                    S::store(weights[i].add((block + n) * LANES), score);
                }
            }
        }
        for i in 0..Q {
            let row = first + i;
            softmax::<S>(call, row, weights[i], blocks, visible[i]);
            if E::SCALED {
                for at in (blocks.0 * LANES..blocks.1 * LANES).step_by(LANES) {
                    let scales = S::load(chunk.value_scales.add(at));
                    let p = weights[i].add(at);
                    S::store(p, S::mul(S::load(p), scales));
                }
            }
        }
        let acc = call.acc.add(first * dim);
        let vectors = dim / LANES;
        let ahead = if first == 0 { call.ahead } else { Ahead::NOTHING };
        for c in (0..vectors / N * N).step_by(N) {
            weigh::<S, E, Q, N>(&weights, (from, to), chunk, c * LANES, acc, dim, &ahead);
        }
        for c in vectors / N * N..vectors {
            weigh::<S, E, Q, 1>(&weights, (from, to), chunk, c * LANES, acc, dim, &ahead);
        }
    }
    Q
}

/// Turns a row's scores into weights, relative to its running maximum, and adds them up.
///
/// # Safety
/// `scores` must hold what `blocks` says, and the row be one of the call's.
#[inline(always)]
unsafe fn softmax<S: Simd>(
    call: &AttendCall,
    row: usize,
    scores: *mut f32,
    blocks: (usize, usize),
    visible: (usize, usize),
) {
    let dim = call.head.dim;
    // SAFETY: forwarded from the caller.
    unsafe {
        let (from, to) = visible;
        for at in (blocks.0 * LANES..from).chain(to.max(from)..blocks.1 * LANES) {
            *scores.add(at) = f32::NEG_INFINITY;
        }
        let (max, sum) = (call.max.add(row), call.sum.add(row * LANES));
        let mut greatest = S::load(scores.add(blocks.0 * LANES));
        for block in blocks.0 + 1..blocks.1 {
            greatest = S::max(greatest, S::load(scores.add(block * LANES)));
        }
        if S::any_greater(greatest, S::splat(*max + SLACK)) {
            let greatest = S::max_lane(greatest);
            let correction = S::splat((*max - greatest).exp());
            *max = greatest;
            S::store(sum, S::mul(S::load(sum), correction));
            let acc = call.acc.add(row * dim);
            for c in (0..dim).step_by(LANES) {
                S::store(acc.add(c), S::mul(S::load(acc.add(c)), correction));
            }
        }
        let max = S::splat(*max);
        let mut total = S::load(sum);
        for block in blocks.0..blocks.1 {
            let at = scores.add(block * LANES);
            let p = exp::<S>(S::sub(S::load(at), max));
            total = S::add(total, p);
            S::store(at, p);
        }
        S::store(sum, total);
    }
}

/// Adds the values of positions `from .. to` of a chunk, weighted, to `N` vectors of Q rows,
/// from column `c` on.
///
/// # Safety
/// As for [`rows`].
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "rows and vectors of sums, which must all be registers"
)]
unsafe fn weigh<S: Simd, E: KvElement, const Q: usize, const N: usize>(
    weights: &[*mut f32; Q],
    (from, to): (usize, usize),
    chunk: &Chunk,
    c: usize,
    acc: *mut f32,
    dim: usize,
    ahead: &Ahead,
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; Q];
        for j in from..to {
            let values = chunk.values.add((j * dim + c) * E::BYTES);
            ahead.fetch(values, (N * LANES * E::BYTES).div_ceil(64));
            for n in 0..N {
                let v = E::load::<S>(values.add(n * LANES * E::BYTES));
                for i in 0..Q {
                    let w = S::splat(*weights[i].add(j));
                    sums[i][n] = S::fma(v, w, sums[i][n]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                let to = acc.add(i * dim + c + n * LANES);
                S::store(to, S::add(S::load(to), sum));
            }
        }
    }
}

/// `cap · tanh(x / cap)`, with `tanh(y) = 1 - 2 / (1 + e^2y)`.
#[inline(always)]
unsafe fn softcap<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: forwarded from the caller.
    unsafe {
        let e = exp::<S>(S::mul(x, S::splat(2.0 / cap)));
        let t = S::div(S::splat(2.0), S::add(S::splat(1.0), e));
        S::mul(S::sub(S::splat(1.0), t), S::splat(cap))
    }
}
