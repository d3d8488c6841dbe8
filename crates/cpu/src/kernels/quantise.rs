//! Activations as 8-bit integers, for products with quantised weights.
//!
//! A row is cut into blocks of 32 values; each has a scale `d = max|x| / 127` and codes
//! `round(x / d)`, as in ggml's Q8_0. With the codes go their sums, which turn a product
//! with unsigned codes into one with offset or minimum:
//! `Σ (s·(c - o) + m)·d·x = s·d·(Σ c·x - o·Σ x) + m·d·Σ x`.

use crate::simd::{LANES, Simd};

/// Columns of a block of activations.
pub(crate) const BLOCK: usize = 32;

/// Rows of a panel. A panel holds, for each block, the codes of all its rows one after the
/// other, then come the next block's; scales and sums likewise. So whatever a register tile
/// of up to sixteen rows needs of one block lies at constant offsets.
pub(crate) const PANEL: usize = 16;

/// A way in which the sums are wanted: `-offset · Σ x` for every 32 or 16 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bias {
    /// The weights' offset.
    pub(crate) offset: i32,
    /// One sum per 16 columns instead of per 32.
    pub(crate) halves: bool,
}

/// Where one row's quantised activations go: its places in its panel's first block. From
/// one block to the next it is `lanes` times as far as if the row were alone.
#[derive(Clone, Copy)]
pub(crate) struct RowOut {
    /// Rows of the panel: 1, or [`PANEL`].
    pub(crate) lanes: usize,
    /// Codes, 32 per block.
    pub(crate) codes: *mut i8,
    /// One scale per block.
    pub(crate) scales: *mut f32,
    /// Two sums `d · Σ x` of 16 columns per block; null if nobody needs them, and no bias
    /// either is for 16 columns.
    pub(crate) half_sums: *mut f32,
    /// One sum `d · Σ x` of 32 columns per block.
    pub(crate) sums: *mut f32,
    /// For each bias room for two integers per block (of which one is used without halves).
    pub(crate) biases: *mut i32,
}

/// Quantises `x`, `cols` long, padding with zeros to a multiple of 32.
///
/// A row with NaN or infinity in it gives NaN scales in the blocks concerned, so that the
/// product is NaN too rather than silently wrong.
///
/// # Safety
/// The instruction set of `S` must be there; `x` must be readable for `cols` floats and
/// `out` writable as its fields say.
#[inline(always)]
pub(crate) unsafe fn quantise_row<S: Simd>(
    x: *const f32,
    cols: usize,
    biases: &[Bias],
    out: &RowOut,
) {
    let (whole, blocks) = (cols / BLOCK, cols.div_ceil(BLOCK));
    // SAFETY: blocks below `whole` lie inside the row; the last one is read from `tail` if it ends
    // past it.
    unsafe {
        let mut b = 0;
        while b + 4 <= whole {
            some::<S, 4>(x.add(b * BLOCK), b, blocks, biases, out);
            b += 4;
        }
        while b < whole {
            some::<S, 1>(x.add(b * BLOCK), b, blocks, biases, out);
            b += 1;
        }
        if b < blocks {
            let mut tail = [0.0f32; BLOCK];
            std::ptr::copy_nonoverlapping(x.add(b * BLOCK), tail.as_mut_ptr(), cols - b * BLOCK);
            some::<S, 1>(tail.as_ptr(), b, blocks, biases, out);
        }
    }
}

/// Quantises `N` blocks, the first of which is block `b` and lies at `x`: reductions of four
/// vectors at once take a third of the instructions of four reductions.
///
/// # Safety
/// As for [`quantise_row`].
#[inline(always)]
unsafe fn some<S: Simd, const N: usize>(
    x: *const f32,
    b: usize,
    blocks: usize,
    biases: &[Bias],
    out: &RowOut,
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        let lanes = out.lanes;
        let mut low = [S::splat(0.0); N];
        let mut high = low;
        let mut greatest = low;
        for i in 0..N {
            low[i] = S::load(x.add(i * BLOCK));
            high[i] = S::load(x.add(i * BLOCK + LANES));
            greatest[i] = S::max(S::abs(low[i]), S::abs(high[i]));
        }
        let greatest = max_lanes::<S, N>(greatest);
        let mut sums = low;
        let mut scales = [0.0; N];
        for i in 0..N {
            scales[i] = greatest[i] / 127.0;
            // A block whose largest value is zero or nearly so: 1/scale would overflow.
            let inverse = if scales[i] > f32::MIN_POSITIVE { 1.0 / scales[i] } else { 0.0 };
            let inverse = S::splat(inverse);
            low[i] = S::round(S::mul(low[i], inverse));
            high[i] = S::round(S::mul(high[i], inverse));
            let codes = out.codes.add((b + i) * BLOCK * lanes);
            S::store_i8(codes, low[i]);
            S::store_i8(codes.add(LANES), high[i]);
            sums[i] = S::add(low[i], high[i]);
        }
        // Sums of integers below 2^24 are exact in any order.
        let sums = sum_lanes::<S, N>(sums);
        let halves = if out.half_sums.is_null() { sums } else { sum_lanes::<S, N>(low) };
        for i in 0..N {
            let (b, sum) = (b + i, sums[i]);
            // max() drops NaN, the sum does not; infinity times its inverse is NaN too.
            let scale = scales[i] + sum * 0.0;
            *out.scales.add(b * lanes) = scale;
            *out.sums.add(b * lanes) = scale * sum;
            let halves = [halves[i], sum - halves[i]];
            if !out.half_sums.is_null() {
                *out.half_sums.add(2 * b * lanes) = scale * halves[0];
                *out.half_sums.add((2 * b + 1) * lanes) = scale * halves[1];
            }
            for (i, bias) in biases.iter().enumerate() {
                let to = out.biases.add(i * 2 * blocks * lanes);
                if bias.halves {
                    *to.add(2 * b * lanes) = -bias.offset * halves[0] as i32;
                    *to.add((2 * b + 1) * lanes) = -bias.offset * halves[1] as i32;
                } else {
                    *to.add(b * lanes) = -bias.offset * sum as i32;
                }
            }
        }
    }
}

/// The greatest lane of each vector.
#[inline(always)]
unsafe fn max_lanes<S: Simd, const N: usize>(x: [S::F; N]) -> [f32; N] {
    let mut greatest = [0.0; N];
    // SAFETY: forwarded from the caller.
    unsafe {
        if N == 4 {
            greatest.copy_from_slice(&S::max_lanes([x[0], x[1], x[2], x[3]]));
        } else {
            for (to, x) in greatest.iter_mut().zip(x) {
                *to = S::max_lane(x);
            }
        }
    }
    greatest
}

/// The sum of each vector's lanes.
#[inline(always)]
unsafe fn sum_lanes<S: Simd, const N: usize>(x: [S::F; N]) -> [f32; N] {
    let mut sums = [0.0; N];
    // SAFETY: forwarded from the caller.
    unsafe {
        if N == 4 {
            sums.copy_from_slice(&S::sum_lanes([x[0], x[1], x[2], x[3]]));
        } else {
            for (to, x) in sums.iter_mut().zip(x) {
                *to = S::sum(x);
            }
        }
    }
    sums
}
