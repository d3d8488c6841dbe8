//! Online-softmax attention over the KV cache (Milakov & Gimelshein 2018; Dao et al. 2022,
//! "FlashAttention", algorithm 1).
//!
//! The cache of one layer, sequence and head holds keys in blocks of 16 positions,
//! transposed, `[positions / 16][head_dim][16]`, so that a vector of 16 scores is built by
//! multiply-adds alone; values are `[positions][head_dim]`. `head_dim` is padded to a
//! multiple of 16 with zeros in both. 8-bit caches have one f32 scale per position besides.

use crate::simd::{LANES, Simd, exp};

/// Most query rows of one call.
pub(crate) const MAX_ROWS: usize = 8;

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

/// Keys and values of one layer, sequence and head.
#[derive(Clone, Copy)]
pub(crate) struct KvHead {
    /// `[positions / 16][padded head_dim][16]`.
    pub(crate) keys: *mut u8,
    /// `[positions][padded head_dim]`.
    pub(crate) values: *mut u8,
    /// `[positions]` scales of keys, for 8 bits.
    pub(crate) key_scales: *mut f32,
    /// `[positions]` scales of values, for 8 bits.
    pub(crate) value_scales: *mut f32,
    /// `head_dim` rounded up to 16.
    pub(crate) dim: usize,
}

/// Writes one position's key and value; both are `dim` floats, padded with zeros.
///
/// # Safety
/// The instruction set of `S` must be there; `head` must have room for `position`.
#[inline(always)]
pub(crate) unsafe fn append<S: Simd, E: KvElement>(
    head: &KvHead,
    position: usize,
    key: *const f32,
    value: *const f32,
) {
    // SAFETY: offsets are those of the layout above.
    unsafe {
        let (block, lane) = (position / LANES, position % LANES);
        let (mut key_inverse, mut value_inverse) = (1.0, 1.0);
        if E::SCALED {
            key_inverse = scale::<S>(key, head.dim, head.key_scales.add(position));
            value_inverse = scale::<S>(value, head.dim, head.value_scales.add(position));
        }
        let mut converted = [0u8; 4 * LANES];
        for i in (0..head.dim).step_by(LANES) {
            let v = S::mul(S::load(value.add(i)), S::splat(value_inverse));
            E::store::<S>(head.values.add((position * head.dim + i) * E::BYTES), v);
            let k = S::mul(S::load(key.add(i)), S::splat(key_inverse));
            E::store::<S>(converted.as_mut_ptr(), k);
            for j in 0..LANES {
                let at = (block * head.dim + i + j) * LANES + lane;
                std::ptr::copy_nonoverlapping(
                    converted.as_ptr().add(j * E::BYTES),
                    head.keys.add(at * E::BYTES),
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

/// Query rows that look at the same head, and their running softmax.
#[derive(Clone, Copy)]
pub(crate) struct AttendCall<'a> {
    /// What they look at.
    pub(crate) head: KvHead,
    /// `[rows][dim]` queries, already multiplied by the score's scale.
    pub(crate) queries: *const f32,
    /// For each row the positions that it sees.
    pub(crate) visible: &'a [(usize, usize)],
    /// Positions of this call: each row sees the part of its own that lies in here.
    pub(crate) range: (usize, usize),
    /// `cap · tanh(score / cap)`, if above 0.
    pub(crate) softcap: f32,
    /// `[rows]` running maxima; starts at minus infinity.
    pub(crate) max: *mut f32,
    /// `[rows]` running sums; starts at 0.
    pub(crate) sum: *mut f32,
    /// `[rows][dim]` running weighted values; starts at 0.
    pub(crate) acc: *mut f32,
}

/// Attends with all rows of the call.
///
/// # Safety
/// The instruction set of `S` must be there; all pointers must be valid for what their
/// fields say, and the cache filled for all visible positions.
#[inline(always)]
pub(crate) unsafe fn attend<S: Simd, E: KvElement>(call: &AttendCall<'_>) {
    let mut first = 0;
    while first < call.visible.len() {
        // SAFETY: forwarded from the caller.
        unsafe {
            first += match call.visible.len() - first {
                1 => rows::<S, E, 1>(call, first),
                2 => rows::<S, E, 2>(call, first),
                3 => rows::<S, E, 3>(call, first),
                4..=7 => rows::<S, E, 4>(call, first),
                _ => rows::<S, E, 8>(call, first),
            };
        }
    }
}

/// Rows `first .. first + Q`; returns Q.
#[inline(always)]
unsafe fn rows<S: Simd, E: KvElement, const Q: usize>(
    call: &AttendCall<'_>,
    first: usize,
) -> usize {
    let head = &call.head;
    let dim = head.dim;
    let visible: [(usize, usize); Q] = std::array::from_fn(|i| {
        let (from, to) = call.visible[first + i];
        (from.max(call.range.0), to.min(call.range.1))
    });
    let start = visible.iter().map(|v| v.0).min().unwrap_or(0) / LANES;
    let end = visible.iter().map(|v| v.1).max().unwrap_or(0).div_ceil(LANES);
    // SAFETY: blocks start..end lie within the cache, whose length is a multiple of 16
    // positions; rows are those of the call.
    unsafe {
        let queries: [*const f32; Q] = std::array::from_fn(|i| call.queries.add((first + i) * dim));
        let mut weights = [[0.0f32; LANES]; Q];
        let mut max: [f32; Q] = std::array::from_fn(|i| *call.max.add(first + i));
        let mut sum: [f32; Q] = std::array::from_fn(|i| *call.sum.add(first + i));
        for block in start..end {
            let keys = head.keys.add(block * dim * LANES * E::BYTES);
            // Two sums a row: a single chain of multiply-adds would wait for its own latency.
            let mut even = [S::splat(0.0); Q];
            let mut odd = [S::splat(0.0); Q];
            for d in (0..dim).step_by(2) {
                let k0 = E::load::<S>(keys.add(d * LANES * E::BYTES));
                let k1 = E::load::<S>(keys.add((d + 1) * LANES * E::BYTES));
                for i in 0..Q {
                    even[i] = S::fma(k0, S::splat(*queries[i].add(d)), even[i]);
                    odd[i] = S::fma(k1, S::splat(*queries[i].add(d + 1)), odd[i]);
                }
            }
            let mut correction = [1.0f32; Q];
            for i in 0..Q {
                let mut score = S::add(even[i], odd[i]);
                if E::SCALED {
                    score = S::mul(score, S::load(head.key_scales.add(block * LANES)));
                }
                if call.softcap > 0.0 {
                    score = softcap::<S>(score, call.softcap);
                }
                let (from, to) = visible[i];
                let position = block * LANES;
                if from > position || to < position + LANES {
                    let mut lanes = [0.0f32; LANES];
                    S::store(lanes.as_mut_ptr(), score);
                    for (j, lane) in lanes.iter_mut().enumerate() {
                        if position + j < from || position + j >= to {
                            *lane = f32::NEG_INFINITY;
                        }
                    }
                    score = S::load(lanes.as_ptr());
                }
                let greatest = S::max_lane(score).max(max[i]);
                if greatest == f32::NEG_INFINITY {
                    // Nothing visible so far.
                    weights[i] = [0.0; LANES];
                    continue;
                }
                if greatest > max[i] {
                    correction[i] = (max[i] - greatest).exp();
                    max[i] = greatest;
                }
                let p = exp::<S>(S::sub(score, S::splat(greatest)));
                sum[i] = sum[i] * correction[i] + S::sum(p);
                S::store(weights[i].as_mut_ptr(), p);
            }
            if E::SCALED {
                let scales = S::load(head.value_scales.add(block * LANES));
                for w in &mut weights {
                    S::store(w.as_mut_ptr(), S::mul(S::load(w.as_ptr()), scales));
                }
            }
            let values = head.values.add(block * LANES * dim * E::BYTES);
            for c in (0..dim).step_by(LANES) {
                let mut acc = [S::splat(0.0); Q];
                for (i, acc) in acc.iter_mut().enumerate() {
                    let before = S::load(call.acc.add((first + i) * dim + c));
                    *acc = S::mul(before, S::splat(correction[i]));
                }
                for j in 0..LANES {
                    let v = E::load::<S>(values.add((j * dim + c) * E::BYTES));
                    for (acc, weights) in acc.iter_mut().zip(&weights) {
                        *acc = S::fma(v, S::splat(weights[j]), *acc);
                    }
                }
                for (i, &acc) in acc.iter().enumerate() {
                    S::store(call.acc.add((first + i) * dim + c), acc);
                }
            }
        }
        for i in 0..Q {
            *call.max.add(first + i) = max[i];
            *call.sum.add(first + i) = sum[i];
        }
    }
    Q
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
