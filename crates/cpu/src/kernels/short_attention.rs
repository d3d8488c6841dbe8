//! Attention of many queries at once, as a prompt has them, in 16-bit integers.
//!
//! The same online softmax as in `attention`, over tiles of 64 positions. A multiply-add of
//! 16-bit pairs (`vpdpwssd`) does twice the products of one of floats. What is multiplied is
//! rounded to fixed point with about as many bits as an f16 has:
//!
//! - queries with one scale per row, keys with one per position, such that no sum over the
//!   head's dimension overflows: 5792 steps for 64 dimensions;
//! - values with one scale per dimension and tile: 4095 steps;
//! - softmax weights with one scale per row and tile, up to 32767 steps, less where many
//!   weights are large, so that their sum fits.
//!
//! The sum that the weights are divided by is that of the unrounded ones.

use crate::kernels::attention::{KvElement, KvHead, softcap};
use crate::simd::{LANES, ShortProducts, Simd, exp};

/// Positions of a tile.
const TILE: usize = 64;
/// Vectors of a tile's positions.
const VECTORS: usize = TILE / LANES;
/// Steps of a value.
const VALUE_STEPS: f32 = 4095.0;
/// Most that a row's weights may add up to: with the rounding of 64 of them, times
/// [`VALUE_STEPS`], below 2^31.
const WEIGHT_SUM: f32 = 524_000.0;
/// Steps of a weight.
const WEIGHT_STEPS: f32 = 32_767.0;

/// Queries that look at the same head.
#[derive(Clone, Copy)]
pub(crate) struct ShortCall<'a> {
    /// What they look at.
    pub(crate) head: KvHead,
    /// `[rows][dim]` queries, already multiplied by the score's scale.
    pub(crate) queries: *const f32,
    /// For each row the positions that it sees, at least one.
    pub(crate) visible: &'a [(usize, usize)],
    /// `cap · tanh(score / cap)`, if above 0.
    pub(crate) softcap: f32,
    /// Room for [`scratch_floats`] floats, aligned to 64 bytes.
    pub(crate) scratch: *mut f32,
    /// `[rows][dim]` weighted values; starts at 0.
    pub(crate) acc: *mut f32,
    /// `[rows]` sums of weights.
    pub(crate) sum: *mut f32,
}

/// Floats of scratch that a call with so many rows needs.
pub(crate) const fn scratch_floats(rows: usize, dim: usize) -> usize {
    // Queries in 16 bits and their scales, maxima and sums; keys and values in 16 bits and
    // their scales; weights of four rows.
    let rows = rows.next_multiple_of(16);
    rows * dim / 2 + rows * (2 + LANES) + TILE * dim + TILE + dim + 4 * TILE / 2
}

/// The scratch, taken apart.
struct Scratch {
    /// `[rows][dim]`.
    queries: *mut i16,
    /// `[rows]`.
    query_scales: *mut f32,
    /// `[rows]`.
    max: *mut f32,
    /// `[rows][16]`: a sum per lane.
    sums: *mut f32,
    /// `[dim / 2][64]` pairs of dimensions.
    keys: *mut i32,
    /// `[64]`.
    key_scales: *mut f32,
    /// `[32][dim]` pairs of positions.
    values: *mut i32,
    /// `[dim]`.
    value_scales: *mut f32,
    /// `[4][64]`.
    weights: *mut i16,
}

impl Scratch {
    /// # Safety
    /// `at` must have room for `scratch_floats`.
    unsafe fn new(at: *mut f32, rows: usize, dim: usize) -> Self {
        let rows = rows.next_multiple_of(16);
        // SAFETY: the parts add up to `scratch_floats`.
        unsafe {
            let query_scales = at.add(rows * dim / 2);
            let max = query_scales.add(rows);
            let sums = max.add(rows);
            let keys = sums.add(rows * LANES);
            let key_scales = keys.add(TILE * dim / 2);
            let values = key_scales.add(TILE);
            let value_scales = values.add(TILE * dim / 2);
            Self {
                queries: at.cast(),
                query_scales,
                max,
                sums,
                keys: keys.cast(),
                key_scales,
                values: values.cast(),
                value_scales,
                weights: value_scales.add(dim).cast(),
            }
        }
    }
}

/// Attends with all rows of the call.
///
/// # Safety
/// The instruction set of `S` must be there; all pointers must be valid for what their
/// fields say, and the cache filled for all visible positions.
#[inline(always)]
pub(crate) unsafe fn attend<S: ShortProducts, E: KvElement>(call: &ShortCall<'_>) {
    let (rows, dim) = (call.visible.len(), call.head.dim);
    // Σ over dim of steps² stays below 2^31.
    let steps = ((i32::MAX as f32 / dim as f32).sqrt() - 1.0).min(32_767.0).floor();
    // SAFETY: forwarded from the caller; tiles begin at positions that some row sees, and no
    // position past the last that is seen is read.
    unsafe {
        let scratch = Scratch::new(call.scratch, rows, dim);
        for row in 0..rows {
            let from = call.queries.add(row * dim);
            let to = scratch.queries.add(row * dim);
            *scratch.query_scales.add(row) = round_row::<S>(from, dim, steps, to);
            *scratch.max.add(row) = f32::NEG_INFINITY;
            S::store(scratch.sums.add(row * LANES), S::splat(0.0));
        }
        let start = call.visible.iter().map(|v| v.0).min().unwrap_or(0) / TILE;
        let end = call.visible.iter().map(|v| v.1).max().unwrap_or(0);
        for tile in start..end.div_ceil(TILE) {
            let first = tile * TILE;
            let count = (end - first).min(TILE);
            convert_keys::<S, E>(&call.head, first, count, steps, &scratch);
            convert_values::<S, E>(&call.head, first, count, &scratch);
            let mut row = 0;
            while row < rows {
                row += if rows - row >= 4 {
                    tile_rows::<S, 4>(call, &scratch, row, first)
                } else {
                    tile_rows::<S, 1>(call, &scratch, row, first)
                };
            }
        }
        for row in 0..rows {
            *call.sum.add(row) = S::sum(S::load(scratch.sums.add(row * LANES)));
        }
    }
}

/// Rounds a row to `steps` either side of zero; returns what a step stands for.
#[inline(always)]
unsafe fn round_row<S: ShortProducts>(x: *const f32, dim: usize, steps: f32, to: *mut i16) -> f32 {
    // SAFETY: the caller vouches for `dim` elements, a multiple of 16.
    unsafe {
        let mut largest = S::splat(0.0);
        for d in (0..dim).step_by(LANES) {
            largest = S::max(largest, S::abs(S::load(x.add(d))));
        }
        let largest = S::max_lane(largest);
        let inverse = S::splat(if largest > f32::MIN_POSITIVE { steps / largest } else { 0.0 });
        for d in (0..dim).step_by(LANES) {
            S::store_short(to.add(d), S::mul(S::load(x.add(d)), inverse));
        }
        largest / steps
    }
}

/// The factor that takes numbers up to `largest` to `steps`, lane by lane.
#[inline(always)]
unsafe fn inverse<S: Simd>(largest: S::F, steps: f32) -> S::F {
    // SAFETY: forwarded from the caller. All zeros stay zeros with any finite factor.
    unsafe { S::div(S::splat(steps), S::max(largest, S::splat(1e-30))) }
}

/// Keys of `count` positions as pairs of dimensions; the rest of the tile as zeros.
#[inline(always)]
unsafe fn convert_keys<S: ShortProducts, E: KvElement>(
    head: &KvHead,
    first: usize,
    count: usize,
    steps: f32,
    scratch: &Scratch,
) {
    let dim = head.dim;
    for v in 0..VECTORS {
        // SAFETY: the cache has whole blocks of 16 positions; scratch as laid out.
        unsafe {
            let to = scratch.keys.add(v * LANES);
            let scale = scratch.key_scales.add(v * LANES);
            if v * LANES >= count {
                S::store(scale, S::splat(0.0));
                for d in 0..dim / 2 {
                    S::store_pairs(to.add(d * TILE), S::int_splat(0));
                }
                continue;
            }
            let block = first / LANES + v;
            let keys = head.keys.add(block * dim * LANES * E::BYTES);
            let mut largest = S::splat(0.0);
            for d in 0..dim {
                largest = S::max(largest, S::abs(E::load::<S>(keys.add(d * LANES * E::BYTES))));
            }
            let inverse = inverse::<S>(largest, steps);
            for d in 0..dim / 2 {
                let k0 = E::load::<S>(keys.add(2 * d * LANES * E::BYTES));
                let k1 = E::load::<S>(keys.add((2 * d + 1) * LANES * E::BYTES));
                let pair = S::pack(S::mul(k0, inverse), S::mul(k1, inverse));
                S::store_pairs(to.add(d * TILE), pair);
            }
            let mut step = S::mul(largest, S::splat(1.0 / steps));
            if E::SCALED {
                step = S::mul(step, S::load(head.key_scales.add(block * LANES)));
            }
            S::store(scale, step);
        }
    }
}

/// Values of `count` positions as pairs of positions; the rest of the tile as zeros.
#[inline(always)]
unsafe fn convert_values<S: ShortProducts, E: KvElement>(
    head: &KvHead,
    first: usize,
    count: usize,
    scratch: &Scratch,
) {
    let dim = head.dim;
    for c in (0..dim).step_by(LANES) {
        // SAFETY: positions below `count` are in the cache; scratch as laid out.
        unsafe {
            let mut largest = S::splat(0.0);
            for p in 0..count {
                largest = S::max(largest, S::abs(value::<S, E>(head, first + p, c)));
            }
            let inverse = inverse::<S>(largest, VALUE_STEPS);
            S::store(scratch.value_scales.add(c), S::mul(largest, S::splat(1.0 / VALUE_STEPS)));
            for p in (0..TILE).step_by(2) {
                let zero = S::splat(0.0);
                let v0 = if p < count { value::<S, E>(head, first + p, c) } else { zero };
                let v1 = if p + 1 < count { value::<S, E>(head, first + p + 1, c) } else { zero };
                let pair = S::pack(S::mul(v0, inverse), S::mul(v1, inverse));
                S::store_pairs(scratch.values.add(p / 2 * dim + c), pair);
            }
        }
    }
}

/// Sixteen dimensions from `c` on of the value at `position`.
#[inline(always)]
unsafe fn value<S: Simd, E: KvElement>(head: &KvHead, position: usize, c: usize) -> S::F {
    // SAFETY: the caller vouches for the position.
    unsafe {
        let v = E::load::<S>(head.values.add((position * head.dim + c) * E::BYTES));
        if E::SCALED { S::mul(v, S::splat(*head.value_scales.add(position))) } else { v }
    }
}

/// Products of `R` rows of pairs with `J` vectors of them: `[pairs][stride]` at `w`.
#[inline(always)]
unsafe fn products<S: ShortProducts, const R: usize, const J: usize>(
    rows: [*const i32; R],
    w: *const i32,
    stride: usize,
    pairs: usize,
) -> [[S::I; J]; R] {
    // SAFETY: forwarded from the caller.
    unsafe {
        let mut acc = [[S::int_splat(0); J]; R];
        for i in 0..pairs {
            let mut vectors = [S::int_splat(0); J];
            for (j, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load_pairs(w.add(i * stride + j * LANES));
            }
            for (acc, row) in acc.iter_mut().zip(rows) {
                let pair = *row.add(i);
                for (acc, &vector) in acc.iter_mut().zip(&vectors) {
                    *acc = S::dot_pairs(*acc, vector, pair);
                }
            }
        }
        acc
    }
}

/// Rows `row .. row + R` with the tile at position `first`; returns R.
#[inline(always)]
unsafe fn tile_rows<S: ShortProducts, const R: usize>(
    call: &ShortCall<'_>,
    scratch: &Scratch,
    row: usize,
    first: usize,
) -> usize {
    let dim = call.head.dim;
    let visible: [(usize, usize); R] = std::array::from_fn(|r| call.visible[row + r]);
    let from = visible.iter().map(|v| v.0).min().unwrap_or(0);
    let to = visible.iter().map(|v| v.1).max().unwrap_or(0).min(first + TILE);
    if to <= first || from >= first + TILE {
        return R;
    }
    let positions = to - first;
    // SAFETY: forwarded from the caller.
    unsafe {
        let queries: [*const i32; R] =
            std::array::from_fn(|r| scratch.queries.add((row + r) * dim).cast_const().cast());
        let mut scores = [[S::int_splat(0); VECTORS]; R];
        if positions > 2 * LANES {
            scores = products::<S, R, VECTORS>(queries, scratch.keys, TILE, dim / 2);
        } else {
            let half = products::<S, R, 2>(queries, scratch.keys, TILE, dim / 2);
            for (scores, half) in scores.iter_mut().zip(half) {
                [scores[0], scores[1]] = half;
            }
        }
        let mut corrections = [S::splat(1.0); R];
        let mut factors = [S::splat(0.0); R];
        let mut seen = false;
        for r in 0..R {
            let to = scratch.weights.add(r * TILE);
            let scale = S::splat(*scratch.query_scales.add(row + r));
            let mut score = [S::splat(f32::NEG_INFINITY); VECTORS];
            let mut largest = S::splat(f32::NEG_INFINITY);
            for v in 0..VECTORS {
                let position = first + v * LANES;
                if position >= visible[r].1 || position + LANES <= visible[r].0 {
                    continue;
                }
                let step = S::mul(S::load(scratch.key_scales.add(v * LANES)), scale);
                let mut x = S::mul(S::int_to_float(scores[r][v]), step);
                if call.softcap > 0.0 {
                    x = softcap::<S>(x, call.softcap);
                }
                if visible[r].0 > position || visible[r].1 < position + LANES {
                    x = hide::<S>(x, position, visible[r]);
                }
                score[v] = x;
                largest = S::max(largest, x);
            }
            let largest = S::max_lane(largest);
            if largest == f32::NEG_INFINITY {
                for v in 0..VECTORS {
                    S::store_short(to.add(v * LANES), S::splat(0.0));
                }
                continue;
            }
            seen = true;
            let before = *scratch.max.add(row + r);
            let greatest = before.max(largest);
            *scratch.max.add(row + r) = greatest;
            let mut sum = S::splat(0.0);
            for score in &mut score {
                // `exp` of minus infinity is not quite 0, but less than half a step.
                *score = exp::<S>(S::sub(*score, S::splat(largest)));
                sum = S::add(sum, *score);
            }
            let steps = WEIGHT_STEPS.min(WEIGHT_SUM / S::sum(sum));
            for (v, &score) in score.iter().enumerate() {
                S::store_short(to.add(v * LANES), S::mul(score, S::splat(steps)));
            }
            // One of the two is 1.
            corrections[r] = exp::<S>(S::splat(before - greatest));
            let weight = exp::<S>(S::splat(largest - greatest));
            factors[r] = S::mul(weight, S::splat(1.0 / steps));
            let sums = scratch.sums.add((row + r) * LANES);
            S::store(sums, S::fma(S::load(sums), corrections[r], S::mul(sum, weight)));
        }
        if !seen {
            return R;
        }
        let weights: [*const i32; R] =
            std::array::from_fn(|r| scratch.weights.add(r * TILE).cast_const().cast());
        let pairs = positions.div_ceil(2);
        let mut c = 0;
        while c < dim {
            let w = scratch.values.add(c);
            let acc = call.acc.add(row * dim + c);
            let scales = scratch.value_scales.add(c);
            if dim - c >= 4 * LANES {
                let sums = products::<S, R, 4>(weights, w, dim, pairs);
                add_values::<S, R, 4>(sums, scales, corrections, factors, acc, dim);
                c += 4 * LANES;
            } else {
                let sums = products::<S, R, 1>(weights, w, dim, pairs);
                add_values::<S, R, 1>(sums, scales, corrections, factors, acc, dim);
                c += LANES;
            }
        }
    }
    R
}

/// `acc = acc · correction + sums · scales · factor`.
#[inline(always)]
unsafe fn add_values<S: Simd, const R: usize, const J: usize>(
    sums: [[S::I; J]; R],
    scales: *const f32,
    corrections: [S::F; R],
    factors: [S::F; R],
    acc: *mut f32,
    dim: usize,
) {
    for (r, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: the caller vouches for R rows of J vectors.
            unsafe {
                let at = acc.add(r * dim + j * LANES);
                let scale = S::mul(S::load(scales.add(j * LANES)), factors[r]);
                let before = S::mul(S::load(at), corrections[r]);
                S::store(at, S::fma(S::int_to_float(sum), scale, before));
            }
        }
    }
}

/// Minus infinity where a position is not visible.
#[inline(always)]
unsafe fn hide<S: Simd>(score: S::F, position: usize, visible: (usize, usize)) -> S::F {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: the array has 16 floats.
    unsafe {
        S::store(lanes.as_mut_ptr(), score);
        for (j, lane) in lanes.iter_mut().enumerate() {
            if position + j < visible.0 || position + j >= visible.1 {
                *lane = f32::NEG_INFINITY;
            }
        }
        S::load(lanes.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::{Isa, kernels};
    use crate::kernels::attention::AttendCall;

    /// 64-byte aligned zeroes.
    fn aligned(floats: usize) -> Vec<[f32; 16]> {
        vec![[0.0; 16]; floats.div_ceil(16)]
    }

    /// Numbers around zero, some of them much larger.
    fn values(seed: u64, n: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if state.is_multiple_of(37) { 6.0 * x } else { x }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against the kernel in floats on the same cache, for causal rows with and without a
        /// window, any number of positions and 16 to 128 dimensions.
        #[test]
        fn agrees_with_attention_in_floats(
            seed: u64,
            dims in 1usize..9,
            rows in 1usize..14,
            before in 0usize..300,
            window in prop::option::of(1usize..150),
            cache in 1usize..3,
            softcap in prop::sample::select(vec![0.0f32, 0.0, 5.0]),
        ) {
            let Ok(table) = kernels(Isa::best()) else { return Ok(()) };
            let Some(short) = table.attend_short[cache] else { return Ok(()) };
            let (dim, positions) = (16 * dims, before + rows);
            let padded = positions.next_multiple_of(16);
            let (mut keys, mut vals) = (aligned(padded * dim), aligned(padded * dim));
            let (mut key_scales, mut value_scales) = (aligned(padded), aligned(padded));
            let head = KvHead {
                keys: keys.as_mut_ptr().cast(),
                values: vals.as_mut_ptr().cast(),
                key_scales: key_scales.as_mut_ptr().cast(),
                value_scales: value_scales.as_mut_ptr().cast(),
                dim,
            };
            let (k, v) = (values(seed, positions * dim), values(!seed, positions * dim));
            let queries = values(seed ^ 0xffff, rows * dim);
            let scale = 4.0 / dim as f32;
            let queries: Vec<f32> = queries.iter().map(|q| q * scale).collect();
            let visible: Vec<(usize, usize)> = (before + 1..=positions)
                .map(|to| (window.map_or(0, |w| to.saturating_sub(w)), to))
                .collect();
            let (mut expected, mut found) = (vec![0.0; rows * dim], vec![0.0; rows * dim]);
            let (mut max, mut sum) = (vec![f32::NEG_INFINITY; rows], vec![0.0f32; rows]);
            let mut short_sum = vec![0.0f32; rows];
            let mut scratch = aligned(scratch_floats(rows, dim));
            // SAFETY: everything is as large as the calls say.
            unsafe {
                for p in 0..positions {
                    (table.append[cache])(&head, p, k[p * dim..].as_ptr(), v[p * dim..].as_ptr());
                }
                for first in (0..rows).step_by(8) {
                    (table.attend[cache])(&AttendCall {
                        head,
                        queries: queries[first * dim..].as_ptr(),
                        visible: &visible[first..rows.min(first + 8)],
                        range: (0, usize::MAX),
                        softcap,
                        max: max[first..].as_mut_ptr(),
                        sum: sum[first..].as_mut_ptr(),
                        acc: expected[first * dim..].as_mut_ptr(),
                    });
                }
                short(&ShortCall {
                    head,
                    queries: queries.as_ptr(),
                    visible: &visible,
                    softcap,
                    scratch: scratch.as_mut_ptr().cast(),
                    acc: found.as_mut_ptr(),
                    sum: short_sum.as_mut_ptr(),
                });
            }
            let largest = v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for r in 0..rows {
                prop_assert!((short_sum[r] / sum[r] - 1.0).abs() < 4e-3, "{} {}", short_sum[r], sum[r]);
                for d in 0..dim {
                    let (e, f) = (expected[r * dim + d] / sum[r], found[r * dim + d] / short_sum[r]);
                    prop_assert!((e - f).abs() < 1e-3 * largest, "row {r}, {d}: {f}, expected {e}");
                }
            }
        }
    }
}
