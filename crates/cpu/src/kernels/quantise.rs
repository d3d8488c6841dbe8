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
    let blocks = cols.div_ceil(BLOCK);
    let mut tail = [0.0f32; BLOCK];
    for b in 0..blocks {
        // SAFETY: block b starts inside the row; a block that ends past it is read from `tail`.
        unsafe {
            let start = b * BLOCK;
            let mut source = x.add(start);
            if start + BLOCK > cols {
                std::ptr::copy_nonoverlapping(source, tail.as_mut_ptr(), cols - start);
                source = tail.as_ptr();
            }
            let (low, high) = (S::load(source), S::load(source.add(LANES)));
            let largest = S::max_lane(S::max(S::abs(low), S::abs(high)));
            let scale = largest / 127.0;
            // A block whose largest value is zero or nearly so: 1/scale would overflow.
            let inverse = S::splat(if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 });
            let (low, high) = (S::round(S::mul(low, inverse)), S::round(S::mul(high, inverse)));
            let lanes = out.lanes;
            let codes = out.codes.add(start * lanes);
            S::store_i8(codes, low);
            S::store_i8(codes.add(LANES), high);
            // Sums of integers below 2^24 are exact in any order.
            let (mut halves, sum) = ([0.0; 2], S::sum(S::add(low, high)));
            // max() drops NaN, the sum does not; infinity times its inverse is NaN too.
            let scale = scale + sum * 0.0;
            *out.scales.add(b * lanes) = scale;
            *out.sums.add(b * lanes) = scale * sum;
            if !out.half_sums.is_null() {
                halves[0] = S::sum(low);
                halves[1] = sum - halves[0];
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
